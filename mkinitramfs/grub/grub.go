// Package grub puts GRUB for BIOS onto a disk image without root rights or loop
// devices, and writes its configuration.
//
// GRUB only follows a one-shot hint here; it counts nothing and has no menu.
// Its configuration is inside the core image, not on a file system, so that an
// update of a slot cannot break it.
package grub

import (
	"archive/tar"
	"bytes"
	"context"
	"embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"sealroot/mkinitramfs/tools"
)

// ErrInput means that GRUB cannot be set up as asked.
var ErrInput = errors.New("unusable for GRUB")

//go:embed grub.cfg
var files embed.FS

// Config returns grub.cfg. cmdline is what the kernel gets besides the words
// that GRUB adds; slots are the names of the slots, the one first that is
// started when grubenv names none.
func Config(cmdline string, slots ...string) ([]byte, error) {
	if len(slots) == 0 {
		return nil, fmt.Errorf("cannot write grub.cfg without a slot: %w", ErrInput)
	}
	for _, s := range slots {
		if len(s) != 1 || s[0] < 'a' || s[0] > 'z' {
			return nil, fmt.Errorf("cannot put slot %q into grub.cfg: %w", s, ErrInput)
		}
	}
	var words string
	for _, w := range strings.Fields(cmdline) {
		// Inside single quotes GRUB knows no other special character.
		if strings.ContainsFunc(w, func(c rune) bool { return c < ' ' || c > '~' || c == '\'' }) {
			return nil, fmt.Errorf("cannot put kernel parameter %q into grub.cfg: %w", w, ErrInput)
		}
		words += " '" + w + "'"
	}
	text, err := files.ReadFile("grub.cfg")
	if err != nil {
		return nil, fmt.Errorf("cannot read grub.cfg: %w", err)
	}
	replace := strings.NewReplacer("@SLOTS@", strings.Join(slots, " "), "@FIRST@", slots[0], " @CMDLINE@", words)
	return []byte(replace.Replace(string(text))), nil
}

// coreModules are the GRUB modules inside the core image: what grub.cfg uses,
// and nothing that reads other file systems.
func coreModules() []string {
	return []string{
		"biosdisk", "part_gpt", "fat", "memdisk", "tar", "normal", "configfile",
		"test", "regexp", "probe", "loadenv", "linux", "echo", "sleep", "reboot",
		"serial", "terminal", "boot",
	}
}

// Images is what goes onto the disk.
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

// Build makes the core image with cfg inside.
func Build(ctx context.Context, run tools.Runner, cfg []byte, workDir string) (Images, error) {
	dir, err := run.Data(tools.GRUBDir)
	if err != nil {
		return Images{}, err
	}
	boot, err := os.ReadFile(filepath.Join(dir, "boot.img"))
	if err != nil {
		return Images{}, fmt.Errorf("cannot read GRUB's boot sector: %w", err)
	}
	memdisk, err := tarOf("grub/grub.cfg", cfg)
	if err != nil {
		return Images{}, err
	}
	memdiskPath, corePath := filepath.Join(workDir, "grub-memdisk.tar"), filepath.Join(workDir, "grub-core.img")
	if err := os.WriteFile(memdiskPath, memdisk, 0o644); err != nil {
		return Images{}, fmt.Errorf("cannot write GRUB's memory disk: %w", err)
	}
	// -m sets a prefix of its own, so -p has to follow it.
	args := append([]string{"-O", "i386-pc", "-d", dir, "-m", memdiskPath, "-p", "(memdisk)/grub", "-o", corePath}, coreModules()...)
	if err := run.Run(ctx, nil, "grub-mkimage", args...); err != nil {
		return Images{}, err
	}
	core, err := os.ReadFile(corePath)
	if err != nil {
		return Images{}, fmt.Errorf("cannot read GRUB's core image: %w", err)
	}
	if rest := len(core) % sector; rest != 0 {
		core = append(core, make([]byte, sector-rest)...)
	}
	if len(boot) != sector || len(core) < 2*sector {
		return Images{}, fmt.Errorf("cannot use GRUB images of %d and %d bytes: %w", len(boot), len(core), ErrInput)
	}
	return Images{Boot: boot, Core: core}, nil
}

// tarOf returns a tar archive with one file.
func tarOf(name string, content []byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg, Format: tar.FormatUSTAR})
	if err == nil {
		_, err = w.Write(content)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("cannot make GRUB's memory disk: %w", err)
	}
	return b.Bytes(), nil
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
