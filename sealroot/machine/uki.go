package machine

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"sealroot/sealroot/bootset"
	"sealroot/slots/efi"
	"sealroot/slots/esp"
)

// espDir is the ESP, mounted only while use runs.
type espDir interface {
	With(write bool, use func(dir string) error) error
}

// fallbackFile is EFI/BOOT/BOOTX64.EFI, what firmware without boot entries
// starts: a copy of the committed slot's unified kernel image.
type fallbackFile struct{ dir espDir }

var _ bootset.Chooser = fallbackFile{}

// Name names the file.
func (fallbackFile) Name() string { return esp.Fallback }

// IsDefault compares the file with the slot's image. A file that is no unified
// kernel image is somebody's boot loader, which stays; nothing is missing either
// on a disk whose slot has no image for UEFI.
func (f fallbackFile) IsDefault(slot string) (right bool, err error) {
	err = f.dir.With(false, func(dir string) (err error) {
		right, err = sameImage(filepath.Join(dir, esp.UKI(slot)), filepath.Join(dir, esp.Fallback))
		return err
	})
	return right && err == nil, err
}

// Starts says whether the file is a copy of the slot's image.
func (f fallbackFile) Starts(slot string) (bool, error) {
	var same []string
	err := f.dir.With(false, func(dir string) (err error) {
		same, err = efi.FallbackSlots(os.DirFS(dir))
		return err
	})
	return slices.Contains(same, slot), err
}

func sameImage(image, fallback string) (bool, error) {
	want, err := os.Open(image)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer want.Close()
	now, err := os.Open(fallback)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer now.Close()
	if !isUKI(now) {
		return true, nil
	}
	return sameContent(want, now)
}

// SetDefault exchanges the file for a copy of the slot's image: written beside
// it, synced, read back, exchanged, synced, and the old one deleted. A cut
//
//	while writing:      leaves a part of the new file; it is deleted next time
//	in the exchange:    leaves both names as they were or exchanged, as they are
//	                    in one sector; if that fails, both for the same file,
//	                    which is noticed (errSharedFile)
//	before the delete:  leaves the old file; it is deleted next time
//
// The firmware's boot order is set before, so a machine that has one does not
// depend on this file meanwhile.
func (f fallbackFile) SetDefault(slot string) error {
	return f.dir.With(true, func(dir string) error {
		return replaceFallback(dir, slot)
	})
}

func replaceFallback(dir, slot string) error {
	fallback, temp := filepath.Join(dir, esp.Fallback), filepath.Join(dir, esp.FallbackTemp)
	if err := dropLeftover(temp, fallback); err != nil {
		return err
	}
	if err := copyVerified(filepath.Join(dir, esp.UKI(slot)), temp); err != nil {
		return errors.Join(err, removeIfThere(temp))
	}
	if err := exchange(temp, fallback); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	if err := syncFS(dir); err != nil {
		return err
	}
	if err := removeIfThere(temp); err != nil {
		return err
	}
	return syncFS(dir)
}
