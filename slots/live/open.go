package live

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"sealroot/slots"
	"sealroot/slots/efi"
	"sealroot/slots/fixed"
	"sealroot/slots/grubenv"
)

// The stores and boot loaders, by the words of the configuration.
const (
	StoreGPT   = "gpt"
	StoreDarch = "grubenv-darch"
	StoreRAUC  = "grubenv-rauc"
	StoreBLS   = "bls"
	StoreEFI   = "efi"
	StoreFixed = "fixed"

	LoaderGRUB        = "grub"
	LoaderUKI         = "uki"
	LoaderSystemdBoot = "systemd-boot"
)

// ErrUnsupported: this program has no such store or loader.
var ErrUnsupported = errors.New("not supported by this program")

// Choice is how the configuration has the slots kept and started.
type Choice struct {
	Store  string // one of the stores; "" is gpt
	Loader string // one of the loaders
	UEFI   bool   // the firmware's variables can be used
	// Direct: the kernel was loaded by nobody who takes hints, as by a virtual
	// machine; then there is no Loader.
	Direct bool
	Refill int // tries that a commit gives, with boot.recount; 0 without
}

// Kept is where the slots are kept and who is told what to start.
type Kept struct {
	Store slots.Store
	// Loader takes the one-shot and the default; nil: nobody does.
	Loader slots.Loader
}

// TellFallback tells those who read the store's own variables that this boot is
// a fallback, where the store has a word for it (BOOT_FELL_BACK of darch's
// author). It is called in the boot that tells the fallback; the boot loader
// takes the word back at its next start.
func (k Kept) TellFallback() error {
	if t, ok := k.Store.(interface{ TellFallback() error }); ok {
		return t.TellFallback()
	}
	return nil
}

// Open opens the store and the loader chosen. PID 1 and the command use it both,
// so that they cannot differ. It reads no more than which try the loader itself
// has counted in this boot: the store bls shows the state before that, and finds
// the spending of the try done when it is saved. Each operation opens and closes
// what it needs. vars may be nil without UEFI.
// ErrUnsupported when there is no such store or loader, or the firmware that it
// takes is missing.
func (d *Disk) Open(c Choice, esp ESP, vars efi.Vars) (Kept, error) {
	if !c.UEFI {
		vars = nil
	}
	var k Kept
	var err error
	if k.Store, err = d.openStore(c, esp, vars); err != nil {
		return Kept{}, fmt.Errorf("cannot open the slots' store %q: %w", c.Store, err)
	}
	if k.Loader, err = d.openLoader(c, esp, vars); err != nil {
		return Kept{}, fmt.Errorf("cannot open the boot loader %q: %w", c.Loader, err)
	}
	return k, nil
}

func (d *Disk) openStore(c Choice, esp ESP, vars efi.Vars) (slots.Store, error) {
	switch c.Store {
	case "", StoreGPT:
		return d.Store(), nil
	case StoreBLS:
		return d.openBLS(esp, vars)
	}
	names, err := d.slotNames()
	if err != nil {
		return nil, err
	}
	switch c.Store {
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
		return fixed.Store{Name: names[0]}, nil
	}
	return nil, ErrUnsupported
}

// slotNames are the names of the slots that the disk has, in their order.
func (d *Disk) slotNames() ([]string, error) {
	list, err := d.Table.Slots()
	if err == nil && len(list) == 0 {
		err = slots.ErrNoSlot
	}
	var names []string
	for _, s := range list {
		names = append(names, s.Name)
	}
	return names, err
}

// openLoader returns a nil interface when nobody takes hints: also on firmware
// without variables, where a boot of a committed slot goes on.
func (d *Disk) openLoader(c Choice, esp ESP, vars efi.Vars) (slots.Loader, error) {
	switch c.Loader {
	case LoaderGRUB:
		if c.Direct {
			return nil, nil
		}
		return GrubHint{ESP: esp}, nil
	case LoaderUKI, LoaderSystemdBoot:
		if c.Direct || vars == nil {
			return nil, nil
		}
		if c.Loader == LoaderUKI {
			return d.EFIHint(vars)
		}
		return d.openSystemdBoot(esp, vars)
	}
	return nil, ErrUnsupported
}
