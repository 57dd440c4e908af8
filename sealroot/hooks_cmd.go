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

// How long a hook may take: before a commit somebody waits for it; after a rollback it may
// put back data, which ended half way is worse than slow, whoever has it run.
const (
	preCommitTime    = 2 * time.Minute
	postRollbackTime = 30 * time.Minute
)

// hookTime is the flag of how long a hook may take.
func (c *command) hookTime(usual time.Duration) *time.Duration {
	return c.flags.Duration("hook-timeout", usual, "how long each hook of the image may take")
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

// oneAtATime keeps other hooks out while some run, by a lock of its own: a hook may ask
// sealroot, and a trial may come to its end meanwhile. Errors: bootset.ErrRefused for
// what a hook asks for.
func (c *command) oneAtATime(ctx context.Context) (unlock func(), err error) {
	if hook := os.Getenv("SEALROOT_HOOK"); hook != "" {
		return nil, fmt.Errorf("hook %s cannot have hooks run: %w", line(hook), bootset.ErrRefused)
	}
	return lock(ctx, c.env.Lock+".hooks")
}

// preCommit runs the image's hooks before its slot is committed, and not where it is, or
// cannot be: the commit says why. Other hooks are kept out until unlock, which comes after
// the commit: else they would run for a slot that is committed meanwhile. Errors:
// bootset.ErrRefused when a hook fails.
func (c *command) preCommit(ctx context.Context, limit time.Duration) (unlock func(), err error) {
	r, err := c.booted()
	if err != nil {
		return nil, err
	}
	if unlock, err = c.oneAtATime(ctx); err != nil {
		return nil, err
	}
	if err := c.runPreCommit(ctx, r, limit); err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

func (c *command) runPreCommit(ctx context.Context, r report.Report, limit time.Duration) error {
	due, err := c.commitDue(r)
	if err != nil || !due {
		return err
	}
	last, err := hooks.Last(c.env.volume())
	if err != nil {
		c.say("%v", err)
		err = nil
	}
	change := hooks.Change{Event: hooks.PreCommit, From: last.System, To: systemOf(r)}
	if last.System == change.To {
		change.From = last.From
	}
	// At first: what hooks have changed for a system that is not noted, post-rollback hooks
	// would not take back.
	if last.System != change.To && c.remembers(r) {
		err = c.noteCommitted(change)
	}
	if err == nil {
		err = c.hookRunner(limit).Until(ctx, change)
	}
	if errors.Is(err, hooks.ErrFailed) || errors.Is(err, errUnnoted) {
		c.result.Slot = r.Slot.Name
		c.keepRefusal(err)
		return fmt.Errorf("slot %s is not committed: %w: %w", r.Slot.Name, err, bootset.ErrRefused)
	}
	return err
}

var errUnnoted = errors.New("the next boot would pass for a rollback")

// noteCommitted notes a system that sealroot-post-rollback.service has not. An image
// without hooks is committed also when that cannot be.
func (c *command) noteCommitted(change hooks.Change) error {
	err := hooks.Ran{System: change.To, From: change.From}.Keep(c.env.volume())
	if err == nil {
		return nil
	}
	if _, none := os.Stat(c.env.Hooks); errors.Is(none, fs.ErrNotExist) {
		c.say("%v", err)
		return nil
	}
	return fmt.Errorf("%w: %w", errUnnoted, err)
}

// keepRefusal keeps why there was no commit, for the time limit of the trial.
func (c *command) keepRefusal(why error) {
	if err := os.WriteFile(c.env.Refused, []byte(line(why.Error())), 0o600); err != nil {
		c.say("nobody will know why there was no commit: %v", err)
	}
}

// remembers says that a boot has a volume which tells what ran before.
func (c *command) remembers(r report.Report) bool {
	_, err := os.Stat(c.env.volume())
	return !r.Degraded && r.Root.RootHash != "" && !errors.Is(err, fs.ErrNotExist)
}

// commitDue tells whether the slot that runs is to be committed, and can be.
func (c *command) commitDue(r report.Report) (bool, error) {
	if r.Degraded || r.EtcInMemory || c.layersGivenUp() != nil {
		return false, nil
	}
	m, err := c.env.Open(Where{Report: r})
	if err != nil {
		return false, err
	}
	list, err := m.Slots()
	if err := errors.Join(err, m.Close()); err != nil {
		return false, fmt.Errorf("cannot read the slots: %w", err)
	}
	s, ok := slots.Find(list, r.Slot.Name)
	return ok && !s.Successful && !markedBad(r, s), nil
}

// markedBad tells whether the slot that runs was marked bad in this boot.
func markedBad(r report.Report, running slots.Slot) bool {
	return r.Slot.Trial && running.State() == slots.Unbootable
}

// systemOf is the system that a report is of.
func systemOf(r report.Report) hooks.System {
	return hooks.System{Slot: r.Slot.Name, RootHash: r.Root.RootHash, Version: hooks.PlainVersion(r.Root.ImageVersion)}
}

// postRollback notes which system runs and, when that came back after another one, has
// the image's hooks run before. A power cut meanwhile has them run again.
func postRollback(c *command) action {
	again := c.flags.Bool("again", false, "run the hooks of this system's first boot once more, when one failed")
	limit := c.hookTime(postRollbackTime)
	return func(ctx context.Context, _ []string) error {
		r, err := c.booted()
		if err != nil {
			return err
		}
		unlock, err := c.oneAtATime(ctx)
		if err != nil {
			return err
		}
		defer unlock()
		now := systemOf(r)
		if !c.remembers(r) {
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
		// Hooks that ran twice would put back an old copy over what was written since.
		ran := hooks.Ran{System: now, From: from}
		if err := ran.Prepare(c.env.volume()); err != nil {
			return fmt.Errorf("no hook is run: %w", err)
		}
		failed, err := c.hookRunner(*limit).All(ctx, hooks.Change{Event: hooks.PostRollback, From: from, To: now})
		if err != nil {
			return err
		}
		// crash point: hooks that have run, and run again
		c.say("slot %s runs after a rollback from slot %s", now.Slot, from.Slot)
		if len(failed) > 0 {
			ran.Failed = failed
			err = ran.Keep(c.env.volume())
		}
		if len(failed) == 0 || err != nil {
			err = errors.Join(err, hooks.Settle(c.env.volume()))
		}
		if err != nil {
			return err
		}
		if len(failed) > 0 {
			return fmt.Errorf("%w: post-rollback %w: %s", errBad, hooks.ErrFailed, strings.Join(failed, "; "))
		}
		return nil
	}
}
