// Package efivarfs is the access to EFI variables through the kernel's efivarfs
// (Documentation/filesystems/efivarfs.rst): one file per variable,
// <name>-<vendor>, whose content begins with the four attribute bytes.
package efivarfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/slots/efi"
)

// maxVariable bounds what is read; the kernel's own limit is lower.
const maxVariable = 128 << 10

// immutable is FS_IMMUTABLE_FL of the kernel's include/uapi/linux/fs.h.
const immutable = 0x10

// Dir is where efivarfs is mounted, usually /sys/firmware/efi/efivars.
type Dir string

var _ efi.Vars = Dir("")

func (d Dir) file(name, vendor string) string { return filepath.Join(string(d), name+"-"+vendor) }

// Read returns a variable without its attributes.
func (d Dir) Read(name, vendor string) ([]byte, error) {
	info, err := os.Stat(d.file(name, vendor))
	if err != nil {
		return nil, fmt.Errorf("cannot read EFI variable %s: %w", name, err)
	}
	if info.Size() > maxVariable {
		return nil, fmt.Errorf("cannot read EFI variable %s: %w", name, efi.ErrFormat)
	}
	b, err := os.ReadFile(d.file(name, vendor))
	if err != nil {
		return nil, fmt.Errorf("cannot read EFI variable %s: %w", name, err)
	}
	if len(b) < 4 || len(b) > maxVariable {
		return nil, fmt.Errorf("cannot read EFI variable %s: %w", name, efi.ErrFormat)
	}
	return b[4:], nil
}

// Write sets a variable, in one write as efivarfs demands.
func (d Dir) Write(name, vendor string, attributes uint32, data []byte) error {
	path := d.file(name, vendor)
	if err := mutable(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot write EFI variable %s: %w", name, err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("cannot write EFI variable %s: %w", name, err)
	}
	_, err = f.Write(append(binary.LittleEndian.AppendUint32(nil, attributes), data...))
	if err == nil {
		// efivarfs sets the size itself; on another file system it stays long
		err = truncate(f, int64(4+len(data)))
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("cannot write EFI variable %s: %w", name, err)
	}
	return nil
}

// truncate shortens a regular file that is longer than n. In efivarfs the size
// is right after the write and truncation is refused.
func truncate(f *os.File, n int64) error {
	info, err := f.Stat()
	if err != nil || info.Size() <= n {
		return err
	}
	return f.Truncate(n)
}

// Delete removes a variable.
func (d Dir) Delete(name, vendor string) error {
	path := d.file(name, vendor)
	err := mutable(path)
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		return fmt.Errorf("cannot delete EFI variable %s: %w", name, err)
	}
	return nil
}

// List returns the names of the vendor's variables, sorted.
func (d Dir) List(vendor string) ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, fmt.Errorf("cannot list the EFI variables: %w", err)
	}
	var out []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), "-"+vendor); ok {
			out = append(out, name)
		}
	}
	return out, nil
}

// mutable clears the immutable flag that efivarfs sets on variables it does not
// know to be harmless. File systems without such flags need nothing.
func mutable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read the flags: %w", err)
	}
	if flags&immutable == 0 {
		return nil
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable); err != nil {
		return fmt.Errorf("cannot clear the immutable flag: %w", err)
	}
	return nil
}
