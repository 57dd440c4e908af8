package live

import (
	"errors"
	"fmt"

	"sealroot/slots"
	"sealroot/slots/efi"
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
	// Discoverable: the disk is one that systemd-repart or mkosi made. Its kernel
	// images are no slot's own: they find their root among the partitions.
	Discoverable bool
	Refill       int // tries that a commit gives, with boot.recount; 0 without
}

// OwnKernels says that each slot has a kernel of its own, which somebody loads
// who takes hints.
func (c Choice) OwnKernels() bool { return !c.Direct && !c.Discoverable }

// Kept is where the slots are kept and who is told what to start.
type Kept struct {
	Store slots.Store
	// Loader takes the one-shot and the default; nil: nobody does.
	Loader slots.Loader
}

// fallbackTeller is a store with a word for a fallback.
type fallbackTeller interface{ TellFallback() error }

// TellFallback tells those who read the store's own variables that this boot is
// a fallback, where the store has a word for it (BOOT_FELL_BACK of darch's
// author). It is called in the boot that tells the fallback; the boot loader
// takes the word back at its next start.
func (k Kept) TellFallback() error {
	if t, ok := k.Store.(fallbackTeller); ok {
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
	if c.Store == "" || c.Store == StoreGPT {
		return d.Store(), nil
	}
	return d.openOtherStore(c, esp, vars)
}

// openLoader returns a nil interface when nobody takes hints: also on firmware
// without variables, where a boot of a committed slot goes on.
func (d *Disk) openLoader(c Choice, esp ESP, vars efi.Vars) (slots.Loader, error) {
	switch c.Loader {
	case LoaderGRUB:
		if !c.OwnKernels() {
			return nil, nil
		}
		return GrubHint{ESP: esp}, nil
	case LoaderUKI, LoaderSystemdBoot:
		if !c.OwnKernels() || vars == nil {
			return nil, nil
		}
		if c.Loader == LoaderUKI {
			return d.EFIHint(vars)
		}
		return d.openSystemdBoot(esp, vars) // ErrUnsupported in a minimal build
	}
	return nil, ErrUnsupported
}
