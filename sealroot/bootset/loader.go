package bootset

import (
	"errors"
	"fmt"

	"sealroot/slots"
)

// Place is one place that says what is started by default. A disk has several:
// GRUB's environment, the firmware's boot order, and the file that firmware
// without boot entries starts.
type Place interface {
	// Name is the place as a person knows it.
	Name() string
	// IsDefault says whether the place starts the slot.
	IsDefault(slot string) (bool, error)
	SetDefault(slot string) error
}

// Chooser is a place for which "nothing to be set" and "starts the slot" are two
// things.
type Chooser interface {
	Place
	Starts(slot string) (bool, error)
}

// BootLoader takes the one-shot and the default, and tells its default.
type BootLoader interface {
	slots.Loader
	// IsDefault says whether the slot is started without a one-shot.
	IsDefault(slot string) (bool, error)
}

// Loader is the loader of this boot and all places that are to name the same
// default, so that the disk also starts right in another way or machine.
type Loader struct {
	slots.Hint                          // the one-shot of the loader that started this machine
	Places     []Place                  // the one that the loader goes by comes first
	Changed    func(place, slot string) // told of each place that was changed; may be nil
}

var _ BootLoader = Loader{}

// SetDefault sets each place that does not start the slot yet, in their order.
// A place that fails does not keep the others from being set: each one is
// changed in one step and is right by itself. One that cannot be read is set,
// which mends it.
func (l Loader) SetDefault(slot string) error {
	var errs []error
	for _, p := range l.Places {
		right, unread := p.IsDefault(slot)
		if unread == nil && right {
			continue
		}
		if err := p.SetDefault(slot); err != nil {
			errs = append(errs, fmt.Errorf("cannot set %s: %w", p.Name(), errors.Join(unread, err)))
			continue
		}
		if l.Changed != nil {
			l.Changed(p.Name(), slot)
		}
	}
	return errors.Join(errs...)
}

// IsDefault says whether the slot is started by default here: by the first place.
// The others serve when that one is lost.
func (l Loader) IsDefault(slot string) (bool, error) {
	if len(l.Places) == 0 {
		return false, nil
	}
	first := l.Places[0]
	if c, ok := first.(Chooser); ok {
		return c.Starts(slot)
	}
	return first.IsDefault(slot)
}
