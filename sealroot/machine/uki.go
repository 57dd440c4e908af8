package machine

import (
	"bytes"
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// errRoom: the ESP holds two images of a slot and one being written.
var errVerify = errors.New("what was written does not read back")

// espDir is the ESP, mounted only while use runs.
type espDir interface {
	With(write bool, use func(dir string) error) error
}

const (
	fallbackPath = "EFI/BOOT/BOOTX64.EFI"
	// fallbackTemp has a name of 8.3 characters: one directory entry, no long name.
	fallbackTemp = "EFI/BOOT/BOOTX64.NEW"
)

func imagePath(slot string) string { return "EFI/Linux/sealroot-" + slot + ".efi" }

// fallbackFile is EFI/BOOT/BOOTX64.EFI, what firmware without boot entries
// starts: a copy of the committed slot's unified kernel image.
type fallbackFile struct{ esp espDir }

// Name names the file.
func (fallbackFile) Name() string { return fallbackPath }

// IsDefault compares the file with the slot's image. A file that is no unified
// kernel image is a boot loader of somebody else, which stays; so does a disk
// whose slot has no such image.
func (f fallbackFile) IsDefault(slot string) (right bool, err error) {
	err = f.esp.With(false, func(dir string) error {
		image, err := os.Open(filepath.Join(dir, imagePath(slot)))
		if errors.Is(err, fs.ErrNotExist) {
			right = true // this slot is not started by UEFI
			return nil
		}
		if err != nil {
			return err
		}
		defer image.Close()
		now, err := os.Open(filepath.Join(dir, fallbackPath))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer now.Close()
		if !isUKI(now) {
			right = true
			return nil
		}
		right, err = sameContent(image, now)
		return err
	})
	return right && err == nil, err
}

// SetDefault exchanges the file for a copy of the slot's image: written beside
// it, synced, read back, renamed over it. On FAT the rename rewrites the
// target's one directory entry; a power cut leaves the old file or the new one,
// and at worst a second name for the new one, which the next exchange takes.
func (f fallbackFile) SetDefault(slot string) error {
	return f.esp.With(true, func(dir string) error {
		temp := filepath.Join(dir, fallbackTemp)
		// A leftover may share its blocks with the file that is started, after a
		// cut in the rename: it is unlinked only when it has another content.
		if err := removeLeftover(temp, filepath.Join(dir, fallbackPath)); err != nil {
			return err
		}
		err := copyVerified(filepath.Join(dir, imagePath(slot)), temp)
		if err == nil {
			err = os.Rename(temp, filepath.Join(dir, fallbackPath))
		}
		if err != nil {
			return errors.Join(err, remove(temp))
		}
		return syncFS(dir)
	})
}
