package main

import (
	"context"
	"errors"
	"fmt"

	"sealroot/sealroot/recovery"
	statuspkg "sealroot/sealroot/status"
)

func recoveryKey(c *command) action {
	show := c.flags.Bool("show", false, "print the key although standard output is no terminal")
	yes := c.flags.Bool("yes", false, "delete the key here after showing it, without asking")
	fresh := c.flags.Bool("new", false, "enrol a new recovery key in place of the old one first")
	a := authorityOptions(c, "passphrase-file")
	return func(ctx context.Context, _ []string) error {
		if !*fresh && (*a.recovery != "" || *a.passphrase != "") {
			return fmt.Errorf("%w: only --new needs a key", errUsage)
		}
		if *fresh {
			if err := c.newRecoveryKey(ctx, a); err != nil {
				return err
			}
			if !c.env.Terminal && !*show {
				fmt.Fprintln(c.stderr, "sealroot: it is kept in the volume until sealroot state recovery-key has shown it")
				return nil
			}
		}
		return c.recoveryKey(ctx, *show, *yes)
	}
}

func (c *command) recoveryKey(ctx context.Context, show, yes bool) error {
	unlock, err := lock(ctx, c.env.Lock)
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.settleRecoveryKey(ctx); err != nil {
		return err
	}
	err = recovery.Run(ctx, recovery.Ask{
		Path: c.env.Key, In: c.env.Stdin, Out: c.stdout, Terminal: c.env.Terminal, Show: show, Yes: yes,
	})
	if errors.Is(err, recovery.ErrNone) {
		return c.explainNone(err)
	}
	return err
}

// explainNone says why there is no key to show.
func (c *command) explainNone(none error) error {
	r, err := c.booted()
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", none, err)
	case r.State.Recovery == string(statuspkg.RecoveryNone):
		return fmt.Errorf("%w: none was ever enrolled", none)
	case r.Degraded:
		return fmt.Errorf("%w: this boot is degraded, the encrypted state is not open", none)
	}
	return fmt.Errorf("%w: it was shown already, at the first boot or by this command", none)
}
