//go:build !minimal

package live

import (
	"io/fs"
	"os"

	"sealroot/slots"
	"sealroot/slots/efi"
	"sealroot/slots/fixed"
	"sealroot/slots/grubenv"
)

// openOtherStore opens the stores beside gpt.
func (d *Disk) openOtherStore(c Choice, esp ESP, vars efi.Vars) (slots.Store, error) {
	names, err := d.slotNames()
	if err != nil {
		return nil, err
	}
	switch c.Store {
	case StoreBLS:
		return openBLS(esp, vars, names), nil
	case StoreDarch:
		return grubStore{esp, grubenv.Darch, names}, nil
	case StoreRAUC:
		return grubStore{esp, grubenv.RAUC, names}, nil
	case StoreEFI:
		entries, err := d.EFIHint(vars)
		// The ESP is read only when the firmware has forgotten the slots.
		files := func(use func(fs.FS) error) error {
			return esp.With(false, func(dir string) error { return use(os.DirFS(dir)) })
		}
		return efi.Store{Entries: entries, Names: names, Tries: c.Refill, Files: files}, err
	case StoreFixed:
		if d.found == nil {
			names = names[:1] // a disk of ours has one slot then
		}
		return fixed.Store{Names: names}, nil
	}
	return nil, ErrUnsupported
}

// slotNames are the names of the slots that the disk has, in their order.
func (d *Disk) slotNames() ([]string, error) {
	if d.found != nil {
		var names []string
		for i := range d.found {
			names = append(names, slotName(i))
		}
		return names, nil
	}
	list, err := d.Slots()
	if err == nil && len(list) == 0 {
		err = slots.ErrNoSlot
	}
	var names []string
	for _, s := range list {
		names = append(names, s.Name)
	}
	return names, err
}
