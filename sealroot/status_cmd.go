package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/boots"
	"sealroot/sealroot/hooks"
	"sealroot/sealroot/recovery"
	"sealroot/sealroot/rollbackfloor"
	statuspkg "sealroot/sealroot/status"
	"sealroot/sealroot/volume"
)

func status(c *command) action {
	d := c.diskFlags()
	pcrs := c.flags.Bool("pcrs", false, "compare the machine's PCRs with what the running image gives")
	return func(ctx context.Context, _ []string) error { return c.status(ctx, d, *pcrs) }
}

func (c *command) status(ctx context.Context, d diskFlags, pcrs bool) error {
	if err := d.check(); err != nil {
		return err
	}
	if pcrs && d.offline() {
		return fmt.Errorf("%w: --pcrs is for this machine, not for --disk", errUsage)
	}
	in := statuspkg.Input{Disk: *d.path}
	var r report.Report
	if !d.offline() {
		in.Report, in.ReportErr = c.readReport()
		if in.ReportErr == nil {
			// a report that cannot be read is told of by status.New
			if json.Unmarshal(in.Report, &r) != nil {
				r = report.Report{}
			}
		}
		in.KeyKept, in.KeyErr = recovery.Waiting(c.env.Key)
		in.Keyslots, in.KeyFile = c.keyslots(ctx, r)
		in.Boots, in.BootsErr = boots.List(c.env.State)
		in.Ran, in.RanErr = hooks.Last(c.env.volume())
		in.LayersToDo = c.layerTodo(r)
		if r.Floor != nil {
			in.FloorAsked, in.FloorErr = rollbackfloor.Asked(c.env.volume())
		}
	}
	m, err := c.env.Open(Where{Report: r, Disk: *d.path, Store: *d.store})
	switch {
	case err != nil && d.offline():
		return err
	case err != nil:
		in.SlotsErr, in.LogErr = err, err
	default:
		in.Store, in.Loader = m.Kept()
		in.Refill = m.Refill()
		in.Slots, in.SlotsErr = m.Slots()
		in.Log, in.LogErr = m.Record()
		in.Versions, in.VersionsErr = m.Versions()
		if pcrs {
			in.PCRs = c.env.comparePCRs(m, r)
		}
		err = m.Close()
	}
	s := statuspkg.New(in)
	if c.json {
		text, err := s.JSON()
		if err != nil {
			return err
		}
		if _, err := c.stdout.Write(text); err != nil {
			return err
		}
	} else if _, err := io.WriteString(c.stdout, s.Text()); err != nil {
		return err
	}
	switch {
	case errors.Is(in.ReportErr, errNotBooted):
		return errNotBooted
	case d.offline():
		return err
	}
	return nil
}

// headerTime is how long status waits for the header of the volume.
const headerTime = 2 * time.Second

// keyslots are those of a volume that had no recovery key at its boot; nil for any other,
// or when they cannot be read: what the report says stands then.
func (c *command) keyslots(ctx context.Context, r report.Report) (list []volume.Keyslot, keyFile bool) {
	if r.State.Recovery != report.RecoveryNone {
		return nil, false
	}
	cfg, err := c.env.configuration()
	keyFile = err == nil && slices.Contains(cfg.State.Unlock, config.UnlockKeyFile)
	ctx, cancel := context.WithTimeout(ctx, headerTime)
	defer cancel()
	im, err := volume.Open(ctx, c.env.State, false)
	if err != nil {
		return nil, keyFile
	}
	defer im.Close()
	return volume.Keyslots(im.Header), keyFile
}
