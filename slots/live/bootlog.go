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

// Absent says that the disk is a discovered one without a boot log: those who
// made it know none. Nothing can be recorded there, and nothing is missed. On a
// disk of our own a log that is not there is an error.
func (l BootLog) Absent() bool {
	_, err := l.Disk.Table.ByName(gpt.LabelLog)
	return l.Disk.found != nil && errors.Is(err, gpt.ErrNotFound)
}

// Load reads the record that counts; see bootlog.Log.Load. It is empty where the
// log is Absent.
func (l BootLog) Load() (r bootlog.Record, err error) {
	if l.Absent() {
		return bootlog.Record{}, nil
	}
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
