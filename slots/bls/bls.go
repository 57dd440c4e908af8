// Package bls keeps the slots in the names of their unified kernel images, as
// the Boot Loader Specification has it ("Boot Counting"), so that systemd-boot
// counts the boots of a slot on trial itself:
//
//	sealroot-a.efi      committed
//	sealroot-b+3-0.efi  on trial, 3 boots left, none done
//	sealroot-b+0-3.efi  given up, or bad
//
// systemd-boot renames the file that it starts to +<left-1>-<done+1> first and
// says so in LoaderBootCountPath. It sorts entries with +0 last, then the newest
// version first (252: src/boot/efi/boot.c, config_entry_compare); a one-shot
// and a default by name come before that order, and ours always name the slot.
//
// Names cannot hold priorities and tell a slot that was given up from a bad one.
// The file sealroot/slots beside them holds the exact state (package statetext)
// with the names that belong to it. Names win: as soon as they are not those of
// the file, or what the loader's counting makes of them, the file is no more
// than a memory of priorities.
package bls

import (
	"errors"
	"fmt"
	"io/fs"

	"sealroot/slots"
	"sealroot/slots/esp"
)

var (
	// ErrNoFile: the slot has no unified kernel image, so it cannot be made
	// bootable.
	ErrNoFile = errors.New("no unified kernel image")
	// ErrFull: the state of so many slots does not fit into one sector.
	ErrFull = errors.New("state of the slots is too long")
)

// Dir is what the store does on the EFI system partition.
type Dir interface {
	// Names lists the files in EFI/Linux.
	Names() ([]string, error)
	// Rename renames a file in EFI/Linux to a name that no file there has. It is
	// durable when it returns; a power cut leaves either name, or both.
	Rename(from, to string) error
	// ReadState reads sealroot/slots; fs.ErrNotExist when there is none.
	ReadState() ([]byte, error)
	// WriteState replaces the StateSize bytes of sealroot/slots. It is durable
	// when it returns; a power cut leaves the old or the new ones.
	WriteState([]byte) error
}

// Store keeps the slots.
type Store struct {
	Dir Dir
	// Slots are the names of the slots there are, in order.
	Slots []string
	// Counted is the file whose boot the loader has counted in this boot, from
	// efi.BootCounted. It matters only when sealroot/slots is lost.
	Counted Counted
}

// Counted is a slot and the counter in its file's name after the loader counted.
type Counted struct {
	Slot    string
	Counter esp.Counter
}

var _ slots.Store = Store{}

// Load reads the slots. A boot that the loader has counted and nobody has saved
// yet still shows as a try, because the state machine spends one itself for a
// boot that arrived, or that was armed and did not; saving that finds it done.
// Of several such boots all but one stay counted: tries never grow.
func (s Store) Load() ([]slots.Slot, error) {
	v, err := s.look()
	if err != nil {
		return nil, fmt.Errorf("cannot load the slots: %w", err)
	}
	return v.slots, nil
}

// Save makes the state of the slots given durable; the others stay. Nothing is
// written when nothing changes. A cut between the writes leaves the old state
// or the new one, see plan. ErrNoFile when a slot without a file would have to
// be anything but unbootable.
func (s Store) Save(want []slots.Slot) error {
	p, err := s.plan(want)
	if err != nil {
		return fmt.Errorf("cannot save the slots: %w", err)
	}
	for _, r := range p.aside {
		// crash point: a double name is left; the worse of the two counts, now
		// as before
		if err := s.Dir.Rename(r.from, r.to); err != nil {
			return fmt.Errorf("cannot put %s aside: %w", r.from, err)
		}
	}
	if p.text != nil {
		// crash point: sealroot/slots is the old one, and fits
		if err := s.Dir.WriteState(p.text); err != nil {
			return fmt.Errorf("cannot save the slots: %w", err)
		}
	}
	for _, r := range p.renames {
		// crash point: with all names old, the text's second state fits: the old
		// one. With some new, Load goes on to the new one.
		if err := s.Dir.Rename(r.from, r.to); err != nil {
			return fmt.Errorf("cannot save the slots: %w", err)
		}
	}
	return nil
}

// Unchanged says that Save would write nothing, so that the caller need not
// mount the file system for writing.
func (s Store) Unchanged(want []slots.Slot) (bool, error) {
	p, err := s.plan(want)
	if err != nil {
		return false, fmt.Errorf("cannot save the slots: %w", err)
	}
	return p.text == nil && len(p.renames) == 0 && len(p.aside) == 0, nil
}

// FileOf is the name of a slot's file among the names in EFI/Linux. Of several
// it is the one that counts. ok is false when there is none.
func FileOf(names []string, slot string) (name string, ok bool) {
	files, _ := sortFiles(names)
	f, ok := files[slot]
	return f.name, ok
}

// Initial is what a new disk begins with: the counter in the name of each slot's
// file, and the content of sealroot/slots. Slots without a file must be
// unbootable.
func Initial(list []slots.Slot) (counters map[string]esp.Counter, text []byte, err error) {
	counters = map[string]esp.Counter{}
	var rec record
	rec.slots = list
	for _, s := range list {
		m := target(mark{}, s, false)
		counters[s.Name] = m.counter()
		rec.marks = append(rec.marks, m)
	}
	text, err = encode(rec, record{})
	return counters, text, err
}

// look reads names and text and finds out what they say.
func (s Store) look() (view, error) {
	names, err := s.Dir.Names()
	if err != nil {
		return view{}, fmt.Errorf("cannot list %s: %w", esp.LinuxDir, err)
	}
	text, err := s.Dir.ReadState()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return view{}, fmt.Errorf("cannot read %s: %w", esp.Slots, err)
	}
	return interpret(s.Slots, names, text, s.Counted), nil
}
