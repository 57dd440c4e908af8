package main

import (
	"context"
	"fmt"
	"os"

	"sealroot/sealroot/bootset"
	"sealroot/sealroot/exit"
)

// exitProgram puts this program where systemd-shutdown starts it in the end. For an init
// that does no such thing, with how to end, it goes there itself.
func exitProgram(c *command) action {
	return func(_ context.Context, words []string) error {
		if len(words) == 0 {
			if err := exit.Put(exit.Dir); err != nil {
				return err
			}
			c.say("%s%s unmounts the root when the machine ends", exit.Dir, exit.Program)
			return nil
		}
		ending, err := exit.ParseEnding(words)
		if err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		if _, err := os.Stat(c.env.Systemd); err == nil {
			return fmt.Errorf("systemd runs, and does this itself: systemctl %s: %w", ending, bootset.ErrRefused)
		}
		return c.env.End(ending)
	}
}
