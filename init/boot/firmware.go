package boot

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"sealroot/slots"
	"sealroot/slots/efi"
	"sealroot/slots/efi/efivarfs"
	espnames "sealroot/slots/esp"
	"sealroot/slots/live"
)

const efivarsDir = "/sys/firmware/efi/efivars"

// readEFI fills in what the EFI variables say. They are hints: the disk that
// they name still has to hold a root that our certificates vouch for.
func (b *boot) readEFI() {
	vars := efivarfs.Dir(efivarsDir)
	var err error
	if b.fw.SecureBoot, err = efi.SecureBoot(vars); err != nil {
		b.warn("%v", err)
	}
	if setup, err := efi.SetupMode(vars); err == nil && setup {
		b.fw.SecureBoot = false
	}
	if pcr, err := efi.StubPCR(vars); err != nil {
		b.warn("%v", err)
	} else {
		b.fw.Stub = pcr != ""
	}
	esp, err := efi.LoaderPartition(vars)
	switch {
	case err == nil:
		b.fw.ESP = esp.String()
	case !errors.Is(err, fs.ErrNotExist):
		b.warn("%v", err)
	}
}

// efiVars are the firmware's variables; nil without UEFI.
func (b *boot) efiVars() efi.Vars {
	if !b.fw.Vars {
		return nil
	}
	return efivarfs.Dir(efivarsDir)
}

// keepers opens the store of the slots and the loader that takes hints, as the
// configuration has them.
func (b *boot) keepers(ctx context.Context, loaded efi.Loaded) (live.Kept, error) {
	c := live.Choice{
		Store: string(b.cfg.Boot.Store), Loader: string(b.cfg.Boot.Loader), UEFI: b.fw.Vars,
		// A virtual machine loads a kernel directly: nobody reads hints then.
		Direct:       loaded.From == "",
		Discoverable: b.discoverable(),
		Refill:       b.refill(),
	}
	if b.grub() {
		c.Direct = b.cmd.Slot == "" || b.cmd.DiskUUID == ""
	}
	if c.Store != live.StoreGPT && c.Store != live.StoreFixed {
		b.loadHints(ctx) // it lies on the ESP or in the firmware
	}
	return b.disk.Open(c, b.esp(), b.efiVars())
}

// refill is how many tries a commit gives, with boot.recount; 0 without.
func (b *boot) refill() int {
	if !b.cfg.Boot.Recount {
		return 0
	}
	return b.cfg.Boot.Tries
}

func (b *boot) esp() live.ESP {
	return live.ESP{Disk: b.disk, Mounter: b.sys.Mounter, Dir: espDir}
}

// whoLoaded finds the slot whose kernel runs, as slots.Observed has it. compare
// says that EFI/BOOT/BOOTX64.EFI was started, and that the slot is a question of
// its bytes, which are read only when the answer matters.
func whoLoaded(l efi.Loaded) (slot string, compare bool) {
	switch {
	case l.Kind == efi.KnownSlot:
		return l.Slot, false
	case l.Kind == efi.FallbackFile:
		return "", true
	case l.From != "":
		return slots.UnknownKernel, false
	}
	return "", false
}

// compareFallback finds the slot that EFI/BOOT/BOOTX64.EFI is a copy of. Where
// it is a copy of two, the kernel is the own one of both: the first choice of
// the slots is named.
func (b *boot) compareFallback(ctx context.Context) {
	s := &b.slots
	if !s.compare {
		return
	}
	s.compare = false
	b.loadHints(ctx)
	var same []string
	err := b.esp().With(false, func(dir string) (err error) {
		same, err = efi.FallbackSlots(os.DirFS(dir))
		return err
	})
	if err != nil {
		b.warn("%v", err)
		return // nobody told: as with a loader that names nothing
	}
	s.observed.Loaded = slots.UnknownKernel
	for _, name := range same {
		first := s.observed.Loaded == slots.UnknownKernel
		this, _ := slots.Find(s.observed.Slots, name)
		other, _ := slots.Find(s.observed.Slots, s.observed.Loaded)
		if first || this.Bootable() && this.Priority > other.Priority {
			s.observed.Loaded = name
		}
	}
	b.sys.Log.Info("the firmware started %s, the kernel of slot %s", espnames.Fallback, s.observed.Loaded)
}
