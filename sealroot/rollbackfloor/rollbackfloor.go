// Package rollbackfloor decides when the running system may ask for a higher rollback
// floor, and asks for it: PID 1 raises the floor at the next boot (state/floor).
package rollbackfloor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sealroot/sealroot/durable"
	"sealroot/state/floor"
)

// Level is the security version of a slot's image, as far as it is vouched for.
type Level struct {
	Slot    string
	Version int
	// Known: the image's signature and that of its manifest say so, or it is the
	// image that runs.
	Known bool
	// Empty: the slot holds nothing that could boot.
	Empty bool
	// Why the version is not known.
	Why string
}

// below says why a floor must not be raised while the slot holds this.
func (l Level) below(floor int) (why string, holds bool) {
	switch {
	case l.Empty, l.Known && l.Version >= floor:
		return "", false
	case l.Known:
		return fmt.Sprintf("has security version %d", l.Version), true
	}
	return "has an unknown security version (" + l.Why + ")", true
}

// Plan is what is done about the floor.
type Plan struct {
	// Ask: the floor is to become Floor at the next boot.
	Ask   bool
	Floor int
	// Holds lists the slots that hold it back, and why; with burn those that will
	// no longer boot.
	Holds []Held
}

// Held is a slot below the floor.
type Held struct{ Slot, Why string }

// Decide plans the floor once the slot that runs is committed: now is the floor
// that counts or was asked for, running the security version that runs, others
// what the other slots hold. The floor goes up when no other slot is left behind,
// or at once with burn.
func Decide(now, running int, others []Level, burn bool) Plan {
	p := Plan{Floor: now}
	if running <= now {
		return p
	}
	for _, l := range others {
		if why, holds := l.below(running); holds {
			p.Holds = append(p.Holds, Held{l.Slot, why})
		}
	}
	if len(p.Holds) == 0 || burn {
		p.Ask, p.Floor = true, running
	}
	return p
}

// Asked is the floor that was asked for last; 0 when none was. volume is the root
// of the encrypted volume.
func Asked(volume string) (int, error) {
	f, err := os.OpenFile(filepath.Join(volume, floor.File), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := floor.Read(f)
	if err != nil {
		return 0, fmt.Errorf("cannot read %s: %w", f.Name(), err)
	}
	return n, nil
}

// Ask asks for a floor, durably: a power cut leaves the old request or the new one.
func Ask(volume string, to int) error {
	if err := durable.WriteFile(filepath.Join(volume, floor.File), floor.Format(to)); err != nil {
		return fmt.Errorf("cannot ask for a rollback floor: %w", err)
	}
	return nil
}
