package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/google/go-tpm/tpm2"

	"sealroot/state/tpm/pcrsig"
)

// IdentityIndex and IdentityIndexB are the NV indices that say which volume is this
// machine's: one for each of two policies, such as those of two slots under literal
// PCRs, or of before and after a change of PCR 7. A policy's record may lie in
// either; its Name tells.
const (
	IdentityIndex  = 0x01c05ea3
	IdentityIndexB = 0x01c05ea4
)

// IdentityIndices lists both.
func IdentityIndices() [2]uint32 { return [...]uint32{IdentityIndex, IdentityIndexB} }

// The record: number of the writing (u32, big endian), identity of the volume
// (luks2.VolumeKeyID, 32 bytes).
const (
	identityNumber = 4
	identitySize   = identityNumber + 32
)

// identityPin is the record of the volume that was pinned under policy, if it lies
// in index.
func identityPin(index uint32, policy Policy) Pinned {
	return Pinned{Index: index, Size: identitySize, Policy: policy}
}

// ReadIdentity returns the identity of the volume that was pinned under policy,
// luks2.VolumeKeyID. That a secret could be unsealed does not tell whose volume it
// opens: sealing needs no secret, only the public part of the SRK.
// Errors: ErrUnpinned when none was, or somebody took it away.
func (t *TPM) ReadIdentity(ctx context.Context, policy Policy) ([]byte, error) {
	var missing error
	for _, index := range IdentityIndices() {
		record, err := t.ReadPinned(ctx, identityPin(index, policy))
		if err == nil {
			return record[identityNumber:], nil
		}
		if !errors.Is(err, ErrUnpinned) {
			return nil, err
		}
		missing = err
	}
	return nil, missing
}

// WriteIdentity pins a volume under policy. Its record of before is overwritten;
// else an index is taken that is not defined, else the one that was written longer
// ago: PCRs move on, and what was left last is what a machine comes back to. The
// number that tells is a hint, for nobody vouches for records of other policies.
// Errors as of WritePinned.
func (t *TPM) WriteIdentity(ctx context.Context, policy Policy, sigs pcrsig.File, identity []byte) error {
	plan, err := t.plan(ctx, policy, short)
	if err != nil {
		return err
	}
	var found [2]identityIndex
	b := t.bind(ctx)
	for i, number := range IdentityIndices() {
		if found[i], err = b.inspectIdentity(identityPin(number, policy).public(plan.Policy)); err != nil {
			return err
		}
	}
	at, number := chooseIdentity(found)
	record := append(binary.BigEndian.AppendUint32(nil, number), identity...)
	return t.WritePinned(ctx, identityPin(IdentityIndices()[at], policy), sigs, record)
}

// RemoveIdentities undefines both indices (factory reset); it is no error when there
// are none.
func (t *TPM) RemoveIdentities(ctx context.Context) error {
	b := t.bind(ctx)
	for _, number := range IdentityIndices() {
		if err := b.removeNV(number); err != nil {
			return fmt.Errorf("cannot remove the record of the volume: %w", classify(err))
		}
	}
	return nil
}

// identityIndex is what lies in one of the two indices.
type identityIndex struct {
	defined, fits bool
	number        uint32 // 0: not a record
}

// inspectIdentity looks at the index of ours, as it would be under a policy.
func (b bound) inspectIdentity(ours tpm2.TPMSNVPublic) (found identityIndex, err error) {
	index, public, err := b.nvIndex(uint32(ours.NVIndex))
	if err != nil || public == nil {
		return identityIndex{}, err
	}
	found = identityIndex{defined: true, fits: string(index.Name.Buffer) == string(nvName(ours))}
	if public.DataSize == identitySize && public.Attributes.Written {
		// One that cannot be read is nobody's record.
		if record, err := b.readNV(index, identitySize); err == nil && len(record) == identitySize {
			found.number = binary.BigEndian.Uint32(record)
		}
	}
	return found, nil
}

// chooseIdentity decides which of the indices is written, and its number.
func chooseIdentity(found [2]identityIndex) (at int, number uint32) {
	number = max(found[0].number, found[1].number)
	if number < math.MaxUint32 {
		number++
	}
	for _, better := range []func(identityIndex) bool{
		func(i identityIndex) bool { return i.fits },
		func(i identityIndex) bool { return !i.defined },
	} {
		for i := range found {
			if better(found[i]) {
				return i, number
			}
		}
	}
	if found[1].number < found[0].number {
		return 1, number
	}
	return 0, number
}
