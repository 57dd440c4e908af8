// Package grub makes GRUB for BIOS and for UEFI without root rights or loop
// devices, and writes its configuration, which is the same for both.
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
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sealroot/mkinitramfs/tools"
)

// ErrInput means that GRUB cannot be set up as asked.
var ErrInput = errors.New("unusable for GRUB")

//go:embed grub.cfg
var files embed.FS

// Settings are what grub.cfg depends on.
type Settings struct {
	// Slots are the names of the slots, the one first that is started when
	// grubenv names none.
	Slots []string
	// Cmdline is what the kernel gets besides the words that GRUB adds.
	Cmdline string
	// OneBoot are variables in grubenv that GRUB clears when one is set, so that
	// they last for one boot.
	OneBoot []string
}

// Config returns grub.cfg.
func Config(s Settings) ([]byte, error) {
	if len(s.Slots) == 0 {
		return nil, fmt.Errorf("cannot write grub.cfg without a slot: %w", ErrInput)
	}
	known := make([]string, len(s.Slots))
	for i, slot := range s.Slots {
		if len(slot) != 1 || slot[0] < 'a' || slot[0] > 'z' {
			return nil, fmt.Errorf("cannot put slot %q into grub.cfg: %w", slot, ErrInput)
		}
		known[i] = `"$slot" = ` + slot
	}
	var words, more, values, unset string
	for _, w := range strings.Fields(s.Cmdline) {
		// Inside single quotes GRUB knows no other special character.
		if strings.ContainsFunc(w, func(c rune) bool { return c < ' ' || c > '~' || c == '\'' }) {
			return nil, fmt.Errorf("cannot put kernel parameter %q into grub.cfg: %w", w, ErrInput)
		}
		words += " '" + w + "'"
	}
	for _, v := range s.OneBoot {
		if v == "" || strings.Trim(v, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_") != "" {
			return nil, fmt.Errorf("cannot put variable %q into grub.cfg: %w", v, ErrInput)
		}
		more, values, unset = more+" "+v, values+" $"+v, unset+"  "+v+"=\n"
	}
	text, err := files.ReadFile("grub.cfg")
	if err != nil {
		return nil, fmt.Errorf("cannot read grub.cfg: %w", err)
	}
	replace := strings.NewReplacer("@SLOTS@", strings.Join(s.Slots, " "), "@KNOWN@", strings.Join(known, " -o "),
		" @CMDLINE@", words, "@MORE@", more, "@VALUES@", values, "@UNSET@", unset)
	return []byte(replace.Replace(string(text))), nil
}

// modules are the GRUB modules inside every core image: what grub.cfg uses, and
// nothing that reads other file systems.
func modules(platform ...string) []string {
	return append([]string{
		"part_gpt", "fat", "memdisk", "tar", "normal", "configfile", "test", "regexp",
		"probe", "loadenv", "linux", "echo", "sleep", "reboot", "boot",
	}, platform...)
}

// mkimage makes a core image with cfg inside.
func mkimage(ctx context.Context, run tools.Runner, format, dir string, cfg []byte, modules []string, workDir string) ([]byte, error) {
	memdisk, err := tarOf("grub/grub.cfg", cfg)
	if err != nil {
		return nil, err
	}
	memdiskPath, corePath := filepath.Join(workDir, "grub-memdisk.tar"), filepath.Join(workDir, "grub-core-"+format)
	if err := os.WriteFile(memdiskPath, memdisk, 0o644); err != nil {
		return nil, fmt.Errorf("cannot write GRUB's memory disk: %w", err)
	}
	// -m sets a prefix of its own, so -p has to follow it.
	args := append([]string{"-O", format, "-d", dir, "-m", memdiskPath, "-p", "(memdisk)/grub", "-o", corePath}, modules...)
	if err := run.Run(ctx, nil, "grub-mkimage", args...); err != nil {
		return nil, err
	}
	core, err := os.ReadFile(corePath)
	if err != nil {
		return nil, fmt.Errorf("cannot read GRUB's core image: %w", err)
	}
	return core, nil
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
