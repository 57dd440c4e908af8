package grubenv

import (
	"fmt"
	"io"

	"sealroot/slots"
)

// The variables of our generated grub.cfg.
const (
	Once    = "sealroot_once"    // slot to boot at the next boot only; grub.cfg clears it
	Default = "sealroot_default" // slot of the default entry: the last one committed
)

// File is the open environment file. It is written in place, never replaced:
// GRUB writes through the block list of the file it found.
type File interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Hint is the one-shot in a grubenv file.
type Hint struct{ File File }

var _ slots.Hint = Hint{}

// Get returns the slot of the one-shot, "" when none is armed.
func (h Hint) Get() (string, error) {
	e, err := h.read()
	if err != nil {
		return "", fmt.Errorf("cannot read the one-shot: %w", err)
	}
	v, _ := e.Get(Once)
	return v, nil
}

// Arm sets the one-shot.
func (h Hint) Arm(slot string) error { return h.change(Once, slot) }

// Clear unsets the one-shot; without one it writes nothing.
func (h Hint) Clear() error { return h.change(Once, "") }

// IsDefault says whether GRUB boots the slot without a one-shot.
func (h Hint) IsDefault(slot string) (bool, error) {
	e, err := h.read()
	if err != nil {
		return false, fmt.Errorf("cannot read the default: %w", err)
	}
	now, _ := e.Get(Default)
	return now == slot, nil
}

// SetDefault sets the slot that GRUB boots without a one-shot.
func (h Hint) SetDefault(slot string) error { return h.change(Default, slot) }

// change sets one variable and leaves all others. A file with a damaged
// content is begun anew: GRUB could not read it either.
func (h Hint) change(name, value string) error {
	e, damaged, err := read(h.File)
	if err != nil {
		return fmt.Errorf("cannot set %s: %w", name, err)
	}
	if old, _ := e.Get(name); old == value && !damaged {
		return nil
	}
	if value == "" {
		e.Unset(name)
	} else if err := e.Set(name, value); err != nil {
		return fmt.Errorf("cannot set %s: %w", name, err)
	}
	if err := write(h.File, e, damaged, func(other string) bool { return other == name }); err != nil {
		return fmt.Errorf("cannot set %s: %w", name, err)
	}
	return nil
}

// read is strict: what GRUB could not read is an error.
func (h Hint) read() (*Env, error) {
	e, damaged, err := read(h.File)
	if err == nil && damaged {
		err = fmt.Errorf("cannot read the environment block: %w", ErrFormat)
	}
	return e, err
}
