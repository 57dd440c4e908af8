package efi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"sealroot/slots/esp"
)

const (
	compareChunk = 256 << 10
	// maxImage bounds what is read of a file that says it is a kernel image.
	maxImage = 1 << 30
)

// FallbackSlots returns the slots, in order, whose unified kernel image is byte
// for byte EFI/BOOT/BOOTX64.EFI. There is none when that is a boot loader, and
// more than one when a slot was copied to another. fsys is the EFI system
// partition. Files of another size are not read.
func FallbackSlots(fsys fs.FS) ([]string, error) {
	info, err := fs.Stat(fsys, esp.Fallback)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot compare %s: %w", esp.Fallback, err)
	}
	files, err := fs.ReadDir(fsys, esp.LinuxDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot list %s: %w", esp.LinuxDir, err)
	}
	var found []string
	for _, f := range files {
		slot, _, ok := esp.ParseUKIName(f.Name())
		if !ok || !f.Type().IsRegular() || slices.Contains(found, slot) {
			continue
		}
		other, err := f.Info()
		if err != nil || other.Size() != info.Size() || other.Size() > maxImage {
			continue
		}
		same, err := sameFile(fsys, esp.Fallback, esp.LinuxDir+"/"+f.Name())
		if err != nil {
			return nil, fmt.Errorf("cannot compare %s with %s: %w", esp.Fallback, f.Name(), err)
		}
		if same {
			found = append(found, slot)
		}
	}
	slices.Sort(found)
	return found, nil
}

func sameFile(fsys fs.FS, a, b string) (same bool, err error) {
	fa, err := fsys.Open(a)
	if err != nil {
		return false, err
	}
	defer fa.Close()
	fb, err := fsys.Open(b)
	if err != nil {
		return false, err
	}
	defer fb.Close()
	ra, rb := io.LimitReader(fa, maxImage), io.LimitReader(fb, maxImage)
	bufA, bufB := make([]byte, compareChunk), make([]byte, compareChunk)
	for {
		n, errA := io.ReadFull(ra, bufA)
		m, errB := io.ReadFull(rb, bufB)
		if err := errors.Join(broken(errA), broken(errB)); err != nil {
			return false, err
		}
		if !bytes.Equal(bufA[:n], bufB[:m]) {
			return false, nil
		}
		if errA != nil || errB != nil {
			return true, nil // equal to the end of both
		}
	}
}

// broken keeps the errors of io.ReadFull that are not the end of the file.
func broken(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
