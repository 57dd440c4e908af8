package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"unicode"

	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/slots"
)

// target is what a command that changes slots acts on.
type target struct {
	bootset.Machine
	machine Machine
	boot    bootset.Boot
	report  report.Report // of this machine's boot; zero with --disk
	close   func()
}

// diskFlags are the flags of commands that also work on a disk which no machine
// runs from now.
type diskFlags struct{ path, store *string }

func (c *command) diskFlags() diskFlags {
	return diskFlags{
		c.flags.String("disk", "", "work on this disk image or disk, which no machine runs from now"),
		c.flags.String("store", "", "with --disk: where its slots are kept (gpt, grubenv-darch, grubenv-rauc, bls)"),
	}
}

// offline says that a disk was named.
func (d diskFlags) offline() bool { return *d.path != "" }

// check refuses what makes no sense.
func (d diskFlags) check() error {
	if *d.store != "" && !d.offline() {
		return fmt.Errorf("%w: --store is for --disk; this machine's configuration says it", errUsage)
	}
	return nil
}

// changing opens the machine, or the disk, and keeps other commands out.
func (c *command) changing(ctx context.Context, d diskFlags) (target, error) {
	if err := d.check(); err != nil {
		return target{}, err
	}
	w := Where{Disk: *d.path, Store: *d.store, Write: true}
	if !d.offline() {
		r, err := c.booted()
		if err != nil {
			return target{}, err
		}
		w.Report = r
	}
	unlock, err := lock(ctx, c.env.Lock)
	if err != nil {
		return target{}, err
	}
	m, err := c.env.Open(w)
	if err != nil {
		unlock()
		return target{}, err
	}
	t := target{
		machine: m, report: w.Report,
		boot: bootset.Boot{
			Running: w.Report.Slot.Name, Loaded: c.loaded(m), Trial: w.Report.Slot.Trial, Degraded: w.Report.Degraded,
			Kexec: w.Report.BootPath == report.PathKexec,
		},
		close: func() {
			if err := m.Close(); err != nil {
				fmt.Fprintf(c.stderr, "sealroot: %v\n", err)
			}
			unlock()
		},
	}
	t.Machine, err = m.BootSet(func(place, slot string) { c.say("slot %s: %s starts it now", slot, place) })
	if err != nil {
		t.close()
		return target{}, err
	}
	if !d.offline() {
		t.BeforeChange = c.unloadKernel
	}
	return t, nil
}

// loaded is the slot whose kernel runs. What cannot be found out counts as none's,
// so that no kernel is taken for one that has started.
func (c *command) loaded(m Machine) string {
	slot, err := m.Loaded()
	if err != nil {
		c.say("cannot find out whose kernel runs: %v", err)
		return slots.UnknownKernel
	}
	return slot
}

// tell puts the slots as they are now into the result.
func (c *command) tell(t target) {
	if list, err := t.Store.Load(); err == nil {
		c.after(list)
	}
}

// named is the slot that was named, else the one that runs. With --disk nothing
// runs, and one has to be named, or next takes its place.
func (t target) named(words []string, next bool) (string, error) {
	switch {
	case len(words) > 0:
		return words[0], nil
	case t.boot.Running != "":
		return t.boot.Running, nil
	case !next:
		return "", fmt.Errorf("%w: with --disk a slot has to be named", errUsage)
	}
	list, err := t.Store.Load()
	if err != nil {
		return "", err
	}
	d, err := slots.Decide(slots.Observed{Slots: list, LogReadable: true})
	return d.Slot, err
}

func commit(c *command) action {
	d := c.diskFlags()
	limit := c.hookTime(preCommitTime)
	burn := c.flags.Bool("burn", false, "raise the rollback floor although another slot will not boot any more then")
	return func(ctx context.Context, words []string) error {
		if *burn && d.offline() {
			return fmt.Errorf("%w: --burn is for this machine, not for --disk", errUsage)
		}
		if len(words) > 0 && !d.offline() {
			return fmt.Errorf("%w: only the slot that runs can be committed; a slot is named with --disk", errUsage)
		}
		if !d.offline() {
			unlock, err := c.preCommit(ctx, *limit)
			if err != nil {
				return err
			}
			defer unlock()
		}
		t, err := c.changing(ctx, d)
		if err != nil {
			return err
		}
		defer t.close()
		if t.boot.Running, err = t.named(words, false); err != nil {
			return err
		}
		if d.offline() {
			t.boot.Loaded = t.boot.Running
			if err := t.HoldsImage(t.boot.Running); err != nil {
				return fmt.Errorf("cannot commit slot %s: %w", t.boot.Running, err)
			}
		}
		return c.commit(ctx, t, *burn)
	}
}

// commit keeps the slot that runs, and then raises the rollback floor.
func (c *command) commit(ctx context.Context, t target, burn bool) error {
	ours := t.report.Slot.Name != "" // not with --disk
	var layersErr error
	if ours {
		if err := c.layersGivenUp(); err != nil {
			return err
		}
		list, err := t.Store.Load()
		if err != nil {
			return fmt.Errorf("cannot read the slots: %w", err)
		}
		now, _ := slots.Find(list, t.boot.Running)
		// A slot that is committed may run so, as one whose layer is damaged does.
		t.boot.EtcInMemory = t.report.EtcInMemory && (!now.Successful || c.layersOnTrial(t.report))
		if !markedBad(t.report, now) && !t.boot.EtcInMemory { // else keep refuses
			if err := c.unloadKernel(); err != nil {
				return err
			}
			// at first: a power cut costs another boot of a slot on trial, and no layers
			layersErr = c.layersCommitted(t.report)
		}
	}
	if err := c.keep(t); err != nil {
		if t.boot.EtcInMemory {
			c.keepRefusal(errInMemory)
		}
		return errors.Join(err, layersErr)
	}
	if ours {
		c.etcCommitted(t.report) // a power cut before it is made good by the next boot's record
		c.dropUppers(t.report, t.report.Slot.Name, t.report.Root.RootHash)
	}
	if t.report.Schema != 0 { // else it is another machine's disk
		c.dropUnused(ctx, t)
		c.dropLayers(t)
	}
	list, err := t.Store.Load()
	if err != nil {
		return errors.Join(fmt.Errorf("cannot read the slots: %w", err), layersErr)
	}
	return errors.Join(c.raiseFloor(t.machine, t.report, list, report.RootCertificates, burn), layersErr)
}

