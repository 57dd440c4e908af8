package live

import (
	"errors"

	"sealroot/mount/blockdev"
	"sealroot/slots"
	"sealroot/slots/bootlog"
	"sealroot/slots/gpt"
)

// BootLog is the boot log on the boot disk. The partition is open only for the
// time of one operation.
type BootLog struct {
	Disk   *Disk
	BootID string // of the running boot, recorded with failures
}

func (l BootLog) with(write bool, use func(bootlog.Log) error) error {
	part, err := l.Disk.Partition(gpt.LabelLog)
	if err != nil {
		return err
	}
	d, err := blockdev.Open(part.Node, write)
	if err != nil {
		return err
	}
	return errors.Join(use(bootlog.Log{Dev: d, BootID: l.BootID}), d.Close())
}

// Load reads the record that counts; see bootlog.Log.Load.
func (l BootLog) Load() (r bootlog.Record, err error) {
	err = l.with(false, func(log bootlog.Log) (err error) {
		r, err = log.Load()
		return err
	})
	return r, err
}

// Record makes a change durable.
func (l BootLog) Record(c slots.LogChange) error {
	if c.Empty() {
		return nil
	}
	return l.with(true, func(log bootlog.Log) error { return log.Record(c) })
}

// Update loads the record, changes it and saves it.
func (l BootLog) Update(change func(bootlog.Record) (bootlog.Record, error)) error {
	return l.with(true, func(log bootlog.Log) error { return log.Update(change) })
}
