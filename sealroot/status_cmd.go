package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"

	"sealroot/init/report"
	"sealroot/sealroot/boots"
	"sealroot/sealroot/recovery"
	statuspkg "sealroot/sealroot/status"
)

func status(c *command) action {
	d := c.diskFlags()
	return func(context.Context, []string) error { return c.status(d) }
}

func (c *command) status(d diskFlags) error {
	if err := d.check(); err != nil {
		return err
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
		in.Boots, in.BootsErr = boots.List(c.env.State)
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