var errInMemory = errors.New("changes of /etc were in memory")

func (c *command) keep(t target) error {
	slot := t.boot.Running
	c.result.Slot = slot
	was, err := t.Commit(t.boot)
	c.tell(t)
	if errors.Is(err, slots.ErrStore) || errors.Is(err, bootset.ErrRefused) {
		return err
	}
	if err != nil {
		return fmt.Errorf("slot %s is not completely committed, try again: %w", slot, err)
	}
	if was {
		c.say("slot %s: is committed", slot)
		return nil
	}
	c.say("slot %s: committed", slot)
	if t.Loader != nil && !t.Unarmed && t.boot.Loaded != "" && t.boot.Loaded != slot {
		c.say("slot %s: runs on another kernel than its own; the next boot loads its own", slot)
	}
	return nil
}

func try(c *command) action {
	d := c.diskFlags()
	n := c.flags.Int("tries", 0, "how often it is booted without a commit, 1 to 15 (boot.tries of the configuration)")
	return func(ctx context.Context, words []string) error {
		t, err := c.changing(ctx, d)
		if err != nil {
			return err
		}
		defer t.close()
		slot := words[0]
		c.result.Slot = slot
		if !given(c.flags, "tries") {
			*n = t.Tries
		}
		err = t.Try(t.boot, slot, *n)
		c.tell(t)
		if err != nil {
			return err
		}
		back := "the other slot"
		if t.boot.Running != "" {
			back = "slot " + t.boot.Running
		}
		c.say("slot %s: on trial from the next boot on, %s; without a commit %s comes back", slot, count(*n, "try", "tries"), back)
		if t.Loader == nil || t.Unarmed && !d.offline() {
			c.say("no boot loader started this machine: slot %s is tried on the kernel that is started anyway", slot)
		}
		return nil
	}
}

// given says that a flag stands on the command line.
func given(flags *flag.FlagSet, name string) (found bool) {
	flags.Visit(func(f *flag.Flag) { found = found || f.Name == name })
	return found
}

func markBad(c *command) action {
	d := c.diskFlags()
	reason := c.flags.String("reason", "", "why, one line for status")
	check := c.flags.String("check", "", "the health check of this name failed")
	force := c.flags.Bool("force", false, "also when no other slot could be booted")
	reboot := c.flags.Bool("reboot", false, "restart the machine then")
	return func(ctx context.Context, words []string) error {
		if *reboot && d.offline() {
			return fmt.Errorf("%w: --reboot is for this machine, not for --disk", errUsage)
		}
		l := bootset.Leave{Reason: slots.Manual, Detail: line(*reason), Force: *force}
		if *check != "" {
			l.Reason, l.Detail = slots.HealthCheck, line(strings.TrimSuffix(*check+": "+*reason, ": "))
		}
		t, err := c.changing(ctx, d)
		if err != nil {
			return err
		}
		defer t.close()
		if l.Slot, err = t.named(words, false); err != nil {
			return err
		}
		return c.leave(ctx, t, l, t.MarkBad, *reboot)
	}
}

func rollback(c *command) action {
	d := c.diskFlags()
	reboot := c.flags.Bool("reboot", false, "restart the machine then")
	return func(ctx context.Context, _ []string) error {
		if *reboot && d.offline() {
			return fmt.Errorf("%w: --reboot is for this machine, not for --disk", errUsage)
		}
		t, err := c.changing(ctx, d)
		if err != nil {
			return err
		}
		defer t.close()
		l := bootset.Leave{Reason: slots.Manual, Detail: "rolled back"}
		if l.Slot, err = t.named(nil, true); err != nil {
			return err
		}
		return c.leave(ctx, t, l, t.Rollback, *reboot)
	}
}

// leave leaves a slot, says what came of it, and restarts when that is asked for.
func (c *command) leave(ctx context.Context, t target, l bootset.Leave, do func(bootset.Boot, bootset.Leave) (bootset.Left, error), reboot bool) error {
	c.result.Slot = l.Slot
	left, err := do(t.boot, l)
	if left.Slots != nil {
		c.after(left.Slots)
		s, _ := slots.Find(left.Slots, l.Slot)
		what := "not bootable any more"
		if s.Successful {
			what = "last choice now"
		}
		c.say("%s: %s; the next boot is for slot %s", l.Failure(), what, left.Next)
	}
	if err != nil {
		return err
	}
	if reboot {
		return c.reboot(ctx, t)
	}
	return nil
}

func (c *command) reboot(ctx context.Context, t target) error {
	c.keepBeforeRestart(t.machine)
	c.say("restarting")
	return c.env.Reboot(ctx)
}

// line makes one line of a text that goes on record, without the control
// characters of either set.
func line(text string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text))
}

// count is a number with its noun.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
