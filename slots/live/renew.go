package live

import (
	"errors"
	"fmt"
	"io"

	"sealroot/mount/blockdev"
	"sealroot/slots/efi"
	"sealroot/slots/gpt"
)

// ErrNamed: a boot entry of the firmware names the ESP by the GUID that it has.
var ErrNamed = errors.New("the firmware has a boot entry for it")

// Renew gives the disk and its partitions new GUIDs, when it is still fresh, and
// says whether it was. It is for PID 1, before anything of the disk is used: who
// read the table before knows the old ones.
//
// The firmware may be one of them, and start the disk by nothing but an entry that
// an installer made. Entry and table cannot change together, so the disk stays
// fresh then: ErrNamed. vars are nil without UEFI.
func (d *Disk) Renew(random io.Reader, vars efi.Vars) (renewed bool, err error) {
	if !d.Table.Fresh() || d.Block.ReadOnly {
		return false, nil
	}
	if vars != nil {
		esp, err := d.Table.ByName(gpt.LabelESP)
		if err != nil {
			return false, err
		}
		entry, err := efi.EntryNaming(vars, esp.UUID)
		if err != nil {
			return false, err
		}
		if entry != "" {
			return false, fmt.Errorf("%w: %s", ErrNamed, entry)
		}
	}
	err = d.changeTable(func(dev *blockdev.Device, table *gpt.Table) error {
		if renewed = table.Fresh(); !renewed {
			return nil
		}
		return table.Renew(dev, random)
	})
	return renewed && err == nil, err
}
