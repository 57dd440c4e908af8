package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"sealroot/state/tpm/pcrsig"
)

// Pinned is a small record in an NV index that anybody may read and that only a
// system which meets a policy may write.
//
// The index lies in the owner hierarchy, so whoever runs code on the machine can
// undefine it and define one like it. That one cannot be written by them: it lacks
// TPMA_NV_WRITTEN, or has another policy or other attributes, all of which are
// part of the Name of an index. A record is therefore believed only under the Name
// that is computed here.
type Pinned struct {
	Index uint32
	Size  int // bytes, at most 64
	// Policy is that of the writer, over the PCRs as they are now.
	Policy Policy
}

// ErrUnpinned: the index is not there, or is not the one that was written under
// the policy. What it says, if anything, is not known.
var ErrUnpinned = errors.New("no such record in the TPM, or not one that this system wrote")

// public is the index once it is written: readable by its (empty) authorization,
// writable under the policy only, never counting towards a lockout, and without
// anything that could lock reading or writing.
func (p Pinned) public(policy [32]byte) tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: tpm2.TPMHandle(p.Index), NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(p.Size),
		AuthPolicy: tpm2.TPM2BDigest{Buffer: policy[:]},
		Attributes: tpm2.TPMANV{PolicyWrite: true, AuthRead: true, NoDA: true, Written: true, NT: tpm2.TPMNTOrdinary},
	}
}

// nvName is the Name of an index: algorithm and digest of its public area
// (TPM 2.0 part 1, 16).
func nvName(public tpm2.TPMSNVPublic) []byte {
	sum := sha256.Sum256(tpm2.Marshal(public))
	return append(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256)), sum[:]...)
}

// ReadPinned returns the record. Errors: ErrUnpinned.
func (t *TPM) ReadPinned(ctx context.Context, p Pinned) ([]byte, error) {
	plan, err := t.plan(ctx, p.Policy, short)
	if err != nil {
		return nil, err
	}
	b := t.bind(ctx)
	index, _, err := b.nvIndex(p.Index)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(index.Name.Buffer, nvName(p.public(plan.Policy))) {
		return nil, fmt.Errorf("cannot read NV index %#x: %w", p.Index, ErrUnpinned)
	}
	record, err := b.readNV(index, uint16(p.Size))
	if refused(err) {
		// One that somebody defined anew may have a password.
		return nil, fmt.Errorf("cannot read NV index %#x: %w: %w", p.Index, ErrUnpinned, classify(err))
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read NV index %#x: %w", p.Index, classify(err))
	}
	if len(record) != p.Size {
		return nil, fmt.Errorf("cannot read NV index %#x: %w: %d bytes", p.Index, ErrUnpinned, len(record))
	}
	return record, nil
}

// refused: the TPM has answered that it does not do a command. Where it is busy or
// fails, nothing is known of the index, and what is there must not be replaced.
func refused(err error) bool {
	return answered(err) && !errors.Is(err, ErrBusy) && !errors.Is(err, tpm2.TPMRCFailure)
}

// WritePinned writes the record, under the policy; sigs holds the PCR signatures
// of this image. An index that is not the one of the policy is replaced: who must
// not lose its content reads it first. A power cut leaves the old record, the new
// one, or, where the index had to be defined, none.
// Errors: ErrPolicy, ErrPCRsChanged.
func (t *TPM) WritePinned(ctx context.Context, p Pinned, sigs pcrsig.File, record []byte) error {
	if len(record) != p.Size || p.Size > 64 {
		return fmt.Errorf("cannot write %d bytes to NV index %#x: %w", len(record), p.Index, ErrPolicy)
	}
	if err := p.Policy.Check(); err != nil {
		return err
	}
	if len(p.Policy.PCRs) == 0 {
		return fmt.Errorf("cannot write NV index %#x: %w: it holds no PCR", p.Index, ErrPolicy)
	}
	srk, err := t.EnsureSRK(ctx)
	if err != nil {
		return err
	}
	plan, err := t.plan(ctx, p.Policy, short)
	if err != nil {
		return err
	}
	b := t.bind(ctx)
	err = b.retrying(false, func() error {
		s, err := b.startSession(tpm2.TPMSEPolicy, srk, nil)
		if err != nil {
			return err
		}
		// What is there may be a good record of another policy: it goes only once
		// the policy of the new one is met.
		if err = b.satisfy(s, plan, sigs, short); err == nil {
			var index tpm2.NamedHandle
			if index, err = b.definePinned(p.public(plan.Policy)); err == nil {
				err = b.writeNV(index, s.encrypts(false, false), record)
			}
		}
		return errors.Join(err, s.end(b))
	})
	if err != nil {
		return fmt.Errorf("cannot write NV index %#x: %w", p.Index, classify(err))
	}
	return nil
}

// definePinned returns the index that has the given public area, written or new.
// Whatever else is in its place is replaced.
func (b bound) definePinned(written tpm2.TPMSNVPublic) (tpm2.NamedHandle, error) {
	fresh := written
	fresh.Attributes.Written = false
	number := uint32(written.NVIndex)
	index, public, err := b.nvIndex(number)
	if err != nil {
		return index, err
	}
	if bytes.Equal(index.Name.Buffer, nvName(written)) {
		// The Name does not tell whether it has a password, with which nobody here
		// could read it again.
		if _, err := b.readNV(index, written.DataSize); !refused(err) {
			return index, err
		}
	}
	if public != nil {
		if err := b.undefineNV(index); err != nil {
			return index, fmt.Errorf("cannot undefine what is there: %w", classify(err))
		}
	}
	if err := b.defineNV(fresh); err != nil {
		return index, fmt.Errorf("cannot define it: %w", classify(err))
	}
	return byName(number, nvName(fresh)), nil
}
