package gpt

import (
	"errors"
	"fmt"

	"sealroot/slots"
)

// Store keeps the slots in the attribute bits of the partitions with their data:
// root-<slot>, or as Naming says.
type Store struct {
	Naming     Naming
	Dev        Device
	Size       int64 // of the device, in bytes
	SectorSize int   // logical sector size of the device
	// Lock takes the lock under which the table is read again and written:
	// flock on the node of the whole disk, which other writers take too. nil
	// where there is nobody else, as on an image file being made.
	Lock func() (unlock func() error, err error)
}

var _ slots.Store = Store{}

// Load reads the slots, in the order of their names. ErrAmbiguous when a slot
// has two root partitions.
func (s Store) Load() ([]slots.Slot, error) {
	t, err := Read(s.Dev, s.Size, s.SectorSize)
	if err != nil {
		return nil, fmt.Errorf("cannot load the slots: %w", err)
	}
	return t.Slots(s.Naming)
}

// Slots returns the slots of the table, in the order of their names: each letter
// that has a partition with data.
func (t *Table) Slots(n Naming) ([]slots.Slot, error) {
	var out []slots.Slot
	for name := 'a'; name <= 'z'; name++ {
		p, err := t.InSlot(n, string(name), Data)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot load slot %c: %w", name, err)
		}
		out = append(out, slots.Slot{
			Name: string(name), Priority: p.Attributes.Priority(),
			Tries: p.Attributes.Tries(), Successful: p.Attributes.Successful(),
		})
	}
	return out, nil
}

// Save changes the slot bits of the slots given, and only when one differs or a
// copy of the table needs repair. The table is read again under the lock.
func (s Store) Save(want []slots.Slot) (err error) {
	if s.Lock != nil {
		unlock, lockErr := s.Lock()
		if lockErr != nil {
			return fmt.Errorf("cannot lock the disk: %w", lockErr)
		}
		defer func() {
			if e := unlock(); e != nil && err == nil {
				err = fmt.Errorf("cannot unlock the disk: %w", e)
			}
		}()
	}
	t, bits, err := s.plan(want)
	if err != nil || bits == nil {
		return err
	}
	return t.WriteAttributes(s.Dev, bits)
}

// Unchanged says that Save would write nothing, so that the caller need not open
// the disk for writing: udev reads a disk anew that somebody could have written.
func (s Store) Unchanged(want []slots.Slot) (bool, error) {
	_, bits, err := s.plan(want)
	return err == nil && bits == nil, err
}

// plan reads the table and decides on the bits of the partitions, by number; nil
// when all is so already and both copies are right.
func (s Store) plan(want []slots.Slot) (*Table, map[int]Attributes, error) {
	t, err := Read(s.Dev, s.Size, s.SectorSize)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot save the slots: %w", err)
	}
	bits := map[int]Attributes{}
	changed := !t.healthy()
	for _, w := range want {
		p, err := t.InSlot(s.Naming, w.Name, Data)
		if err != nil {
			return nil, nil, fmt.Errorf("cannot save slot %s: %w", w.Name, err)
		}
		bits[p.Number] = p.Attributes.WithSlot(w.Priority, w.Tries, w.Successful)
		changed = changed || bits[p.Number] != p.Attributes
	}
	if !changed {
		return t, nil, nil
	}
	return t, bits, nil
}
