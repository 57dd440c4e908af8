package machine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"sealroot/slots/efi"
	"sealroot/slots/grubenv"
)

const grubenvPath = "sealroot/grubenv"

// grubDefault is the variable that grub.cfg takes the default slot from.
type grubDefault struct{ esp espDir }

// Name names the place.
func (grubDefault) Name() string { return "GRUB's default" }

// IsDefault reads the variable. A disk without the file has no GRUB, and there
// nothing is to be set.
func (g grubDefault) IsDefault(slot string) (right bool, err error) {
	err = g.esp.With(false, func(dir string) error {
		b, err := os.ReadFile(filepath.Join(dir, grubenvPath))
		if errors.Is(err, fs.ErrNotExist) {
			right = true
			return nil
		}
		if err != nil {
			return err
		}
		env, err := grubenv.Parse(b)
		if err != nil {
			return err
		}
		now, _ := env.Get(grubenv.Default)
		right = now == slot
		return nil
	})
	return right && err == nil, err
}

// SetDefault writes the variable in place, as GRUB's own save_env does.
func (g grubDefault) SetDefault(slot string) error {
	return g.esp.With(true, func(dir string) error {
		f, err := os.OpenFile(filepath.Join(dir, grubenvPath), os.O_RDWR, 0)
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
func (b bootOrder) IsDefault(slot string) (bool, error) {
	order, err := b.hint.Vars.Read("BootOrder", efi.Global)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(order) < 2 {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot read BootOrder: %w", err)
	}
	first, err := b.hint.Vars.Read(fmt.Sprintf("Boot%04X", binary.LittleEndian.Uint16(order)), efi.Global)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot read the first boot entry: %w", err)
	}
	o, err := efi.ParseLoadOption(first)
	if err != nil {
		return false, nil // damaged, and not ours
	}
	return o.Description == efi.Description(slot) && o.Path == efi.Path(slot) &&
		o.Partition == b.hint.ESP && o.Attributes == efi.Active && len(o.Optional) == 0, nil
}

// SetDefault puts the slot's entry first.
func (b bootOrder) SetDefault(slot string) error { return b.hint.SetDefault(slot) }
