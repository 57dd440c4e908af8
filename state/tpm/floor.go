package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"sealroot/state/tpm/pcrsig"
)

// FloorIndex is the NV index of the rollback floor: the lowest security version
// that this machine still boots.
const FloorIndex = 0x01c05ea2

// Floor is the record in the TPM.
type Floor struct {
	Value int // security version
	// Volume identifies the key of the state volume that the floor was written
	// for (luks2.VolumeKeyID). What may write the record for one volume makes no
	// record for another, so a floor that was made anew opens only what it was
	// made with.
	Volume [32]byte
}

// ErrFloor is returned for a floor that this version has not written.
var ErrFloor = errors.New("unknown content of the TPM's rollback floor")

const (
	floorSize  = 40
	floorMagic = "srf2"
)

// encode: magic (4 bytes), floor (u32, big endian), identity of the volume's key
// (32 bytes).
func (f Floor) encode() []byte {
	return append(binary.BigEndian.AppendUint32([]byte(floorMagic), uint32(f.Value)), f.Volume[:]...)
}

func parseFloor(record []byte) (Floor, error) {
	if len(record) != floorSize || !bytes.HasPrefix(record, []byte(floorMagic)) || record[4] > 0x7f {
		return Floor{}, ErrFloor
	}
	return Floor{int(binary.BigEndian.Uint32(record[4:])), [32]byte(record[8:])}, nil
}

func floorPin(policy Policy) Pinned {
	return Pinned{Index: FloorIndex, Size: floorSize, Policy: policy}
}

// ReadFloor returns the rollback floor that was written under policy. Errors:
// ErrUnpinned when there is none that can be believed, ErrFloor.
func (t *TPM) ReadFloor(ctx context.Context, policy Policy) (Floor, error) {
	record, err := t.ReadPinned(ctx, floorPin(policy))
	var f Floor
	if err == nil {
		f, err = parseFloor(record)
	}
	if err != nil {
		return Floor{}, fmt.Errorf("cannot read the rollback floor: %w", err)
	}
	return f, nil
}

// RaiseFloor makes the floor that of want.Volume, and at least want.Value. One that
// can be read is never lowered, whatever volume it is for; where there is none, or
// none that can be believed, it is written anew.
// Errors as of WritePinned.
func (t *TPM) RaiseFloor(ctx context.Context, policy Policy, sigs pcrsig.File, want Floor) error {
	now, err := t.ReadFloor(ctx, policy)
	switch {
	case err == nil && now.Value >= want.Value && now.Volume == want.Volume:
		return nil
	case err != nil && !errors.Is(err, ErrUnpinned) && !errors.Is(err, ErrFloor):
		return err
	}
	want.Value = max(want.Value, now.Value)
	if want.Value < 0 || want.Value > 1<<31-1 {
		return fmt.Errorf("%w: %d", ErrFloor, want.Value)
	}
	return t.WritePinned(ctx, floorPin(policy), sigs, want.encode())
}
