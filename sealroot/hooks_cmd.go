package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/hooks"
	"sealroot/slots"
)

// hookTime is the flag of how long a hook may take.
func (c *command) hookTime() *time.Duration {
	return c.flags.Duration("hook-timeout", 2*time.Minute, "how long each hook of the image may take")
}

func (c *command) hookRunner(limit time.Duration) hooks.Runner {
	return hooks.Runner{
		Dir: c.env.Hooks, Limit: limit,
		Say: func(name, text string) {
			if !c.json {
				fmt.Fprintf(c.stdout, "%s: %s\n", name, text)
			}
		},
		Skip: func(path, why string) { c.say("%s is not run: %s", path, why) },
	}
}

// preCommit runs the image's hooks before its slot is committed, and not again when it
// is. It holds no lock: a hook may ask sealroot, and a trial may come to its end
// meanwhile. Errors: bootset.ErrRefused when a hook fails.
func (c *command) preCommit(ctx context.Context, limit time.Duration) error {
	r, err := c.booted()
	if err != nil {
		return err
	}
	committed, err := c.isCommitted(r)
	if err != nil || committed {
		return err
	}
	change := hooks.Change{Event: hooks.PreCommit, To: systemOf(r)}
	if last, err := hooks.Last(c.env.volume()); err != nil {
		c.say("%v", err)
	} else if last.System == change.To {
		change.From = last.From
	}
	err = c.hookRunner(limit).Until(ctx, change)
	if errors.Is(err, hooks.ErrFailed) {
		c.result.Slot = r.Slot.Name
		return fmt.Errorf("slot %s is not committed: %w: %w", r.Slot.Name, err, bootset.ErrRefused)
	}
	return err
}

func (c *command) isCommitted(r report.Report) (bool, error) {
	m, err := c.env.Open(Where{Report: r})
	if err != nil {
		return false, err
	}
	list, err := m.Slots()
	if err := errors.Join(err, m.Close()); err != nil {
		return false, fmt.Errorf("cannot read the slots: %w", err)
	}
	s, _ := slots.Find(list, r.Slot.Name)
	return s.Successful, nil
}

// systemOf is the system that a report is of.
func systemOf(r report.Report) hooks.System {
	return hooks.System{Slot: r.Slot.Name, RootHash: r.Root.RootHash, Version: r.Root.ImageVersion}
}

// postRollback notes which system runs and, when that came back after another one, has
// the image's hooks run before. A power cut meanwhile has them run again.
func postRollback(c *command) action {
	again := c.flags.Bool("again", false, "run the hooks of this system's first boot once more, when one failed")
	limit := c.hookTime()
	return func(ctx context.Context, _ []string) error {
		r, err := c.booted()
		if err != nil {
			return err
		}
		now := systemOf(r)
		if _, err := os.Stat(c.env.volume()); r.Degraded || now.RootHash == "" || errors.Is(err, fs.ErrNotExist) {
			c.say("this boot has no volume that remembers which system ran last")
			return nil
		}
		last, err := hooks.Last(c.env.volume())
		if errors.Is(err, hooks.ErrRecord) {
			c.say("%v", err)
		} else if err != nil {
			return err
		}
		from := last.System
		switch {
		case *again && last.System == now && len(last.Failed) > 0:
			from = last.From
		case last.System == now:
			c.say("slot %s ran last", now.Slot)
			return nil
		case !last.RolledBack(now, r.Slot.Trial):
			c.say("slot %s runs, and not after a rollback", now.Slot)
			return hooks.Ran{System: now, From: from}.Keep(c.env.volume())
		}
		c.result.Slot = now.Slot
		failed, err := c.hookRunner(*limit).All(ctx, hooks.Change{Event: hooks.PostRollback, From: from, To: now})
		if err != nil {
			return err
		}
		c.say("slot %s runs after a rollback from slot %s", now.Slot, from.Slot)
		if err := (hooks.Ran{System: now, From: from, Failed: failed}).Keep(c.env.volume()); err != nil {
			return err
		}
		if len(failed) > 0 {
			return fmt.Errorf("%w: post-rollback %w: %s", errBad, hooks.ErrFailed, strings.Join(failed, "; "))
		}
		return nil
	}
}
