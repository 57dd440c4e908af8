package main

import (
	"context"

	"sealroot/sealroot/exit"
)

// exitProgram puts this program where systemd-shutdown starts it in the end.
func exitProgram(c *command) action {
	return func(context.Context, []string) error {
		if err := exit.Put(exit.Dir); err != nil {
			return err
		}
		c.say("%s%s unmounts the root when the machine ends", exit.Dir, exit.Program)
		return nil
	}
}
