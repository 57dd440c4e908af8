package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/checks"
	"sealroot/slots"
)

// checkTime is how long a health check may take by default.
const checkTime = time.Minute

// checked is what check tells a program beside the result.
type checked struct {
	Checks []string `json:"checks"` // in the order they are run
	Failed string   `json:"failed,omitempty"`
	Detail string   `json:"detail,omitempty"` // what happened to the one that failed
}

type checkFlags struct {
	commit, lower, stay *bool
	limit, hookTime     *time.Duration
	failed              *string
}

func check(c *command) action {
	f := checkFlags{
		commit:   c.flags.Bool("commit", false, "keep the slot when all checks are good"),
		lower:    c.flags.Bool("lower", false, "a failed check makes a committed slot the last choice"),
		stay:     c.flags.Bool("no-reboot", false, "do not restart when a slot on trial failed"),
		limit:    c.flags.Duration("timeout", checkTime, "how long each check may take"),
		hookTime: c.hookTime(preCommitTime),
		failed:   c.flags.String("failed", "", "run no check: the one of this name has failed"),
	}
	return func(ctx context.Context, _ []string) error {
		r, err := c.booted()
		if err != nil {
			return err
		}
		err = c.runChecks(ctx, f, r)
		var failure *checks.Failure
		if errors.As(err, &failure) {
			return c.failed(ctx, failure, f)
		}
		if err != nil || !*f.commit {
			return err
		}
		unlock, err := c.preCommit(ctx, *f.hookTime)
		if err != nil {
			return err
		}
		defer unlock()
		t, err := c.changing(ctx, diskFlags{new(string), new(string)})
		if err != nil {
			return err
		}
		defer t.close()
		return c.commit(ctx, t, false)
	}
}

// runChecks runs them without the lock: a check may ask sealroot.
func (c *command) runChecks(ctx context.Context, f checkFlags, booted report.Report) error {
	data := checked{Checks: []string{}}
	defer func() { c.result.Data = data }()
	if *f.failed != "" {
		data.Failed = line(*f.failed)
		return &checks.Failure{Name: data.Failed, Why: errReported}
	}
	all, skipped, err := checks.Find(c.env.Checks...)
	if err != nil {
		return err
	}
	for _, s := range skipped {
		c.say("%s is not run: %s", s.Path, s.Why)
	}
	for _, check := range all {
		data.Checks = append(data.Checks, check.Name)
	}
	r := checks.Runner{Limit: *f.limit, Say: func(name, text string) {
		if !c.json {
			fmt.Fprintf(c.stdout, "%s: %s\n", name, text)
		}
	}}
	if err = r.Run(ctx, all); err == nil {
		err = c.checkImage(ctx, booted, &data)
	}
	var failure *checks.Failure
	if errors.As(err, &failure) {
		data.Failed, data.Detail = failure.Name, line(failure.Detail())
	} else if err == nil {
		c.say("%s: all good", count(len(data.Checks), "check", "checks"))
	}
	return err
}

// checkImage reads the whole root, and the layers of its configuration, where PID 1 asks
// for it: on trial, with boot.eager_check. For layers that were added, or that a boot goes
// on without, the slot does not answer.
func (c *command) checkImage(ctx context.Context, booted report.Report, data *checked) error {
	text, err := os.ReadFile(c.env.Eager)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	data.Checks = append(data.Checks, checks.ImageName)
	read := int64(0)
	add := func(n int64) { read += n }
	if err := checks.Image(ctx, strings.TrimSpace(string(text)), add); err != nil {
		return err
	}
	with := ""
	for _, l := range booted.Layers {
		if l.RootHash == "" || l.LeftOut != "" || l.Source == report.LayerAdded {
			continue
		}
		err := c.checkLayer(ctx, l.Name, add)
		if err != nil {
			err = c.excuseLayer(ctx, l.Name, err)
		} else {
			with += ", with layer " + l.Name
		}
		if err != nil {
			return err
		}
	}
	c.say("%s: %d MiB read and compared with the hash tree%s", checks.ImageName, read>>20, with)
	return nil
}

// checkLayer reads the whole of a layer. Its error is a *checks.Failure for a block that
// cannot be had.
func (c *command) checkLayer(ctx context.Context, name string, add func(int64)) error {
	device, err := c.env.Layer(name)
	if err == nil {
		err = checks.Image(ctx, device, add)
	}
	var failure *checks.Failure
	if errors.As(err, &failure) {
		failure.Last += ", layer " + name
		return failure
	}
	if err != nil {
		return fmt.Errorf("layer %s: %w", name, err)
	}
	return nil
}

