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
	"sealroot/sealroot/recovery"
	"sealroot/sealroot/status"
	"sealroot/slots"
)

// maxReport bounds boot.json.
const maxReport = 1 << 20

type command struct {
	env    Env
	stdout io.Writer
	flags  *flag.FlagSet
}

// parse reads flags before and after the n arguments, and demands root.
func (c command) parse(args []string, n int) ([]string, error) {
	var words []string
	for {
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
	case len(words) != n && n == 0:
		return nil, fmt.Errorf("%w: %s takes no argument", errUsage, c.flags.Name())
	case len(words) != n:
		return nil, fmt.Errorf("%w: %s takes the name of one slot", errUsage, c.flags.Name())
	case c.env.UID != 0:
		return nil, errNotRoot
	}
	return words, nil
}

// say prints a line for a person.
func (c command) say(format string, args ...any) {
	fmt.Fprintf(c.stdout, "sealroot: "+format+"\n", args...)
}

func (c command) readReport() ([]byte, error) {
	f, err := os.Open(c.env.Report)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is missing: %w", c.env.Report, errNotBooted)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxReport))
}

// booted is what the commands that write go by; they need the report.
func (c command) booted() (report.Report, error) {
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

func (c command) status(args []string) error {
	asJSON := c.flags.Bool("json", false, "for programs: schema 1, with boot.json inside")
	if _, err := c.parse(args, 0); err != nil {
		return err
	}
	var in status.Input
	in.Report, in.ReportErr = c.readReport()
	var r report.Report
	if in.ReportErr == nil {
		// a report that cannot be read is told of by status.New
		if json.Unmarshal(in.Report, &r) != nil {
			r = report.Report{}
		}
	}
	if m, err := c.env.Open(r); err != nil {
		in.SlotsErr, in.LogErr = err, err
	} else {
		in.Slots, in.SlotsErr = m.Slots()
		in.Log, in.LogErr = m.Record()
	}
	in.KeyKept, in.KeyErr = recovery.Waiting(c.env.Key)
	s := status.New(in)
	if *asJSON {
		text, err := s.JSON()
		if err != nil {
			return err
		}
		if _, err := c.stdout.Write(text); err != nil {
			return err
		}
	} else if _, err := io.WriteString(c.stdout, s.Text()); err != nil {
		return err
	}
	if !s.Booted() && errors.Is(in.ReportErr, errNotBooted) {
		return errNotBooted
	}
	return nil
}

// changing opens the machine for a command that writes, and keeps others out.
func (c command) changing(ctx context.Context) (bootset.Machine, bootset.Boot, func(), error) {
	r, err := c.booted()
	if err != nil {
		return bootset.Machine{}, bootset.Boot{}, nil, err
	}
	unlock, err := lock(ctx, c.env.Lock)
	if err != nil {
		return bootset.Machine{}, bootset.Boot{}, nil, err
	}
	m, err := c.env.Open(r)
	var b bootset.Machine
	if err == nil {
		b, err = m.BootSet(func(place, slot string) { c.say("slot %s: %s starts it now", slot, place) })
	}
	if err != nil {
		unlock()
		return bootset.Machine{}, bootset.Boot{}, nil, err
	}
	return b, bootset.Boot{Running: r.Slot.Name, Loaded: r.Slot.Loaded, Degraded: r.Degraded}, unlock, nil
}

func (c command) commit(ctx context.Context, args []string) error {
	if _, err := c.parse(args, 0); err != nil {
		return err
	}
	m, boot, unlock, err := c.changing(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	was, err := m.Commit(boot)
	if errors.Is(err, slots.ErrStore) || errors.Is(err, bootset.ErrRefused) {
		return err
	}
	if err != nil {
		return fmt.Errorf("slot %s is not completely committed, try again: %w", boot.Running, err)
	}
	if was {
		c.say("slot %s: is committed", boot.Running)
		return nil
	}
	c.say("slot %s: committed", boot.Running)
	if m.Loader != nil && boot.Loaded != "" && boot.Loaded != boot.Running {
		c.say("slot %s: runs on the kernel of slot %s, which stays the boot loader's default", boot.Running, boot.Loaded)
	}
	return nil
}

func (c command) try(ctx context.Context, args []string) error {
	n := c.flags.Int("tries", slots.DefaultTries, "how often it is booted without a commit, 1 to 15")
	words, err := c.parse(args, 1)
	if err != nil {
		return err
	}
	m, boot, unlock, err := c.changing(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.Try(boot, words[0], *n); err != nil {
		return err
	}
	tries := "1 try"
	if *n > 1 {
		tries = fmt.Sprintf("%d tries", *n)
	}
	c.say("slot %s: on trial from the next boot on, %s; without a commit slot %s comes back", words[0], tries, boot.Running)
	if m.Loader == nil {
		c.say("no boot loader started this machine: slot %s is tried on the kernel that is started anyway", words[0])
	}
	return nil
}

func (c command) recoveryKey(ctx context.Context, args []string) error {
	show := c.flags.Bool("show", false, "print the key although standard output is no terminal")
	yes := c.flags.Bool("yes", false, "delete the key here after showing it, without asking")
	if _, err := c.parse(args, 0); err != nil {
		return err
	}
	unlock, err := lock(ctx, c.env.Lock)
	if err != nil {
		return err
	}
	defer unlock()
	err = recovery.Run(ctx, recovery.Ask{
		Path: c.env.Key, In: c.env.Stdin, Out: c.stdout, Terminal: c.env.Terminal, Show: *show, Yes: *yes,
	})
	if errors.Is(err, recovery.ErrNone) {
		return c.explainNone(err)
	}
	return err
}

// explainNone says why there is no key to show.
func (c command) explainNone(none error) error {
	r, err := c.booted()
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", none, err)
	case r.State.Recovery == string(status.RecoveryNone):
		return fmt.Errorf("%w: none was ever enrolled", none)
	case r.Degraded:
		return fmt.Errorf("%w: this boot is degraded, the encrypted state is not open", none)
	}
	return fmt.Errorf("%w: it was shown already, at the first boot or by this command", none)
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
