package machine

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"sealroot/slots"
	"sealroot/slots/efi"
	"sealroot/slots/esp"
	"sealroot/slots/grubenv"
)

// grubDefault is the variable that grub.cfg takes the default slot from.
type grubDefault struct{ dir espDir }

// Name names the place.
func (grubDefault) Name() string { return "GRUB's default" }

// IsDefault reads the variable. A disk without the file has no GRUB, and there
// nothing is to be set.
func (g grubDefault) IsDefault(slot string) (right bool, err error) {
	err = g.dir.With(false, func(dir string) error {
		f, err := os.Open(filepath.Join(dir, esp.Grubenv))
		if errors.Is(err, fs.ErrNotExist) {
			right = true
			return nil
		}
		if err != nil {
			return err
		}
		right, err = grubenv.Hint{File: f}.IsDefault(slot)
		return errors.Join(err, f.Close())
	})
	return right && err == nil, err
}

// SetDefault writes the variable in place, as GRUB's own save_env does.
func (g grubDefault) SetDefault(slot string) error {
	return g.dir.With(true, func(dir string) error {
		f, err := os.OpenFile(filepath.Join(dir, esp.Grubenv), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return errors.Join(grubenv.Hint{File: f}.SetDefault(slot), f.Close())
	})
}

// bootOrder is the firmware's order of boot entries.
type bootOrder struct{ hint efi.Hint }

// Name names the place.
func (bootOrder) Name() string { return "the firmware's boot order" }

// IsDefault says whether the first entry of BootOrder is the slot's.
func (b bootOrder) IsDefault(slot string) (bool, error) { return b.hint.IsDefault(slot) }

// SetDefault puts the slot's entry first.
func (b bootOrder) SetDefault(slot string) error { return b.hint.SetDefault(slot) }

// loaderDefault is the setting of a loader that writes only what is not right
// yet, and does not tell.
type loaderDefault struct {
	name   string
	loader slots.Loader
}

// Name names the loader.
func (l loaderDefault) Name() string { return l.name }

// IsDefault is not known; SetDefault finds out.
func (loaderDefault) IsDefault(string) (bool, error) { return false, nil }

// SetDefault sets the slot.
func (l loaderDefault) SetDefault(slot string) error { return l.loader.SetDefault(slot) }
