package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/durable"
	"sealroot/sealroot/secret"
	"sealroot/state/reset"
)

const keptLoss = "all in the encrypted state but /home is removed at the next boot: /etc as it was changed, /var and the rest. Its keys stay: whoever has one can still read what was removed, until it is overwritten"

const resetLoss = "all of the encrypted state is destroyed at the next boot: /etc as it was changed, /var, /home, its keyslots and recovery key"

func resetState(c *command) action {
	yes := c.flags.Bool("yes", false, "do not ask")
	cancel := c.flags.Bool("cancel", false, "take a request back that no boot has obeyed yet")
	keepHome := c.flags.Bool("keep-home", false, "keep /home, and with it the volume's keys: nothing is destroyed for good")
	return func(ctx context.Context, _ []string) error {
		if *cancel && (*yes || *keepHome) {
			return fmt.Errorf("%w: --cancel asks nothing", errUsage)
		}
		r, err := c.booted()
		if err != nil {
			return err
		}
		cfg, err := c.env.configuration()
		if err != nil {
			return err
		}
		path := filepath.Join(c.env.volume(), reset.File)
		if *cancel {
			return c.cancelReset(ctx, path, r)
		}
		// A /home beside the volume outlasts its destruction.
		keepVolume := *keepHome && !homeIsBeside(r)
		if err := resettable(r, cfg, keepVolume); err != nil {
			return fmt.Errorf("cannot reset the state: %w: %w", err, bootset.ErrRefused)
		}
		unlock, err := lock(ctx, c.env.Lock)
		if err != nil {
			return err
		}
		defer unlock()
		if !*yes {
			if err := c.confirmReset(ctx, keepVolume); err != nil {
				return err
			}
		}
		if err := durable.WriteFile(path, reset.Format(r.State.UUID, keepVolume)); err != nil {
			return fmt.Errorf("cannot ask for a factory reset: %w", err)
		}
		c.result.Data = map[string]any{"volume": r.State.UUID, "keeps_volume": keepVolume}
		c.say("%s; sealroot state reset --cancel takes that back until then", lossOf(keepVolume))
		return nil
	}
}

func lossOf(keepVolume bool) string {
	if keepVolume {
		return keptLoss
	}
	return resetLoss
}

// homeIsBeside tells whether /home of this boot, and all that is bound below it, lies on
// the unencrypted side.
func homeIsBeside(r report.Report) bool {
	beside := false
	for _, m := range r.Mounts {
		inside := strings.HasPrefix(m.What, "/state/encrypted/")
		switch {
		case m.Where == "/home": // the last one covers those before
			beside = !inside
		case inside && strings.HasPrefix(m.Where, "/home/"):
			beside = false
		}
	}
	return beside
}

// resettable says why there is no reset on this machine.
func resettable(r report.Report, cfg config.Config, keepVolume bool) error {
	switch {
	case r.Degraded:
		return errors.New("this boot is degraded, the encrypted volume is not open")
	case r.State.UUID == "":
		return errors.New("this boot has no encrypted volume")
	case cfg.State.Reset == config.ResetNever:
		return errors.New("state.reset of this image is never")
	case cfg.State.Create != config.CreateFirstBoot && !keepVolume:
		return fmt.Errorf("state.create of this image is %s, so that no new volume would be made", cfg.State.Create)
	}
	return nil
}

// cancelReset takes the request back, on any machine: also where a degraded boot has
// opened the volume meanwhile.
func (c *command) cancelReset(ctx context.Context, path string, r report.Report) error {
	unlock, err := lock(ctx, c.env.Lock)
	if err != nil {
		return err
	}
	defer unlock()
	err = durable.Remove(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && r.Degraded:
		return fmt.Errorf("no factory reset was asked for in what is at %s now; this boot is degraded, sealroot state unlock opens the volume: %w", c.env.volume(), bootset.ErrRefused)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no factory reset was asked for: %w", bootset.ErrRefused)
	}
	if err == nil {
		c.say("the state stays")
	}
	return err
}

func (c *command) confirmReset(ctx context.Context, keepVolume bool) error {
	tty, err := c.env.TTY()
	if err != nil {
		return fmt.Errorf("%w; --yes does without: %w", secret.ErrTerminal, err)
	}
	defer tty.Close()
	fmt.Fprintf(tty, "sealroot: %s\n", lossOf(keepVolume))
	answer, err := secret.Ask(ctx, tty, "Type yes to destroy it (it is not shown): ")
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(answer)) != "yes" {
		return fmt.Errorf("nothing was changed: %w", bootset.ErrRefused)
	}
	return nil
}
