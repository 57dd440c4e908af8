package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"sealroot/mkinitramfs/disk"
	"sealroot/mkinitramfs/rootcheck"
	"sealroot/mkinitramfs/tools"
	"sealroot/mkinitramfs/yamlconfig"
)

// errUnbootable means that a root was found that no image can be made of, or none
// that boots.
var errUnbootable = errors.New("unusable root file system")

// rules is a flag with names of rules of rootcheck.
type rules []string

func (r *rules) String() string { return strings.Join(*r, ",") }

func (r *rules) Set(text string) error {
	known, _ := rootcheck.Rules()
	for name := range strings.SplitSeq(text, ",") {
		if !slices.Contains(known, name) {
			return fmt.Errorf("no rule %q; there are %s", name, strings.Join(known, ", "))
		}
		*r = append(*r, name)
	}
	return nil
}

func (r *rules) register(fs *flag.FlagSet) {
	fs.Var(r, "ignore", "rules of check-root to leave out, by name, with commas")
}

// judgement is the JSON form of check-root.
type judgement struct {
	Schema   int                 `json:"schema"`
	Root     string              `json:"root"`
	Errors   int                 `json:"errors"`
	Warnings int                 `json:"warnings"`
	Findings []rootcheck.Finding `json:"findings"`
}

// checkRootCommand tells what in a root will hurt.
func checkRootCommand(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("sealroot-mkinitramfs check-root", flag.ContinueOnError)
	fs.SetOutput(stderr)
	configPath := fs.String("config", "", "configuration of the image (YAML): its name, binds and state are judged too")
	kernel := fs.String("kernel", "", "kernel release whose modules the root must hold, as uname -r prints it")
	initPath := fs.String("init", "/sbin/init", "real init, where init= names another")
	asJSON := fs.Bool("json", false, "for programs: schema 1")
	var ignore rules
	ignore.register(fs)
	fs.Usage = func() {
		fmt.Fprint(stderr, "usage: sealroot-mkinitramfs check-root [options] DIR|TAR|-\n\nTells what in a root file system will hurt once it is an image.\nExit status: 0 nothing or warnings only, 1 errors, 2 wrong usage.\n\n")
		fs.PrintDefaults()
		fmt.Fprintln(stderr, "\nrules:")
		names, about := rootcheck.Rules()
		for i, name := range names {
			fmt.Fprintf(stderr, "  %-16s %s\n", name, about[i])
		}
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if fs.NArg() != 1 {
		fs.Usage()
		return errUsage
	}
	want := rootcheck.Want{Kernel: *kernel, Init: *initPath, Ignore: ignore, BootKernel: *kernel}
	if *configPath != "" {
		var err error
		if want.Config, err = yamlconfig.Load(*configPath); err != nil {
			return err
		}
		if want.Layers, err = layersToJudge(ctx, want, filepath.Dir(*configPath)); err != nil {
			return err
		}
	}
	source := fs.Arg(0)
	tree, err := disk.ReadTree(source, stdin)
	if err != nil {
		return err
	}
	found := rootcheck.Judge(tree, want)
	bad := rootcheck.Errors(found)
	if *asJSON {
		err = writeJSON(stdout, judgement{1, source, bad, len(found) - bad, append([]rootcheck.Finding{}, found...)})
	} else {
		err = writeFindings(stdout, source, found, bad)
	}
	if err == nil && bad > 0 {
		err = fmt.Errorf("cannot make an image of %s that boots: %d errors: %w", source, bad, errUnbootable)
	}
	return err
}

// layersToJudge reads the images that a configuration in dir names. They need not be there
// yet.
func layersToJudge(ctx context.Context, want rootcheck.Want, dir string) ([]rootcheck.Layer, error) {
	if slices.Contains(want.Ignore, rootcheck.LayersRule) {
		return nil, nil
	}
	return disk.ReadLayers(ctx, tools.New(), want.Config, dir, "")
}

func writeJSON(w io.Writer, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot write JSON: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", text)
	return err
}

func writeFindings(w io.Writer, source string, found []rootcheck.Finding, bad int) error {
	var out strings.Builder
	for _, f := range found {
		fmt.Fprintf(&out, "%s: %s (%s)\n    %s\n    -> %s\n", f.Severity, f.Path, f.Rule, f.What, f.Remedy)
	}
	fmt.Fprintf(&out, "%s: %d errors, %d warnings\n", source, bad, len(found)-bad)
	_, err := io.WriteString(w, out.String())
	return err
}
