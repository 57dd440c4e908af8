package efi

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"sealroot/slots"
	"sealroot/slots/statetext"
)

// The variable that holds the state of the slots (package statetext) and its
// vendor, which is ours.
const (
	StatesVariable = "SealrootSlots"
	Sealroot       = "6d1fb6d1-7f0e-4d4b-9c0a-2f6c0e5ba3a1"
)

// ErrNoVariables: the machine was not started by UEFI, or keeps its variables
// from us.
var ErrNoVariables = errors.New("no EFI variables")

// Store keeps the slots in a variable of the firmware. Firmware forgets, fills up
// and becomes read-only: Load has an answer always, and what cannot be saved is
// an error that keeps nobody from booting a committed slot.
type Store struct {
	Entries Hint     // its variables, and its boot entries for when the state is forgotten
	Names   []string // of the slots, in their order
}

var _ slots.Store = Store{}

// Load reads the slots. When the variable is missing, damaged or of other slots,
// all are committed, in the order in which the firmware would start them.
func (s Store) Load() ([]slots.Slot, error) {
	list, _ := s.load()
	return list, nil
}

// load also says whether the variable can be written: one that exists and cannot
// be read is not replaced by a guess.
func (s Store) load() (list []slots.Slot, writable bool) {
	if s.Entries.Vars == nil {
		return s.forgotten(), false
	}
	b, err := s.Entries.Vars.Read(StatesVariable, Sealroot)
	if err != nil && !errors.Is(err, ErrFormat) {
		return s.forgotten(), errors.Is(err, fs.ErrNotExist)
	}
	if err == nil && len(b) <= statetext.MaxLen {
		if list, err := statetext.For(s.Names, string(b)); err == nil {
			return list, true
		}
	}
	return s.forgotten(), true
}

// Save writes the variable, unless it holds the same already.
func (s Store) Save(want []slots.Slot) error {
	now, writable := s.load()
	after, err := statetext.Merge(now, want)
	if err != nil || slices.Equal(now, after) {
		return err
	}
	if !writable {
		return fmt.Errorf("cannot save the slots: %w", ErrNoVariables)
	}
	// crash point: firmware replaces a variable as a whole
	if err := s.Entries.Vars.Write(StatesVariable, Sealroot, persistent, []byte(statetext.Format(after))); err != nil {
		return fmt.Errorf("cannot save the slots: %w", err)
	}
	return nil
}

// forgotten is the state when nobody knows it any more: every slot may be good,
// and the boot order says which one was committed last. Slots without an entry
// come behind, by their names.
func (s Store) forgotten() []slots.Slot {
	rank := slices.Clone(s.Names)
	if s.Entries.Vars != nil {
		place := s.places()
		slices.SortStableFunc(rank, func(a, b string) int { return place(a) - place(b) })
	}
	var out []slots.Slot
	for _, name := range s.Names {
		below := len(rank) - slices.Index(rank, name)
		out = append(out, slots.Slot{Name: name, Priority: min(below, slots.MaxPriority), Successful: true})
	}
	return out
}

// places says where in the boot order a slot's entry is. Unreadable variables
// are as good as missing ones here.
func (s Store) places() func(slot string) int {
	order, err := s.Entries.order()
	if err != nil {
		order = nil
	}
	first := map[string]int{}
	for i, n := range order {
		o, err := s.Entries.entry(bootName(n))
		if err != nil {
			continue
		}
		for _, name := range s.Names {
			if _, seen := first[name]; !seen && s.Entries.right(o, name) {
				first[name] = i
			}
		}
	}
	return func(slot string) int {
		if i, ok := first[slot]; ok {
			return i
		}
		return len(order)
	}
}
