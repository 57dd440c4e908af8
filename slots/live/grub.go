package live

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"sealroot/slots"
	names "sealroot/slots/esp"
	"sealroot/slots/grubenv"
)

// grubenv opens the environment block on the ESP. A missing one is
// fs.ErrNotExist when it is to be read; to be written, it is made.
func (e ESP) grubenv(write bool, use func(grubenv.File) error) error {
	return e.With(write, func(dir string) error {
		flags := os.O_RDONLY
		if write {
			flags = os.O_RDWR | os.O_CREATE
		}
		f, err := os.OpenFile(filepath.Join(dir, names.Grubenv), flags, 0o600)
		if err != nil {
			return err
		}
		return errors.Join(use(f), f.Close())
	})
}

// GrubHint is the one-shot of GRUB: the variable sealroot_once in the
// environment block on the ESP. The ESP is mounted for writing only when
// something is to be written: a mount alone writes to FAT.
type GrubHint struct{ ESP ESP }

var _ slots.Loader = GrubHint{}

// Get returns the slot of the one-shot, "" when none is armed.
func (g GrubHint) Get() (slot string, err error) {
	err = g.ESP.grubenv(false, func(f grubenv.File) (err error) {
		slot, err = grubenv.Hint{File: f}.Get()
		return err
	})
	return slot, err
}

// Arm sets the one-shot.
func (g GrubHint) Arm(slot string) error {
	if now, err := g.Get(); err == nil && now == slot {
		return nil
	}
	return g.ESP.grubenv(true, func(f grubenv.File) error { return grubenv.Hint{File: f}.Arm(slot) })
}

// Clear unsets the one-shot.
func (g GrubHint) Clear() error {
	if now, err := g.Get(); errors.Is(err, fs.ErrNotExist) || err == nil && now == "" {
		return nil
	}
	return g.ESP.grubenv(true, func(f grubenv.File) error { return grubenv.Hint{File: f}.Clear() })
}

// IsDefault says whether GRUB boots the slot without a one-shot. An error with
// fs.ErrNotExist on a disk without GRUB's environment.
func (g GrubHint) IsDefault(slot string) (right bool, err error) {
	err = g.ESP.grubenv(false, func(f grubenv.File) (err error) {
		right, err = grubenv.Hint{File: f}.IsDefault(slot)
		return err
	})
	return right, err
}

// SetDefault sets the slot that GRUB boots without a one-shot.
func (g GrubHint) SetDefault(slot string) error {
	if right, err := g.IsDefault(slot); err == nil && right {
		return nil
	}
	return g.ESP.grubenv(true, func(f grubenv.File) error { return grubenv.Hint{File: f}.SetDefault(slot) })
}

// grubStore mounts the ESP for one operation, and for writing only when there is
// something to write.
type grubStore struct {
	esp    ESP
	scheme grubenv.Scheme
	names  []string
}

func (g grubStore) at(f grubenv.File) grubenv.Store {
	return grubenv.Store{File: f, Scheme: g.scheme, Names: g.names}
}

// Load reads the slots. A missing block reads as one without variables.
func (g grubStore) Load() (list []slots.Slot, err error) {
	err = g.esp.grubenv(false, func(f grubenv.File) (err error) {
		list, err = g.at(f).Load()
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return g.scheme.Read(grubenv.New(), g.names), nil
	}
	return list, err
}

// Save makes the slots durable.
func (g grubStore) Save(want []slots.Slot) error {
	now, err := g.Load()
	if err != nil {
		return err
	}
	same := true
	for _, w := range want {
		s, ok := slots.Find(now, w.Name)
		same = same && ok && s == w
	}
	if same {
		return nil
	}
	return g.esp.grubenv(true, func(f grubenv.File) error { return g.at(f).Save(want) })
}

var _ fallbackTeller = grubStore{}

// TellFallback sets BOOT_FELL_BACK, where the scheme has it.
func (g grubStore) TellFallback() error {
	if g.scheme != grubenv.Darch {
		return nil
	}
	return g.esp.grubenv(true, func(f grubenv.File) error { return g.at(f).TellFallback() })
}
