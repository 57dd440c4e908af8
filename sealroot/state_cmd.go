package main

import (
	"context"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/sealroot/recovery"
	"sealroot/sealroot/volume"
)

func stateStatus(c *command) action {
	return func(ctx context.Context, _ []string) error {
		r, err := c.booted()
		if err != nil {
			return err
		}
		cfg, err := c.env.configuration()
		if err != nil {
			fmt.Fprintf(c.stderr, "sealroot: %v\n", err)
		}
		f := volume.Facts{
			Report:     r,
			KeyWaits:   kept(c.env.Key) || kept(recovery.Pending(c.env.Key)),
			Escrow:     kept(c.env.escrow()),
			ManageFile: kept(c.env.manageKey()) || kept(recovery.Pending(c.env.manageKey())),
			People: slices.ContainsFunc(cfg.State.Unlock, func(how string) bool {
				return how == config.UnlockRecoveryKey || how == config.UnlockPassphrase
			}) && (slices.Contains(cfg.State.OnFailure, config.FailurePrompt) || !slices.Contains(cfg.State.Unlock, config.UnlockTPM2)),
		}
		f.KeyFile = slices.Contains(cfg.State.Unlock, config.UnlockKeyFile)
		var fs unix.Statfs_t
		f.MountErr = unix.Statfs(c.env.volume(), &fs)
		f.ReadOnlyMount = f.MountErr == nil && fs.Flags&unix.ST_RDONLY != 0
		im, err := volume.Open(ctx, c.env.State, false)
		if err != nil {
			f.Err = err
		} else {
			f.Image = im
			// What was read is all that is needed: nobody is kept waiting for the TPM.
			if err := im.Close(); err != nil {
				return err
			}
		}
		look, done := c.lookAtTPM(ctx, r, cfg)
		defer done()
		d := look.Describe(ctx, f)
		if d.Space, err = c.space(cfg.State); err != nil {
			d.Problems = append(d.Problems, err.Error())
		}
		if c.json {
			return c.printJSON(d)
		}
		if err := d.Write(c.stdout); err != nil || d.Space == nil {
			return err
		}
		width, ascii := columns(os.Getenv)
		return d.Space.Write(c.stdout, width, ascii)
	}
}
