package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"slices"

	"sealroot/init/report"
	"sealroot/sealroot/boots"
	"sealroot/slots/bootlog"
)

// record keeps the report of this boot on the state partition, after those of
// boots that ended before they reached it, or left out a layer, which are in the
// boot log until then. Only what was kept is taken from the log, and nothing in a boot
// whose state is in memory.
// A report that a power cut left in both places is kept once, and the next boot
// takes it from the log.
func record(c *command) action {
	return func(ctx context.Context, _ []string) error {
		text, err := c.readReport()
		if err != nil {
			return err
		}
		if _, err := os.Stat(c.env.State); errors.Is(err, fs.ErrNotExist) {
			c.say("this system has no state partition: nothing is kept")
			return nil
		}
		unlock, err := lock(ctx, c.env.Lock)
		if err != nil {
			return err
		}
		defer unlock()
		var r report.Report
		if json.Unmarshal(text, &r) != nil {
			r = report.Report{} // boots.Record says what is wrong with it
		}
		if r.Slot.Name != "" && r.Slot.Successful && !r.Slot.Trial && !r.LayerTrial {
			c.etcCommitted(r) // the commit may have been another system's (--disk)
		}
		m, err := c.env.Open(Where{Report: r, Write: true})
		if err != nil {
			// A log that cannot be read does not keep this report from being kept.
			return errors.Join(boots.Record(c.env.State, text), err)
		}
		defer m.Close()
		earlier, inMemory, err := c.keepReports(m, text)
		if err != nil {
			return err
		}
		if inMemory {
			c.say("the state is in memory in this boot: the boot log keeps the reports of %d earlier ones", earlier)
		} else {
			c.say("kept the report of this boot, and %d of earlier ones", earlier)
		}
		c.dropUppers(r, r.Slot.Name, r.Root.RootHash) // last, for it may take longer than the unit has
		return nil
	}
}

// keepReports keeps the report of this boot after those in the boot log, and
// says how many those were, and whether all that is in memory alone. The lock is held.
func (c *command) keepReports(m Machine, text []byte) (earlier int, inMemory bool, err error) {
	log, logErr := m.Record()
	var reports, logged [][]byte
	for _, one := range log.Reports {
		if boots.Valid(one) {
			logged = append(logged, one)
			if !boots.SameBoot(one, text) { // PID 1 left that of this boot, too
				reports = append(reports, one)
			}
		}
	}
	if err := boots.Record(c.env.State, append(slices.Clone(reports), text)...); err != nil {
		return 0, false, errors.Join(err, logErr)
	}
	inMemory = stateInMemory(text)
	if logErr != nil || len(logged) == 0 || inMemory {
		return len(reports), inMemory, logErr
	}
	// crash point: a report in both places
	return len(reports), false, m.UpdateRecord(func(now bootlog.Record) (bootlog.Record, error) {
		now.Reports = slices.DeleteFunc(slices.Clone(now.Reports), func(text json.RawMessage) bool {
			return slices.ContainsFunc(logged, func(kept []byte) bool { return bytes.Equal(kept, text) })
		})
		return now, nil
	})
}

// stateInMemory tells by the report of a boot whether PID 1 had no state partition to
// mount, and has put a file system in memory in its place.
func stateInMemory(text []byte) bool {
	var r report.Report
	if json.Unmarshal(text, &r) != nil {
		return false
	}
	return slices.ContainsFunc(r.Mounts, func(m report.Mount) bool { return m.Where == boots.State && m.Type == "tmpfs" })
}

// keepBeforeRestart keeps the report of a boot that a command ends, perhaps
// before sealroot-record.service has come to it. What goes wrong is told and
// does not hold up the restart.
func (c *command) keepBeforeRestart(m Machine) {
	text, err := c.readReport()
	if err == nil {
		if _, err = os.Stat(c.env.State); errors.Is(err, fs.ErrNotExist) {
			return
		}
		_, _, err = c.keepReports(m, text)
	}
	if err != nil {
		c.say("the report of this boot is not kept: %v", err)
	}
}
