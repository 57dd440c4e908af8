package efi

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sort"

	"sealroot/slots"
	"sealroot/slots/esp"
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
	// Files runs use with the EFI system partition. It is asked only when the
	// state is forgotten: which slots have an image, and which one of them is
	// started without boot entries. nil: nobody knows.
	Files func(use func(fs.FS) error) error
	// Tries are those of slots whose state is forgotten: boot.tries with
	// boot.recount, else 0.
	Tries int
}

var _ slots.Store = Store{}

// Load reads the slots. When the variable is missing, damaged or of other slots,
// all that have an image are committed, in the order in which the firmware would
// start them.
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

// forgotten is the state when nobody knows it any more: every slot that has an
// image may be good, and the boot order says which one was committed last. When
// it is forgotten too, EFI/BOOT/BOOTX64.EFI does, which is a copy of a committed
// slot's image. Other slots come behind, by their names.
func (s Store) forgotten() []slots.Slot {
	f, place := s.onDisk(), s.places()
	rank := slices.Clone(s.Names)
	sort.Slice(rank, func(i, j int) bool {
		a, b := rank[i], rank[j]
		return cmp.Or(place(a)-place(b), yes(slices.Contains(f.started, b))-yes(slices.Contains(f.started, a)),
			slices.Index(s.Names, a)-slices.Index(s.Names, b)) < 0
	})
	var out []slots.Slot
	for _, name := range s.Names {
		slot := slots.Slot{Name: name}
		if len(f.images) == 0 || slices.Contains(f.images, name) {
			slot.Priority = min(len(rank)-slices.Index(rank, name), slots.MaxPriority)
			slot.Successful, slot.Tries = true, s.Tries
		}
		out = append(out, slot)
	}
	return out
}

func yes(b bool) int {
	if b {
		return 1
	}
	return 0
}

// files are the slots that have an image, and those whose image is started
// without boot entries.
type files struct{ images, started []string }

// onDisk looks for both. What cannot be read is not known, which is no reason to
// boot nothing.
func (s Store) onDisk() (f files) {
	if s.Files == nil {
		return files{}
	}
	err := s.Files(func(fsys fs.FS) error {
		names, err := fs.ReadDir(fsys, esp.LinuxDir)
		for _, n := range names {
			if slot, _, ok := esp.ParseUKIName(n.Name()); ok && slices.Contains(s.Names, slot) {
				f.images = append(f.images, slot)
			}
		}
		if err != nil {
			return err
		}
		f.started, err = FallbackSlots(fsys)
		return err
	})
	if err != nil {
		return files{}
	}
	return f
}

// places says where in the boot order a slot's entry is. Unreadable variables
// are as good as missing ones here.
func (s Store) places() func(slot string) int {
	var order []uint16
	if s.Entries.Vars != nil {
		order, _ = s.Entries.order()
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
