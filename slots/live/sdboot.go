//go:build !minimal

package live

import (
	"errors"
	"fmt"

	"sealroot/slots"
	"sealroot/slots/bls"
	"sealroot/slots/efi"
	espnames "sealroot/slots/esp"
)

// openBLS keeps the slots in the names of their kernel images.
func openBLS(esp ESP, vars efi.Vars, names []string) slots.Store {
	s := blsStore{esp: esp, slots: names}
	if vars != nil {
		// without the variable the names still say enough
		s.counted.Slot, s.counted.Counter, _ = efi.BootCounted(vars)
	}
	return s
}

// blsStore mounts the ESP for one operation, and for writing only when there is
// something to write.
type blsStore struct {
	esp     ESP
	slots   []string
	counted bls.Counted
}

func (s blsStore) at(dir string) bls.Store {
	return bls.Store{Dir: bls.Tree(dir), Slots: s.slots, Counted: s.counted}
}

// Load reads the slots.
func (s blsStore) Load() (list []slots.Slot, err error) {
	err = s.esp.With(false, func(dir string) (err error) {
		list, err = s.at(dir).Load()
		return err
	})
	return list, err
}

// Save makes the slots durable.
func (s blsStore) Save(want []slots.Slot) error {
	same := false
	err := s.esp.With(false, func(dir string) (err error) {
		same, err = s.at(dir).Unchanged(want)
		return err
	})
	if err != nil || same {
		return err
	}
	return s.esp.With(true, func(dir string) error { return s.at(dir).Save(want) })
}

// openSystemdBoot takes its variables and its configuration file. Without
// variables nobody takes hints, and what is committed boots on.
func (d *Disk) openSystemdBoot(esp ESP, vars efi.Vars) (slots.Loader, error) {
	if vars == nil {
		return nil, nil
	}
	firmware, err := d.EFIHint(vars)
	if err != nil {
		return nil, err
	}
	return SystemdBoot{efi.LoaderHint{Vars: vars}, firmware, esp}, nil
}

// SystemdBoot also keeps the default in loader.conf: a machine whose firmware
// forgets its variables would else start the newest version, good or bad. The
// variables alone are its LoaderHint.
type SystemdBoot struct {
	efi.LoaderHint
	firmware efi.Hint
	esp      ESP
}

// Arm sets the one-shot, once the firmware knows how to go on if systemd-boot
// cannot start that kernel.
func (s SystemdBoot) Arm(slot string) error {
	if err := s.firmware.EnsureRetry(); err != nil {
		return err
	}
	return s.LoaderHint.Arm(slot)
}

// SetDefault sets the slot that is loaded without a one-shot.
func (s SystemdBoot) SetDefault(slot string) error {
	return errors.Join(s.LoaderHint.SetDefault(slot), s.setConf(slot))
}

func (s SystemdBoot) setConf(slot string) error {
	right := false
	err := s.esp.With(false, func(dir string) (err error) {
		right, err = LoaderConf(dir).IsDefault(slot)
		return err
	})
	if err == nil && !right {
		err = s.esp.With(true, func(dir string) error { return LoaderConf(dir).SetDefault(slot) })
	}
	if err != nil {
		return fmt.Errorf("cannot set the default in %s: %w", espnames.LoaderConf, err)
	}
	return nil
}
