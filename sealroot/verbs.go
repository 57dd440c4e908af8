package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// output says what a command knows of --json.
type output int

const (
	plain   output = iota // nothing: what it prints is for a person
	results               // the dispatcher prints the result (docs/result.schema.json)
	own                   // the command prints a form of its own
)

// action is what a command does once its arguments are read.
type action func(ctx context.Context, words []string) error

// verb is one command.
type verb struct {
	name    string // may be two words
	args    string // as the usage shows them
	summary string // one line
	least   int    // words beside the flags
	most    int
	output  output
	anyone  bool // root is not needed
	hidden  bool // for units and shells, not in the usage
	// setup declares the command's flags on c.flags and returns what runs then.
	setup func(c *command) action
}

// verbs is the table of commands, in the order of the usage.
func verbs() []verb {
	return []verb{
		{name: "status", args: "[--json] [--pcrs] [--disk FILE]", summary: "slots, state, recovery key, what to do", output: own, setup: status},
		{name: "explain", args: "[--json] [--disk IMAGE [--slot SLOT]]", summary: "what is mounted where and why, or what an image would mount", output: own, anyone: true, setup: explainMounts},
		{name: "commit", args: "[--burn] [--disk FILE SLOT]", summary: "keep the slot that runs", most: 1, output: results, setup: commit},
		{name: "try", args: "SLOT [--tries N] [--disk FILE]", summary: "boot another slot on trial, at most N times", least: 1, most: 1, output: results, setup: try},
		{name: "install", args: "DIR|FILE|- [--slot SLOT]", summary: "write an image into another slot, and put it on trial", least: 1, most: 1, output: results, setup: installImage},
		{name: "repair", args: "SLOT", summary: "make a slot a verified copy of the one that runs", least: 1, most: 1, output: results, setup: repair},
		{name: "replicate", summary: "the same with the other slot", output: results, setup: replicate},
		{name: "verify", args: "[SLOT]", summary: "read slots as a whole and check them", most: 1, output: results, setup: verifySlots},
		{name: "mark-bad", args: "[SLOT] [--reason TEXT] [--reboot] [--disk FILE]", summary: "leave a slot, the running one by default, as bad", most: 1, output: results, setup: markBad},
		{name: "rollback", args: "[--reboot] [--disk FILE]", summary: "leave the running slot for the other committed one", output: results, setup: rollback},
		{name: "kexec", args: "[SLOT] [--start [--force]] [--unload]", summary: "load a committed slot's signed kernel, to be started past firmware and boot loader", most: 1, output: results, setup: kexecSlot},
		{name: "check", args: "[--commit] [--lower]", summary: "run the health checks; a slot on trial that fails one is left", output: results, setup: check},
		{name: "state status", args: "[--json]", summary: "keyslots and tokens of the encrypted volume, what opens it at the next boot", output: own, setup: stateStatus},
		{name: "state balance", args: "[--watch]", summary: "give free space of the state partition to the volume, or back", output: results, setup: balanceState},
		{name: "state enroll", summary: "bind the TPM anew, as the machine boots now", output: results, setup: enroll},
		{name: "state prepare-update", args: "[DIR|FILE|-] [--slot SLOT]", summary: "seal the state to an image before it is installed, or to what a slot has", most: 1, output: results, setup: prepareUpdate},
		{name: "state unlock", args: "[--recovery-key-file FILE]", summary: "open the volume of a degraded boot, and bind the TPM", output: results, setup: unlockState},
		{name: "state recovery-key", args: "[--new] [--show] [--yes]", summary: "show the recovery key once, then delete it here; --new makes another one", setup: recoveryKey},
		{name: "state passphrase", args: "[--add] [--passphrase-file FILE]", summary: "enrol a passphrase, or another one in its place", output: results, setup: passphrase},
		{name: "state remove", args: "KEYSLOT|tpm2|recovery|passphrase|manage", summary: "take a way to open the volume away, never the last one", least: 1, most: 1, output: results, setup: removeKeyslot},
		{name: "state rekey", summary: "rotate the secrets of the TPM and of the manage key", output: results, setup: rekey},
		{name: "state escrow", args: "[--der]", summary: "print the escrowed recovery key, for the holder of its private key", setup: escrowedKey},
		{name: "state create", args: "--disk IMAGE [--recovery-key-file FILE | --escrow CERT]", summary: "make partition and volume in the image of a disk, before its first boot", output: results, anyone: true, setup: createState},
		{name: "state resize", args: "SIZE|max|min", summary: "give the volume more or less of the state partition: 20G, +2G, -500M, 50%", least: 1, most: 1, output: results, setup: resizeState},
		{name: "state repair", summary: "reserve all that the volume spans; makes a volume that is read-only for that writable", output: results, setup: repairState},
		{name: "state reset", args: "[--keep-home] [--yes] [--cancel]", summary: "destroy the encrypted state at the next boot, and begin anew", output: results, setup: resetState},
		{name: "layer list", args: "[--json]", summary: "the layers of this boot, and what the next boot does with them", output: results, setup: listLayers},
		{name: "layer add", args: "FILE [--name NAME]", summary: "verify a signed layer and put it over the others, on trial from the next boot on", least: 1, most: 1, output: results, setup: addLayer},
		{name: "layer remove", args: "NAME", summary: "take a layer that was added away", least: 1, most: 1, output: results, setup: removeLayer},
		{name: "layer override", args: "NAME on|off", summary: "leave a layer out that the image can do without, or bring it back", least: 2, most: 2, output: results, setup: overrideLayer},
		{name: "etc diff", args: "[--json]", summary: "what of /etc differs from the image's, and what both had changed", output: results, setup: etcDiff},
		{name: "etc-merge", args: "--image ID [--trial] [--put-back] [--volume DIR] [--from DIR]", summary: "merge /etc for the image that runs (PID 1, before /etc is mounted)", hidden: true, setup: etcMerge},
		{name: "record", summary: "keep the report of this boot (sealroot-record.service)", output: results, hidden: true, setup: record},
		{name: "post-rollback", args: "[--again]", summary: "run the image's hooks when it runs again after another one (sealroot-post-rollback.service)", output: results, setup: postRollback},
		{name: "exit-program", args: "[poweroff|reboot|halt|kexec]", summary: "put this program where systemd-shutdown starts it (sealroot-exit.service); with an argument, end the machine so, for other inits", most: 1, hidden: true, setup: exitProgram},
		{name: "deadline", summary: "end a trial that was not committed (sealroot-deadline.service)", output: results, hidden: true, setup: deadline},
		{name: "completion", args: "bash|zsh|fish", summary: "completion of these commands for a shell", least: 1, most: 1, anyone: true, setup: completion},
		{name: "version", summary: "this program's version", anyone: true, setup: showVersion},
		{name: "help", args: "[COMMAND]", summary: "this list, or one command's options; of layer, state and etc the commands", most: 2, anyone: true, setup: help},
	}
}

