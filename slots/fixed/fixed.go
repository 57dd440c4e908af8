// Package fixed is the store of a machine that boots one slot for ever and
// counts nothing: a read-only medium, or a loader that nobody talks to.
package fixed

import (
	"errors"
	"fmt"
	"slices"

	"sealroot/slots"
)

// ErrFixed: the state of the slot cannot change.
var ErrFixed = errors.New("the slot is fixed by the configuration")

// Store is the slots, all committed: the first is booted, the others stand in
// for it. A disk of ours has one.
type Store struct{ Names []string }

var _ slots.Store = Store{}

// Load returns the slots.
func (s Store) Load() ([]slots.Slot, error) {
	var list []slots.Slot
	for i, name := range s.Names {
		list = append(list, slots.Slot{Name: name, Priority: len(s.Names) - i, Successful: true})
	}
	return list, nil
}

// Save accepts what is so already; ErrFixed for everything else.
func (s Store) Save(want []slots.Slot) error {
	now, err := s.Load()
	if err != nil {
		return err
	}
	for _, w := range want {
		if !slices.Contains(now, w) {
			return fmt.Errorf("cannot change slot %s: %w", w.Name, ErrFixed)
		}
	}
	return nil
}
