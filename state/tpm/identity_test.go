package tpm_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"sealroot/state/tpm"
)

// The record of the volume is written before the cap only, read after it too, and
// tpm2_nvread shows it. What else the owner of the TPM puts in its place is tried
// with the floor, which is kept in the same way.
func TestIdentityPin(t *testing.T) {
	m, chip, policy, sigs := floorMachine(t)
	pin := tpm.IdentityPin(policy)
	id, other := []byte(volume), bytes.Repeat([]byte{7}, len(volume))
	read := func(when string, want []byte, wantErr error) {
		t.Helper()
		if got, err := chip.ReadPinned(t.Context(), pin); !bytes.Equal(got, want) || !errors.Is(err, wantErr) || wantErr == nil && err != nil {
			t.Errorf("%s: ReadPinned = %x, %v, want %x, %v", when, got, err, want, wantErr)
		}
	}
	read("new TPM", nil, tpm.ErrUnpinned)
	for _, want := range [][]byte{other, id} {
		if err := chip.WritePinned(t.Context(), pin, sigs, want); err != nil {
			t.Fatal(err)
		}
		read("pinned", want, nil)
	}
	dir := t.TempDir()
	m.MustRun(dir, "tpm2_nvread", "0x1c05ea3", "-C", "0x1c05ea3", "-o", "record")
	if got, err := os.ReadFile(filepath.Join(dir, "record")); err != nil || !bytes.Equal(got, id) {
		t.Errorf("tpm2_nvread says %q, %v", got, err)
	}
	if err := chip.RaiseFloor(t.Context(), policy, sigs, floorOf(3)); err != nil {
		t.Fatal(err)
	}
	read("beside a floor", id, nil)
	m.Reset()
	boot(t, chip)
	if _, err := chip.Cap(t.Context(), nil, 11, 15); err != nil {
		t.Fatal(err)
	}
	if err := chip.WritePinned(t.Context(), pin, sigs, other); !errors.Is(err, tpm.ErrPCRsChanged) {
		t.Errorf("WritePinned after the cap: %v, want ErrPCRsChanged", err)
	}
	read("after the cap", id, nil)
	m.MustRun("", "tpm2_nvundefine", "0x1c05ea3", "-C", "o")
	read("undefined", nil, tpm.ErrUnpinned)
}
