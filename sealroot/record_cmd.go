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
// boots that ended before they reached it, which are in the boot log until
// then. Only what was kept is taken from the log.
//
// crash point: between the two a report is in both places; one boot is kept
// once, and the next boot takes it from the log.
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
		// A log that cannot be read does not keep this report from being kept.
		m, earlier, logErr := c.fromLog(r)
		if m != nil {
			defer m.Close()
		}
		if err := boots.Record(c.env.State, append(slices.Clone(earlier), text)...); err != nil {
			return errors.Join(err, logErr)
		}
		if logErr == nil && len(earlier) > 0 {
			logErr = m.UpdateRecord(func(now bootlog.Record) (bootlog.Record, error) {
				now.Reports = slices.DeleteFunc(slices.Clone(now.Reports), func(text json.RawMessage) bool {
					return slices.ContainsFunc(earlier, func(kept []byte) bool { return bytes.Equal(kept, text) })
				})
				return now, nil
			})
		}
		if logErr != nil {
			return logErr
		}
		c.say("kept the report of this boot, and %d of earlier ones", len(earlier))
		return nil
	}
}

// fromLog reads the reports in the boot log.
func (c *command) fromLog(r report.Report) (m Machine, reports [][]byte, err error) {
	if m, err = c.env.Open(Where{Report: r, Write: true}); err != nil {
		return nil, nil, err
	}
	log, err := m.Record()
	for _, text := range log.Reports {
		if boots.Valid(text) {
			reports = append(reports, text)
		}
	}
	return m, reports, err
}
