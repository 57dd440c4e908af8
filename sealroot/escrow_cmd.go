package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"

	"sealroot/sealroot/recovery"
)

func escrowedKey(c *command) action {
	der := c.flags.Bool("der", false, "print the message alone, in DER")
	return func(context.Context, []string) error { return c.escrowedKey(*der) }
}

// escrowedKey prints what PID 1 left for the holders of the escrow keys; it works
// in a degraded boot too.
func (c *command) escrowedKey(der bool) error {
	r, err := c.booted()
	if err != nil {
		return err
	}
	if der && c.env.Terminal {
		return fmt.Errorf("cannot print DER: standard output is a terminal: %w", errUsage)
	}
	e, err := recovery.ReadEscrow(c.env.escrow(), os.DirFS(c.env.Escrow))
	if err != nil && !errors.Is(err, recovery.ErrOtherEscrow) {
		return err
	}
	if err != nil { // it is printed all the same: its holder can tell
		fmt.Fprintf(c.stderr, "sealroot: %v\n", err)
	}
	if der {
		_, err = c.stdout.Write(e.DER)
		return err
	}
	_, err = c.stdout.Write(e.PEM(cmp.Or(r.State.UUID, "not open in this boot")))
	return err
}