// wordsBehind are the second words of the commands whose first word this is.
func wordsBehind(first string) []string {
	var words []string
	for _, v := range verbs() {
		if f := strings.Fields(v.name); len(f) == 2 && f[0] == first {
			words = append(words, f[1])
		}
	}
	return words
}

// groups are the first words of the commands that have two.
func groups() []string {
	var words []string
	for _, v := range verbs() {
		if f := strings.Fields(v.name); len(f) == 2 && !slices.Contains(words, f[0]) {
			words = append(words, f[0])
		}
	}
	return words
}

// usage lists the commands.
func usage() string {
	var b strings.Builder
	b.WriteString("sealroot tells how this machine was booted, and changes what it boots next.\n\n")
	listed(&b, func(v verb) bool { return !v.hidden })
	var without []string
	for _, v := range verbs() {
		if !v.hidden && v.output == plain {
			without = append(without, v.name)
		}
	}
	fmt.Fprintf(&b, "\nAll of these but %s know --json.\n\n%s", strings.Join(without, ", "), exitText)
	return b.String()
}

// listed writes a line for each of the commands that are wanted.
func listed(to io.Writer, wanted func(verb) bool) {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	for _, v := range verbs() {
		if wanted(v) {
			fmt.Fprintf(w, "  %s\t%s\n", strings.TrimSpace("sealroot "+v.name+" "+v.args), v.summary)
		}
	}
	w.Flush()
}

// find returns the command that the arguments begin with, and the arguments
// that are left.
func find(args []string) (verb, []string, error) {
	switch args[0] {
	case "-h", "--help":
		return find([]string{"help"})
	case "--version":
		return find([]string{"version"})
	}
	for _, v := range verbs() {
		words := strings.Fields(v.name)
		if len(args) >= len(words) && strings.Join(args[:len(words)], " ") == v.name {
			return v, args[len(words):], nil
		}
	}
	if behind := wordsBehind(args[0]); len(behind) > 0 {
		if len(args) == 2 && (args[1] == "-h" || args[1] == "--help") {
			return find([]string{"help", args[0]})
		}
		return verb{}, nil, fmt.Errorf("%w: sealroot %s knows %s", errUsage, args[0], strings.Join(behind, ", "))
	}
	return verb{}, nil, fmt.Errorf("%w: unknown command %q (sealroot help lists them)", errUsage, args[0])
}

// run runs one command.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, env Env) error {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage())
		return errSaid
	}
	v, rest, err := find(args)
	if err != nil {
		return err
	}
	c := newCommand(v, stdout, stderr, env)
	act := v.setup(c)
	words, err := c.parse(v, rest)
	if err == nil {
		err = act(ctx, words)
	} else if errors.Is(err, errSaid) || errors.Is(err, flag.ErrHelp) {
		return err
	}
	if c.json && v.output == results {
		err = errors.Join(err, c.printResult(v.name, err))
	}
	return err
}

func help(c *command) action {
	return func(_ context.Context, words []string) error {
		if len(words) == 0 {
			_, err := fmt.Fprint(c.stdout, usage())
			return err
		}
		if len(words) == 1 && len(wordsBehind(words[0])) > 0 {
			listed(c.stdout, func(v verb) bool { return strings.HasPrefix(v.name, words[0]+" ") })
			return nil
		}
		v, rest, err := find(words)
		if err != nil {
			return err
		}
		if len(rest) > 0 {
			return fmt.Errorf("%w: help takes the name of one command", errUsage)
		}
		of := newCommand(v, c.stdout, c.stdout, c.env)
		v.setup(of)
		fmt.Fprintf(c.stdout, "usage: %s\n%s\n", strings.TrimSpace("sealroot "+v.name+" "+v.args), v.summary)
		of.flags.PrintDefaults()
		return nil
	}
}

func showVersion(c *command) action {
	return func(context.Context, []string) error {
		_, err := fmt.Fprintf(c.stdout, "sealroot %s\n", c.env.Version)
		return err
	}
}
