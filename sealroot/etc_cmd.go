package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/etc"
)

// etcMerge merges /etc for the image that runs. PID 1 takes lines that begin with
// warning: or conflict: into its report.
func etcMerge(c *command) action {
	image := c.flags.String("image", "", "identity of the image that runs")
	trial := c.flags.Bool("trial", false, "it is on trial")
	putBack := c.flags.Bool("put-back", false, "merge nothing, and put back what was there before a trial that failed")
	volume := c.flags.String("volume", "/state/encrypted", "where the volume is mounted")
	from := c.flags.String("from", "/etc", "the image's /etc")
	return func(context.Context, []string) error {
		root, err := openDir(*volume)
		if err != nil {
			return err
		}
		defer root.Close()
		dir, err := openDir(*from)
		if err != nil {
			return err
		}
		defer dir.Close()
		// What the image has for /var lies beside what it has for /etc.
		content, err := openDir(filepath.Join(filepath.Dir(*from), "var"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		defer content.Close() // nil: an error, and no more
		r, err := etc.Merge(root, dir, etc.Options{Image: *image, Trial: *trial, Var: content, PutBackOnly: *putBack})
		if err != nil {
			return err
		}
		for _, line := range mergeText(r) {
			fmt.Fprintln(c.stdout, line)
		}
		return nil
	}
}

// mergeText says what a merge has done.
func mergeText(r etc.Result) []string {
	var lines []string
	if r.VarDirs > 0 {
		lines = append(lines, fmt.Sprintf("%d new directories of the image are in /var now", r.VarDirs))
	}
	if r.VarError != nil {
		lines = append(lines, "warning: "+r.VarError.Error())
	}
	if r.Done {
		return append(lines, "is this image's already")
	}
	if r.PutBack {
		return append(lines, "warning: /etc is what this image had before the trial, which failed: its changes are put aside (sealroot etc diff)")
	}
	if r.Failed != "" {
		lines = append(lines, "warning: what was changed in /etc under a trial that failed is put aside (sealroot etc diff)")
	}
	if r.Waits {
		return append(lines, "is not merged for this image")
	}
	lines = append(lines, fmt.Sprintf("merged for this image; %d files differ from its own", r.Files))
	for _, c := range r.Conflicts[:min(len(r.Conflicts), report.MaxEtcConflicts)] {
		// A name of a file may be anything, a line too.
		lines = append(lines, fmt.Sprintf("conflict: %s: %.300s", strings.Trim(fmt.Sprintf("%.300q", c.Path), `"`), c.What))
	}
	if n := len(r.Conflicts); n > 0 {
		lines = append(lines, fmt.Sprintf("warning: the image and this machine have both changed something in /etc; the machine's is kept (%d conflicts, sealroot etc diff)", n))
	}
	return lines
}

func openDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// etcCommitted notes that what is changed in the /etc of this boot is no trial's. What
// goes wrong is told, and costs nothing else.
func (c *command) etcCommitted(r report.Report) {
	if err := etc.Committed(c.env.volume(), r.EtcImage); err != nil {
		c.say("%v", err)
	}
}

func etcDiff(c *command) action {
	return func(context.Context, []string) error {
		r, err := c.booted()
		if err != nil {
			return err
		}
		cfg, err := c.env.configuration()
		if err != nil {
			return err
		}
		if why := notKept(r, cfg); why != "" {
			return fmt.Errorf("cannot compare /etc: its changes are not kept: %s: %w", why, bootset.ErrRefused)
		}
		if r.EtcInMemory {
			c.say("what is changed in this boot is in memory, and not listed")
		}
		d, err := etc.Compare(c.env.volume())
		if err != nil {
			return err
		}
		c.result.Data = d
		if !c.json {
			printDiff(c, d)
		}
		return nil
	}
}

// notKept says why /etc of a boot has nothing of the volume's; "" where it has.
func notKept(r report.Report, cfg config.Config) string {
	switch {
	case cfg.Etc != config.EtcOverlay:
		return "etc is " + string(cfg.Etc) + " in this boot's configuration"
	case r.Degraded:
		return "this boot is degraded"
	case cfg.State.Create == config.CreateNone:
		return "state.create is none"
	}
	return ""
}

func printDiff(c *command, d etc.Diff) {
	for _, x := range d.Conflicts {
		fmt.Fprintf(c.stdout, "conflict  /etc/%s: %s\n", x.Path, x.What)
		if x.ImageHas != "" {
			fmt.Fprintf(c.stdout, "          the image's:     %s\n", x.ImageHas)
		}
		if x.OldImageHas != "" {
			fmt.Fprintf(c.stdout, "          the image before: %s\n", x.OldImageHas)
		}
	}
	for _, list := range []struct {
		word  string
		names []string
	}{{"added", d.Added}, {"changed", d.Changed}, {"removed", d.Removed}} {
		for _, name := range list.names {
			fmt.Fprintf(c.stdout, "%-8s  /etc/%s\n", list.word, name)
		}
	}
	if d.PutAside != "" {
		fmt.Fprintf(c.stdout, "changes under the image that failed on trial lie in %s\n", d.PutAside)
	}
	if len(d.Conflicts)+len(d.Added)+len(d.Changed)+len(d.Removed) == 0 {
		fmt.Fprintln(c.stdout, "/etc is the image's")
	}
}
