package boot

import (
	"errors"
	"io/fs"

	"sealroot/init/config"
	"sealroot/slots"
	"sealroot/slots/efi"
	"sealroot/slots/efi/efivarfs"
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

// bootHint is the one-shot of whoever loaded the kernel; nil when nobody takes
// one, as with a kernel that a virtual machine loads directly.
func (b *boot) bootHint() slots.Hint {
	switch b.cfg.Boot.Loader {
	case config.LoaderUKI:
		if b.fw.EFI && b.cmd.Slot != "" {
			hint, err := b.disk.EFIHint(efivarfs.Dir(efivarsDir))
			if err == nil {
				return hint
			}
			b.warn("%v", err)
		}
	case config.LoaderGRUB:
		if b.cmd.Slot != "" && b.cmd.DiskUUID != "" {
			return live.GrubHint{ESP: live.ESP{Disk: b.disk, Mounter: b.sys.Mounter, Dir: espDir}}
		}
	}
	return nil
}
