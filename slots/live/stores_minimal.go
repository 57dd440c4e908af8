//go:build minimal

package live

import (
	"sealroot/slots"
	"sealroot/slots/efi"
)

// A minimal build keeps slots in the partition table and is started by GRUB or
// as a unified kernel image; mkinitramfs refuses such an init for anything else.

func (d *Disk) openOtherStore(Choice, ESP, efi.Vars) (slots.Store, error) { return nil, ErrUnsupported }

func (d *Disk) openSystemdBoot(ESP, efi.Vars) (slots.Loader, error) { return nil, ErrUnsupported }
