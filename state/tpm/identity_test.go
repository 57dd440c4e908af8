package tpm_test

import (
	"bytes"
	"encoding/binary"
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
	id, other := []byte(volume), bytes.Repeat([]byte{7}, len(volume))
	read := func(when string, want []byte, wantErr error) {
		t.Helper()
		if got, err := chip.ReadIdentity(t.Context(), policy); !bytes.Equal(got, want) || !errors.Is(err, wantErr) || wantErr == nil && err != nil {
			t.Errorf("%s: ReadIdentity = %x, %v, want %x, %v", when, got, err, want, wantErr)
		}
	}
	read("new TPM", nil, tpm.ErrUnpinned)
	for _, want := range [][]byte{other, id} {
		if err := chip.WriteIdentity(t.Context(), policy, sigs, want); err != nil {
			t.Fatal(err)
		}
		read("pinned", want, nil)
	}
	dir := t.TempDir()
	m.MustRun(dir, "tpm2_nvread", "0x1c05ea3", "-C", "0x1c05ea3", "-o", "record")
	if got, err := os.ReadFile(filepath.Join(dir, "record")); err != nil || !bytes.Equal(got, append([]byte{0, 0, 0, 2}, id...)) {
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
	if err := chip.WriteIdentity(t.Context(), policy, sigs, other); !errors.Is(err, tpm.ErrPCRsChanged) {
		t.Errorf("WriteIdentity after the cap: %v, want ErrPCRsChanged", err)
	}
	read("after the cap", id, nil)
	m.MustRun("", "tpm2_nvundefine", "0x1c05ea3", "-C", "o")
	read("undefined", nil, tpm.ErrUnpinned)
}

// Two policies have a record each; a third takes the place of the one that was
// written longer ago. One that the owner of the TPM defined is nobody's record,
// whatever number it claims, and is taken for none.
func TestIdentityOfTwoPolicies(t *testing.T) {
	m, chip, policy, _ := floorMachine(t)
	ids := map[int][]byte{}
	of := func(pcr int) tpm.Policy { // met as long as the PCR is zero
		return tpm.Policy{PCRs: []int{pcr}, Bank: policy.Bank, Values: tpm.Values{pcr: nil}}
	}
	pin := func(pcr int, id byte) {
		t.Helper()
		ids[pcr] = bytes.Repeat([]byte{id}, len(volume))
		if err := chip.WriteIdentity(t.Context(), of(pcr), nil, ids[pcr]); err != nil {
			t.Fatal(err)
		}
	}
	known := func(when string, pcrs ...int) {
		t.Helper()
		want := map[int]bool{}
		for _, pcr := range pcrs {
			want[pcr] = true
		}
		for pcr, id := range ids {
			got, err := chip.ReadIdentity(t.Context(), of(pcr))
			if want[pcr] && (err != nil || !bytes.Equal(got, id)) || !want[pcr] && !errors.Is(err, tpm.ErrUnpinned) {
				t.Errorf("%s: policy of PCR %d: %x, %v, want known: %v", when, pcr, got, err, want[pcr])
			}
		}
	}
	pin(8, 1)
	pin(9, 2)
	known("both are free", 8, 9)
	pin(8, 3)
	known("the first once more", 8, 9)
	pin(10, 4)
	known("a third", 8, 10)
	pin(13, 5)
	known("a fourth", 10, 13)
	// Nothing goes for a record that cannot be written: no signature, other PCRs.
	for _, met := range []tpm.Policy{policy, {PCRs: []int{8}, Bank: policy.Bank, Values: tpm.Values{8: bytes.Repeat([]byte{1}, 32)}}} {
		if err := chip.WriteIdentity(t.Context(), met, nil, ids[8]); err == nil {
			t.Errorf("written under %+v, which is not met", met)
		}
		known("a fifth, whose policy is not met", 10, 13)
	}

	const index = "0x1c05ea3"
	dir := t.TempDir()
	record := append(binary.BigEndian.AppendUint32(nil, 1<<32-1), ids[13]...)
	if err := os.WriteFile(filepath.Join(dir, "record"), record, 0o600); err != nil {
		t.Fatal(err)
	}
	m.MustRun(dir, "tpm2_nvundefine", index, "-C", "o")
	m.MustRun(dir, "tpm2_nvdefine", index, "-C", "o", "-s", "36", "-g", "sha256", "-a", "ownerwrite|authwrite|authread|no_da")
	m.MustRun(dir, "tpm2_nvwrite", index, "-C", index, "-i", "record")
	known("the owner's own in place of PCR 13's or 10's", 10)
	pin(10, 6)
	known("the highest number", 10)
	pin(13, 7)
	known("pinned anew", 10, 13)
}
