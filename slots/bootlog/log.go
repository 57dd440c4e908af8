package bootlog

import (
	"bytes"
	"errors"
	"fmt"

	"sealroot/slots"
)

// Log is the boot log on its partition.
type Log struct {
	Dev    Device
	BootID string // of the running boot, recorded with failures
}

var _ slots.Log = Log{}

// Format writes an empty first record, so that a new disk has a readable log.
func Format(d Device) error { return Log{Dev: d}.Save(Record{}) }

// Load returns the record that counts. With ErrUnreadable the log can be used
// as if it were empty, but it is not known whether a one-shot was armed.
func (l Log) Load() (Record, error) {
	r, _, _, err := l.newest()
	return r, err
}

// Save makes a record durable over the copy that does not count.
func (l Log) Save(r Record) error {
	_, sequence, at, err := l.newest()
	if err != nil && !errors.Is(err, ErrUnreadable) {
		return fmt.Errorf("cannot save the boot log: %w", err)
	}
	b, err := encode(r, sequence+1)
	if err != nil {
		return err
	}
	if _, err := l.Dev.WriteAt(b, half-at); err != nil {
		return fmt.Errorf("cannot save the boot log: %w", err)
	}
	if err := l.Dev.Sync(); err != nil {
		return fmt.Errorf("cannot save the boot log: %w", err)
	}
	return nil
}

// Record makes a change durable; a change that changes nothing is not written,
// an unreadable log is begun anew.
func (l Log) Record(c slots.LogChange) error {
	if c.Empty() {
		return nil
	}
	return l.Update(func(r Record) (Record, error) { return r.Apply(c, l.BootID), nil })
}

// Update loads the record, changes it and saves it when it is another one then.
func (l Log) Update(change func(Record) (Record, error)) error {
	r, loadErr := l.Load()
	if loadErr != nil && !errors.Is(loadErr, ErrUnreadable) {
		return loadErr
	}
	after, err := change(r)
	if err != nil {
		return err
	}
	if loadErr == nil && same(r, after) {
		return nil
	}
	return l.Save(after)
}

// newest returns the record that counts, its sequence number and its offset;
// with ErrUnreadable the offset is such that Save takes the first copy.
func (l Log) newest() (Record, uint64, int64, error) {
	first, s1, err1 := decode(l.Dev, 0)
	second, s2, err2 := decode(l.Dev, half)
	switch {
	case err1 != nil && err2 != nil && l.blank():
		return Record{}, 0, half, nil
	case err1 != nil && err2 != nil:
		return Record{}, 0, half, fmt.Errorf("cannot load the boot log: %w: %w; %w", ErrUnreadable, err1, err2)
	case err2 != nil || err1 == nil && s1 >= s2:
		return first, s1, 0, nil
	}
	return second, s2, half, nil
}

// same compares what would be written.
func same(a, b Record) bool {
	x, err1 := encode(a, 0)
	y, err2 := encode(b, 0)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

// blank says that nothing was ever written: a new partition is not a damaged
// one, which would cost a slot on trial a try.
func (l Log) blank() bool {
	for _, off := range []int64{0, half} {
		h := make([]byte, headerSize)
		if n, _ := l.Dev.ReadAt(h, off); n < headerSize || !bytes.Equal(h, make([]byte, headerSize)) {
			return false
		}
	}
	return true
}
