package main

import (
	"context"
	"fmt"

	"sealroot/mkinitramfs/built"
	"sealroot/mkinitramfs/tools"
	"sealroot/sealroot/explain"
)

func explainMounts(c *command) action {
	disk := c.flags.String("disk", "", "explain what this disk image, set of parts or folder of one would mount")
	slot := c.flags.String("slot", "a", "with --disk: slot of a disk image")
	return func(ctx context.Context, _ []string) error {
		if *disk == "" && c.given("slot") {
			return fmt.Errorf("%w: --slot is for --disk", errUsage)
		}
		e, err := c.explained(ctx, *disk, *slot)
		if err != nil {
			return err
		}
		text := []byte(e.Text())
		if c.json {
			if text, err = e.JSON(); err != nil {
				return err
			}
		}
		_, err = c.stdout.Write(text)
		return err
	}
}

func (c *command) explained(ctx context.Context, disk, slot string) (explain.Explanation, error) {
	if disk != "" {
		cfg, err := built.Config(ctx, tools.New(), disk, built.Options{Slot: slot})
		if err != nil {
			return explain.Explanation{}, err
		}
		return explain.Plan(slot, *cfg), nil
	}
	if c.env.UID != 0 {
		return explain.Explanation{}, errNotRoot
	}
	r, err := c.booted()
	if err != nil {
		return explain.Explanation{}, err
	}
	cfg, err := c.env.configuration()
	if err != nil {
		return explain.Explanation{}, err
	}
	return explain.Running(r, cfg), nil
}
