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

// ErrFloor is returned for a floor that this version has not written.
var ErrFloor = errors.New("unknown content of the TPM's rollback floor")

const (
	floorSize  = 8
	floorMagic = "srf1"
)

// encodeFloor: magic (4 bytes), floor (u32, big endian).
func encodeFloor(floor int) []byte {
	return binary.BigEndian.AppendUint32([]byte(floorMagic), uint32(floor))
}

func parseFloor(record []byte) (int, error) {
	if len(record) != floorSize || !bytes.HasPrefix(record, []byte(floorMagic)) || record[4] > 0x7f {
		return 0, ErrFloor
	}
	return int(binary.BigEndian.Uint32(record[4:])), nil
}

func floorPin(policy Policy) Pinned {
	return Pinned{Index: FloorIndex, Size: floorSize, Policy: policy}
}

// ReadFloor returns the rollback floor that was written under policy. Errors:
// ErrUnpinned when there is none that can be believed, ErrFloor.
func (t *TPM) ReadFloor(ctx context.Context, policy Policy) (int, error) {
	record, err := t.ReadPinned(ctx, floorPin(policy))
	if err != nil {
		return 0, fmt.Errorf("cannot read the rollback floor: %w", err)
	}
	floor, err := parseFloor(record)
	if err != nil {
		return 0, fmt.Errorf("cannot read the rollback floor: %w", err)
	}
	return floor, nil
}

// RaiseFloor makes the floor at least floor. One that can be read is never
// lowered; where there is none, or none that can be believed, it is written anew.
// Errors as of WritePinned.
func (t *TPM) RaiseFloor(ctx context.Context, policy Policy, sigs pcrsig.File, floor int) error {
	now, err := t.ReadFloor(ctx, policy)
	switch {
	case err == nil && now >= floor:
		return nil
	case err != nil && !errors.Is(err, ErrUnpinned) && !errors.Is(err, ErrFloor):
		return err
	}
	if floor < 0 || floor > 1<<31-1 {
		return fmt.Errorf("%w: %d", ErrFloor, floor)
	}
	return t.WritePinned(ctx, floorPin(policy), sigs, encodeFloor(floor))
}
