package main

import (
	"context"
	"errors"
	"fmt"

	"sealroot/sealroot/bootset"
	"sealroot/sealroot/install"
	"sealroot/slots"
	"sealroot/state/tpm/predict"
)

func prepareUpdate(c *command) action {
	o := longOptions(c)
	a := authorityOptions(c, "passphrase-file")
	pinFile := pinOption(c)
	slot := c.flags.String("slot", "", "slot that the image goes into (default: as install chooses); without an image: the one whose signed manifest counts")
	force := c.flags.Bool("force", false, "take another image that has the version which runs")
	return func(ctx context.Context, words []string) error {
		if len(words) > 0 && words[0] == "-" && (*a.recovery == "-" || *a.passphrase == "-" || *pinFile == "-") {
			return fmt.Errorf("%w: standard input is the image, the key comes from a file", errUsage)
		}
		cfg, err := c.env.configuration()
		if err != nil {
			return err
		}
		j, err := c.begin(ctx, o)
		if err != nil {
			return err
		}
		release := j.close
		defer func() { release() }()
		p, version, err := c.planUpdate(ctx, j, words, install.Options{Slot: *slot, Tries: j.opened.Tries(), Force: *force}, *o.trust)
		if err != nil || p == nil {
			return err
		}
		defer p.done()
		done := prepared{Slot: p.slot, Version: version, Already: p.ready >= 0, Token: p.ready}
		c.result.Slot = p.slot
		if done.Already {
			c.result.Data = done
			c.say("slot %s: token %d opens the state for that image already", p.slot, p.ready)
			return nil
		}
		// Nobody is kept out while a person is asked.
		release()
		release = func() {}
		key, err := c.allow(ctx, a, p.header)
		if err != nil {
			return err
		}
		defer clear(key)
		with := change(key)
		if with.PIN, err = c.newPIN(ctx, *pinFile, cfg); err != nil {
			return err
		}
		defer clear(with.PIN)
		unlock, err := lock(ctx, c.env.Lock)
		if err != nil {
			return err
		}
		release = unlock
		e, err := c.enrolNext(ctx, p, with)
		if err != nil {
			return err
		}
		done.Token, done.Enrolled = e.Token, &e
		c.result.Data = done
		return nil
	}
}

// planUpdate decides for a set, or without one for what a slot has. The preparation is
// nil where nothing has to be done, which a person is told. Errors: bootset.ErrRefused.
func (c *command) planUpdate(ctx context.Context, j *job, words []string, o install.Options, trust string) (p *preparation, version string, err error) {
	if j.report.Degraded || j.report.State.UUID == "" {
		return nil, "", fmt.Errorf("cannot prepare an update: this boot has no encrypted volume open: %w", bootset.ErrRefused)
	}
	if len(words) == 0 {
		p, err = c.planSlot(ctx, j, o.Slot, trust)
		return p, "", err
	}
	source, err := install.OpenSource(words[0], interruptible(ctx, c.env.Stdin))
	if err != nil {
		return nil, "", err
	}
	defer source.Close()
	slot, set, err := j.machine.Inspect(source, j.running, o)
	if err != nil {
		return nil, "", fmt.Errorf("cannot prepare an update: %w", err)
	}
	switch err := c.stateOpens(ctx, j.report, set); {
	case err == nil:
		c.result.Slot = slot
		c.say("version %s needs no preparation: what opens the state now opens it then", set.Version)
		return nil, "", nil
	case !errors.Is(err, errPerImage):
		return nil, "", err
	}
	files, err := c.foreseeable(j.report, set)
	if err == nil {
		p, err = c.prepare(ctx, j.opened, j.report, slot, files)
	}
	return p, set.Version, refusedUpdate(err)
}

// planSlot decides for what a slot has: the one named, else the only other one.
func (c *command) planSlot(ctx context.Context, j *job, slot, trust string) (*preparation, error) {
	list, err := j.machine.Store.Load()
	if err != nil {
		return nil, fmt.Errorf("cannot read the slots: %w", err)
	}
	for _, s := range list {
		if slot == "" && len(list) == 2 && s.Name != j.report.Slot.Name {
			slot = s.Name
		}
	}
	if _, ok := slots.Find(list, slot); !ok {
		return nil, fmt.Errorf("%w: name an image, or with --slot one of the slots", errUsage)
	}
	var files predict.BootFiles
	if files, err = signedFiles(j.opened, slot, trust); err != nil {
		return nil, refusedUpdate(err)
	}
	p, err := c.prepare(ctx, j.opened, j.report, slot, files)
	return p, refusedUpdate(err)
}

// refusedUpdate says what a reason was for.
func refusedUpdate(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("cannot prepare an update: %w: %w", err, bootset.ErrRefused)
}
