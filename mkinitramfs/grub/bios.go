package grub

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"sealroot/mkinitramfs/tools"
)

// Images is what GRUB for BIOS puts onto the disk.
type Images struct {
	Boot []byte // boot.img, 512 bytes: code of the first sector
	Core []byte // core.img, a multiple of 512 bytes
}

const (
	sector = 512
	// bootCode is how much of the first sector is code; a disk signature and
	// the protective partition table follow.
	bootCode = 440
)

// BIOS makes GRUB for BIOS with cfg inside.
func BIOS(ctx context.Context, run tools.Runner, cfg []byte, workDir string) (Images, error) {
	dir, err := run.Data(tools.GRUBDir)
	if err != nil {
		return Images{}, err
	}
	boot, err := os.ReadFile(filepath.Join(dir, "boot.img"))
	if err != nil {
		return Images{}, fmt.Errorf("cannot read GRUB's boot sector: %w", err)
	}
	core, err := mkimage(ctx, run, "i386-pc", dir, cfg, modules("biosdisk", "serial", "terminal"), workDir)
	if err != nil {
		return Images{}, err
	}
	if rest := len(core) % sector; rest != 0 {
		core = append(core, make([]byte, sector-rest)...)
	}
	if len(boot) != sector || len(core) < 2*sector {
		return Images{}, fmt.Errorf("cannot use GRUB images of %d and %d bytes: %w", len(boot), len(core), ErrInput)
	}
	return Images{Boot: boot, Core: core}, nil
}

// Embed writes GRUB to a disk of 512-byte sectors whose BIOS boot partition
// begins at firstLBA and has the given number of sectors. Addresses are where
// GRUB 2.06 has them: grub-core/boot/i386/pc/{boot,diskboot}.S and
// include/grub/i386/pc/boot.h.
func (im Images) Embed(disk io.WriterAt, firstLBA, sectors uint64) error {
	n := uint64(len(im.Core) / sector)
	if n > sectors || n-1 > 0xffff {
		return fmt.Errorf("cannot put GRUB's %d sectors into a BIOS boot partition of %d: %w", n, sectors, ErrInput)
	}
	boot, core := bytes.Clone(im.Boot), bytes.Clone(im.Core)
	binary.LittleEndian.PutUint64(boot[0x5c:], firstLBA)
	// Two no-operations instead of a jump: trust the BIOS's drive number in DL.
	// grub-install does the same for hard disks.
	boot[0x66], boot[0x67] = 0x90, 0x90
	// The first sector of the core loads the others: one block list entry.
	binary.LittleEndian.PutUint64(core[0x1f4:], firstLBA+1)
	binary.LittleEndian.PutUint16(core[0x1fc:], uint16(n-1))
	if _, err := disk.WriteAt(core, int64(firstLBA)*sector); err != nil {
		return fmt.Errorf("cannot write GRUB's core image: %w", err)
	}
	if _, err := disk.WriteAt(boot[:bootCode], 0); err != nil {
		return fmt.Errorf("cannot write GRUB's boot sector: %w", err)
	}
	return nil
}
