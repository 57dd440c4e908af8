package grubenv

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"sealroot/slots"
	"sealroot/slots/statetext"
)

// Store keeps the slots in an environment block.
type Store struct {
	File   File
	Scheme Scheme
	Names  []string // of the slots, in their order
}

var _ slots.Store = Store{}

// Load reads the slots. A block that is damaged reads as one without variables:
// GRUB could not use it either, and a state that is lost must not keep a machine
// from booting.
func (s Store) Load() ([]slots.Slot, error) {
	e, _, err := read(s.File)
	if err != nil {
		return nil, fmt.Errorf("cannot load the slots: %w", err)
	}
	return s.Scheme.Read(e, s.Names), nil
}

// Save sets the variables of the slots given, in place. Nothing is written when
// all is so already. All variables that it changes are in the first 512 bytes,
// so that a power cut leaves either all of the old values or all of the new.
func (s Store) Save(want []slots.Slot) error {
	e, damaged, err := read(s.File)
	if err != nil {
		return fmt.Errorf("cannot save the slots: %w", err)
	}
	now := s.Scheme.Read(e, s.Names)
	after, err := statetext.Merge(now, want)
	if err != nil {
		return err
	}
	if slices.Equal(now, after) {
		return nil
	}
	if err := s.Scheme.Write(e, after); err != nil {
		return fmt.Errorf("cannot save the slots: %w", err)
	}
	if err := write(s.File, e, damaged, s.Scheme.own); err != nil {
		return fmt.Errorf("cannot save the slots: %w", err)
	}
	return nil
}

// TellFallback sets BOOT_FELL_BACK=true where the scheme has it. Our grub.cfg
// clears it at every boot, so that it is there for the rest of this one.
func (s Store) TellFallback() error {
	if s.Scheme != Darch {
		return nil
	}
	return Hint{s.File}.change(FellBack, darchTrue)
}

// sector is what a disk writes whole or not at all.
const sector = 512

// read reads the block; a damaged one is begun anew.
func read(f File) (e *Env, damaged bool, err error) {
	b := make([]byte, Size+1) // one more shows an oversized file
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, fmt.Errorf("cannot read the environment block: %w", err)
	}
	e, err = Parse(b[:n])
	if errors.Is(err, ErrFormat) {
		return New(), true, nil
	}
	return e, false, err
}

// write replaces the block in place. In one that is longer than a sector the
// variables that own accepts go first: a cut between its two sectors may then
// hurt somebody else's variable next to the border, but never one of ours.
func write(f File, e *Env, damaged bool, own func(name string) bool) error {
	if e.front = 0; e.text().Len() > sector {
		others := slices.DeleteFunc(slices.Clone(e.vars), func(v variable) bool { return own(v.name) })
		ours := slices.DeleteFunc(e.vars, func(v variable) bool { return !own(v.name) })
		e.vars, e.front = slices.Concat(ours, others), len(ours)
	}
	b, err := e.Encode()
	if err != nil {
		return err
	}
	if t, ok := f.(interface{ Truncate(size int64) error }); ok && damaged {
		// it may have another size, and GRUB takes only what is 1024 bytes long
		if err := t.Truncate(Size); err != nil {
			return err
		}
	}
	// crash point: the first sector holds the old or the new values
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	return f.Sync()
}
