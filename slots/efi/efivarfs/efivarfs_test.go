package efivarfs

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"sealroot/slots/efi"
	"sealroot/slots/guid"
)

func TestFilesOfVariables(t *testing.T) {
	root := t.TempDir()
	d := Dir(root)
	if _, err := d.Read("BootNext", efi.Global); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist", err)
	}
	if err := d.Write("BootOrder", efi.Global, 7, []byte{1, 0, 2, 0}); err != nil {
		t.Fatal(err)
	}
	if err := d.Write("BootOrder", efi.Global, 7, []byte{3, 0}); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(root, "BootOrder-8be4df61-93ca-11d2-aa0d-00e098032b8c"))
	if want := []byte{7, 0, 0, 0, 3, 0}; err != nil || !bytes.Equal(raw, want) {
		t.Errorf("file: got %x, %v, want %x", raw, err, want)
	}
	if b, err := d.Read("BootOrder", efi.Global); err != nil || !bytes.Equal(b, []byte{3, 0}) {
		t.Errorf("got %x, %v", b, err)
	}
	if names, err := d.List(efi.Global); err != nil || !slices.Equal(names, []string{"BootOrder"}) {
		t.Errorf("got %v, %v", names, err)
	}
	if names, err := d.List(efi.Systemd); err != nil || names != nil {
		t.Errorf("other vendor: got %v, %v", names, err)
	}
	if err := d.Delete("BootOrder", efi.Global); err != nil {
		t.Fatal(err)
	}
	if err := d.Delete("BootOrder", efi.Global); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("deleted twice: got %v, want ErrNotExist", err)
	}
}

func TestShortVariable(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "SecureBoot-"+efi.Global), []byte{6, 0}, 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := Dir(root).Read("SecureBoot", efi.Global); !errors.Is(err, efi.ErrFormat) || b != nil {
		t.Errorf("got %x, %v, want ErrFormat", b, err)
	}
}

func TestHintThroughFiles(t *testing.T) {
	h := efi.Hint{Vars: Dir(t.TempDir()), ESP: efi.Partition{Number: 2, Start: 4096, Size: 8192, UUID: guid.Must(efi.Systemd)}}
	if err := h.Arm("b"); err != nil {
		t.Fatal(err)
	}
	if got, err := h.Get(); err != nil || got != "b" {
		t.Errorf("got %q, %v, want b", got, err)
	}
	if err := h.Clear(); err != nil {
		t.Fatal(err)
	}
	if got, err := h.Get(); err != nil || got != "" {
		t.Errorf("after Clear: got %q, %v", got, err)
	}
}
