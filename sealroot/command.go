package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/slots"
)

// maxSmall bounds what is read of boot.json and of what else PID 1 leaves, in bytes.
const maxSmall = 1 << 20

// command is one run of a command.
type command struct {
	env    Env
	stdout io.Writer
	stderr io.Writer
	flags  *flag.FlagSet
	json   bool // the output is for a program
	result result
}

// result is what a command that changes something tells a program: schema 1,
// docs/result.schema.json.
type result struct {
	Schema   int      `json:"schema"`
	Command  string   `json:"command"`
	OK       bool     `json:"ok"`
	Exit     int      `json:"exit_status"`
	Error    string   `json:"error,omitempty"`
	Messages []string `json:"messages"`
	// Slot is the one that the command was about.
	Slot string `json:"slot,omitempty"`
	// Slots are the values of the store afterwards; none when nothing was read.
	Slots []slotValues `json:"slots,omitempty"`
	// Data is what only this command tells.
	Data any `json:"data,omitempty"`
}

// given says whether a flag is on the command line.
func (c *command) given(name string) bool {
	found := false
	c.flags.Visit(func(f *flag.Flag) { found = found || f.Name == name })
	return found
}

type slotValues struct {
	Name       string `json:"name"`
	State      string `json:"state"`
	Priority   int    `json:"priority"`
	Tries      int    `json:"tries"`
	Successful bool   `json:"successful"`
}

func newCommand(v verb, stdout, stderr io.Writer, env Env) *command {
	c := &command{env: env, stdout: stdout, stderr: stderr, flags: flag.NewFlagSet("sealroot "+v.name, flag.ContinueOnError)}
	c.flags.SetOutput(stderr)
	if v.output != plain {
		c.flags.BoolVar(&c.json, "json", false, "for programs: schema 1")
	}
	return c
}

// parse reads flags before, between and after the words, and demands root.
func (c *command) parse(v verb, args []string) ([]string, error) {
	var words []string
	for {
		if len(args) > 0 && isLess(args[0]) {
			words, args = append(words, args[0]), args[1:]
			continue
		}
		if err := c.flags.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, fmt.Errorf("%w: %w", errSaid, err)
		}
		if args = c.flags.Args(); len(args) == 0 {
			break
		}
		words, args = append(words, args[0]), args[1:]
	}
	switch {
	case len(words) > v.most && v.most == 0:
		return nil, fmt.Errorf("%w: sealroot %s takes no argument", errUsage, v.name)
	case len(words) < v.least || len(words) > v.most:
		return nil, fmt.Errorf("%w: sealroot %s %s", errUsage, v.name, v.args)
	case c.env.UID != 0 && !v.anyone:
		return nil, errNotRoot
	}
	return words, nil
}

// isLess tells whether an argument is a size to take away, -1G: no flag begins so.
func isLess(arg string) bool { return len(arg) > 1 && arg[0] == '-' && arg[1] >= '0' && arg[1] <= '9' }

// say tells a person something, or keeps it for the result.
func (c *command) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.result.Messages = append(c.result.Messages, text)
	if !c.json {
		fmt.Fprintf(c.stdout, "sealroot: %s\n", text)
	}
}

// after keeps the slots as the command leaves them.
func (c *command) after(list []slots.Slot) {
	c.result.Slots = nil
	for _, s := range list {
		c.result.Slots = append(c.result.Slots, slotValues{s.Name, s.State().String(), s.Priority, s.Tries, s.Successful})
	}
}

func (c *command) printResult(name string, err error) error {
	r := c.result
	r.Schema, r.Command, r.OK, r.Exit = 1, name, err == nil, exitCode(err)
	if err != nil {
		r.Error = err.Error()
	}
	if r.Messages == nil {
		r.Messages = []string{}
	}
	return c.printJSON(r)
}

func (c *command) printJSON(v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot write JSON: %w", err)
	}
	_, err = c.stdout.Write(append(text, '\n'))
	return err
}

func (c *command) readReport() ([]byte, error) {
	text, err := readSmall(c.env.Report)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is missing: %w", c.env.Report, errNotBooted)
	}
	return text, err
}

// booted is what the commands that write go by; they need the report.
func (c *command) booted() (report.Report, error) {
	text, err := c.readReport()
	if err != nil {
		return report.Report{}, err
	}
	var r report.Report
	if err := json.Unmarshal(text, &r); err != nil {
		return report.Report{}, fmt.Errorf("cannot read %s: %w", c.env.Report, err)
	}
	if r.Schema != report.Schema {
		return report.Report{}, fmt.Errorf("cannot go by %s: it has schema %d, this program knows %d: %w",
			c.env.Report, r.Schema, report.Schema, bootset.ErrRefused)
	}
	return r, nil
}

// lockPoll is how often a lock that is taken is looked at again.
const lockPoll = 100 * time.Millisecond

// lock keeps other sealroot commands out while this one writes.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("cannot lock: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("cannot lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("cannot lock %s, another sealroot command runs: %w", path, ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