// excuseLayer is what an error of a layer is to the slot: none, and told, where a boot
// would go on without the layer. Without the configuration nobody knows that, and there is
// no verdict.
func (c *command) excuseLayer(ctx context.Context, name string, err error) error {
	if ctx.Err() != nil {
		return err
	}
	cfg, unknown := c.env.configuration()
	if unknown != nil {
		return fmt.Errorf("cannot tell whether layer %s counts (%v): %w", name, err, unknown)
	}
	if !slices.ContainsFunc(cfg.Layers, func(l config.Layer) bool { return l.Name == name && l.OnFailure == config.LayerSkip }) {
		return err
	}
	text := err.Error()
	var failure *checks.Failure
	if errors.As(err, &failure) {
		text = failure.Detail()
	}
	c.say("warning: %s; a boot goes on without it (on_failure: skip), and so does the check", text)
	return nil
}

// errReported: somebody else ran the check.
var errReported = errors.New("reported by another program")

// failed acts on a failed check: a slot on trial is left; a committed one is
// told of, and lowered only when that is asked for.
func (c *command) failed(ctx context.Context, failure *checks.Failure, f checkFlags) error {
	bad := fmt.Errorf("%w: %w", errBad, failure)
	t, err := c.changing(ctx, diskFlags{new(string), new(string)})
	if err != nil {
		return errors.Join(bad, err)
	}
	defer t.close()
	slot := t.boot.Running
	c.result.Slot = slot
	list, err := t.Store.Load()
	if err != nil {
		return errors.Join(bad, err)
	}
	l := bootset.Leave{Slot: slot, Reason: slots.HealthCheck, Detail: line(failure.Detail())}
	now, _ := slots.Find(list, slot)
	switch {
	case c.layersOnTrial(t.report):
		return errors.Join(bad, c.giveUpLayers(ctx, t, l.Failure(), !*f.stay))
	case !now.Successful:
		return errors.Join(bad, c.giveUp(ctx, t, list, l, !*f.stay))
	case *f.lower:
		return errors.Join(bad, c.leave(ctx, t, l, t.MarkBad, false))
	}
	c.say("slot %s is committed and stays (--lower would make it the last choice)", slot)
	return bad
}

// giveUp leaves a slot on trial and restarts. Without another slot to go to,
// the machine stays up: a restart could only come back here. The restart does
// not wait for the writes to succeed: the try is spent already.
func (c *command) giveUp(ctx context.Context, t target, list []slots.Slot, l bootset.Leave, reboot bool) error {
	if !bootset.Other(list, l.Slot) {
		c.say("%s: no other slot could be booted instead, the machine stays as it is", l.Failure())
		return nil
	}
	if reboot { // it does not start a kernel that stays loaded (restartCommand)
		t.BeforeChange = func() error {
			if err := c.unloadKernel(); err != nil {
				c.say("%v", err)
			}
			return nil
		}
	}
	err := c.leave(ctx, t, l, t.MarkBad, false)
	if reboot {
		err = errors.Join(err, c.reboot(ctx, t))
	}
	return err
}

// deadline ends a trial that was not committed in time. Commit and it take the
// same lock, and what counts is what the slots say then.
func deadline(c *command) action {
	return func(ctx context.Context, _ []string) error {
		r, err := c.booted()
		if err != nil {
			return err
		}
		if !present(c.env.Trial) && !present(c.env.LayersTrial) {
			c.say("slot %s is not on trial in this boot", r.Slot.Name)
			return nil
		}
		t, err := c.changing(ctx, diskFlags{new(string), new(string)})
		if err != nil {
			return err
		}
		defer t.close()
		list, err := t.Store.Load()
		if err != nil {
			return fmt.Errorf("cannot read the slots: %w", err)
		}
		c.result.Slot = r.Slot.Name
		c.after(list)
		l := bootset.Leave{Slot: r.Slot.Name, Reason: slots.NoCommit}
		if n := r.CommitDeadlineSeconds; n > 0 {
			l.Detail = fmt.Sprintf("within %s of the boot", time.Duration(n)*time.Second)
		}
		if why, err := os.ReadFile(c.env.Refused); err == nil {
			l.Detail = line(strings.TrimPrefix(l.Detail+": "+string(why), ": "))
		}
		if c.layersOnTrial(r) {
			return c.giveUpLayers(ctx, t, l.Failure(), true)
		}
		if now, ok := slots.Find(list, r.Slot.Name); ok && now.Successful {
			c.say("slot %s was committed in time", r.Slot.Name)
			return nil
		}
		return c.giveUp(ctx, t, list, l, true)
	}
}

func present(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
