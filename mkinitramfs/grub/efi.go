package grub

import (
	"context"

	"sealroot/mkinitramfs/tools"
)

// EFI makes GRUB for UEFI with cfg inside: one EFI program. Its module tpm
// measures commands into PCR 8 and files into PCR 9. It is not signed: with
// Secure Boot on, GRUB loads only what shim vouches for, which is not here.
func EFI(ctx context.Context, run tools.Runner, cfg []byte, workDir string) ([]byte, error) {
	dir, err := run.Data(tools.GRUBEFIDir)
	if err != nil {
		return nil, err
	}
	return mkimage(ctx, run, "x86_64-efi", dir, cfg, modules("terminal", "tpm"), workDir)
}
