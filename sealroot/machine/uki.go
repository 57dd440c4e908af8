package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"sealroot/slots/efi"
	"sealroot/slots/esp"
)

// espDir is the ESP, mounted only while use runs.
type espDir interface {
	With(write bool, use func(dir string) error) error
}

// errSharedFile: the leftover of an exchange may share blocks with the file that
// is started; deleting it would free them.
var errSharedFile = errors.New("the EFI system partition needs fsck.vfat")

// fallbackFile is EFI/BOOT/BOOTX64.EFI, what firmware without boot entries
// starts: a copy of the committed slot's unified kernel image.
type fallbackFile struct{ dir espDir }

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
// it, synced, read back, exchanged by renameat2(RENAME_EXCHANGE, vfat has it
// since Linux 6.0), synced, and the old one deleted. A plain rename would free
// the old file's blocks in the same breath, and FAT has no journal. A cut
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

func replaceFallback(dir, slot string) (err error) {
	fallback, temp := filepath.Join(dir, esp.Fallback), filepath.Join(dir, esp.FallbackTemp)
	if err := removeLeftover(temp, fallback); err != nil {
		return err
	}
	if err := copyVerified(filepath.Join(dir, esp.UKI(slot)), temp); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	if _, err := os.Lstat(fallback); errors.Is(err, fs.ErrNotExist) {
		if err := os.Rename(temp, fallback); err != nil {
			return err
		}
		return syncFS(dir)
	}
	if err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, fallback, unix.RENAME_EXCHANGE); err != nil {
		return errors.Join(fmt.Errorf("cannot exchange %s: %w", esp.Fallback, err), os.Remove(temp))
	}
	if err := syncFS(dir); err != nil {
		return err
	}
	if err := os.Remove(temp); err != nil {
		return err
	}
	return syncFS(dir)
}

// removeLeftover deletes what a power cut left. Its content is never that of
// the file that is started, unless both names came to point to the same blocks.
func removeLeftover(temp, fallback string) error {
	left, err := os.Open(temp)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer left.Close()
	now, err := os.Open(fallback)
	if err == nil {
		defer now.Close()
		same, err := sameContent(left, now)
		if err != nil {
			return err
		}
		if same {
			return fmt.Errorf("cannot delete %s, which a power cut left: %w", esp.FallbackTemp, errSharedFile)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Remove(temp)
}
