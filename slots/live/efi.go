package live

import (
	"fmt"

	"sealroot/slots/efi"
	"sealroot/slots/gpt"
)

// EFIHint is the one-shot of the firmware itself, BootNext.
func (d *Disk) EFIHint(vars efi.Vars) (efi.Hint, error) {
	esp, err := d.Table.ByName(gpt.LabelESP)
	if err != nil {
		return efi.Hint{}, fmt.Errorf("cannot find the EFI system partition of %s: %w", d.Block.Node, err)
	}
	return efi.Hint{Vars: vars, ESP: efi.Partition{
		Number: uint32(esp.Number), Start: esp.First, Size: esp.Last - esp.First + 1, UUID: esp.UUID,
	}}, nil
}
