package efi

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"sealroot/slots/guid"
)

// LoaderPartition is the UUID of the partition that the boot loader or the
// stub was started from. An error with fs.ErrNotExist when no loader said it.
func LoaderPartition(v Vars) (guid.GUID, error) {
	text, err := readText(v, "LoaderDevicePartUUID", Systemd)
	if err != nil {
		return guid.GUID{}, err
	}
	g, err := guid.Parse(text)
	if err != nil {
		return guid.GUID{}, fmt.Errorf("cannot read LoaderDevicePartUUID: %w: %w", ErrFormat, err)
	}
	return g, nil
}

// SecureBoot says that the firmware verifies what it starts. A missing
// variable is false: firmware without it does not verify.
func SecureBoot(v Vars) (bool, error) { return readFlag(v, "SecureBoot") }

// SetupMode says that anyone may enrol keys.
func SetupMode(v Vars) (bool, error) { return readFlag(v, "SetupMode") }

// StubPCR is the PCR that the stub measured the unified kernel image into, "11";
// "" when no stub did.
func StubPCR(v Vars) (string, error) {
	s, err := readText(v, "StubPcrKernelImage", Systemd)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return s, err
}

func readFlag(v Vars, name string) (bool, error) {
	b, err := v.Read(name, Global)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot read %s: %w", name, err)
	}
	if len(b) != 1 || b[0] > 1 {
		return false, fmt.Errorf("cannot read %s: %w", name, ErrFormat)
	}
	return b[0] == 1, nil
}

func readText(v Vars, name, vendor string) (string, error) {
	b, err := v.Read(name, vendor)
	if err != nil {
		return "", fmt.Errorf("cannot read %s: %w", name, err)
	}
	if len(b) > 4096 || len(b)%2 != 0 {
		return "", fmt.Errorf("cannot read %s: %w", name, ErrFormat)
	}
	s, _, _ := cutText(append(b[:len(b):len(b)], 0, 0)) // the final NUL may be missing
	return strings.TrimSpace(s), nil
}
