package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// MarkIndex is the NV index of the mark "provisioned".
const MarkIndex = 0x01c05ea1

// Mark says that a state volume was made on this machine: where it is set and
// encrypted.img is missing, the file was lost or taken, and nothing new is made
// in its place.
//
// It is a guard against accidents and against a disk that is exchanged, not a
// secret and no authority: whoever may act as owner of the TPM (anyone who runs
// code here, as the owner password is empty) can undefine or rewrite the index,
// and clearing the TPM removes it. Such a removal loses no secret; it makes the
// next boot provision anew if the configuration allows that and the file is
// gone too.
type Mark struct {
	Volume [16]byte // UUID of the LUKS volume
}

// ErrMark is returned for a mark that was not written by this version.
var ErrMark = errors.New("unknown content of the TPM's provisioned mark")

const (
	markSize    = 64
	markMagic   = "sealroot" // 8 bytes
	markVersion = 1
)

// encode: magic (8 bytes), version (u32, big endian), zero (4), volume UUID (16),
// zeros to 64 bytes.
func (m Mark) encode() []byte {
	out := make([]byte, markSize)
	copy(out, markMagic)
	binary.BigEndian.PutUint32(out[8:], markVersion)
	copy(out[16:], m.Volume[:])
	return out
}

func parseMark(data []byte) (Mark, error) {
	if len(data) != markSize || string(data[:8]) != markMagic || binary.BigEndian.Uint32(data[8:]) != markVersion {
		return Mark{}, ErrMark
	}
	m := Mark{Volume: [16]byte(data[16:32])}
	if !bytes.Equal(m.encode(), data) {
		return Mark{}, ErrMark
	}
	return m, nil
}

// markPublic is the index: 64 bytes, readable and writable by its (empty)
// authorization and by the owner, never counting towards a lockout.
func markPublic() tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: MarkIndex, NameAlg: tpm2.TPMAlgSHA256, DataSize: markSize,
		Attributes: tpm2.TPMANV{
			OwnerRead: true, AuthRead: true, OwnerWrite: true, AuthWrite: true, NoDA: true,
			NT: tpm2.TPMNTOrdinary,
		},
	}
}

// ReadMark returns the mark and whether it is set. An index that is defined and
// not yet written counts as not set. Errors other than the TPM's are ErrMark.
func (t *TPM) ReadMark(ctx context.Context) (Mark, bool, error) {
	b := t.bind(ctx)
	index, public, err := b.nvIndex(MarkIndex)
	if err != nil || public == nil {
		return Mark{}, false, err
	}
	if !public.Attributes.Written {
		return Mark{}, false, nil
	}
	if public.DataSize != markSize {
		return Mark{}, false, fmt.Errorf("cannot read mark: %w: %d bytes", ErrMark, public.DataSize)
	}
	data, err := b.readNV(index, markSize)
	if err != nil {
		return Mark{}, false, fmt.Errorf("cannot read mark: %w", classify(err))
	}
	m, err := parseMark(data)
	if err != nil {
		return Mark{}, false, fmt.Errorf("cannot read mark: %w", err)
	}
	return m, true, nil
}

// WriteMark sets the mark; the index is defined if need be. An index of another
// kind in its place is replaced.
func (t *TPM) WriteMark(ctx context.Context, m Mark) error {
	b := t.bind(ctx)
	index, public, err := b.nvIndex(MarkIndex)
	if err != nil {
		return err
	}
	if public != nil {
		have := *public
		have.Attributes.Written = false
		if !bytes.Equal(tpm2.Marshal(have), tpm2.Marshal(markPublic())) {
			if err := t.RemoveMark(ctx); err != nil {
				return err
			}
			public = nil
		}
	}
	if public == nil {
		if err := b.defineNV(markPublic()); err != nil {
			return fmt.Errorf("cannot define mark: %w", classify(err))
		}
		if index, public, err = b.nvIndex(MarkIndex); err != nil || public == nil {
			return fmt.Errorf("cannot define mark: %w", errors.Join(err, ErrMark))
		}
	}
	if err := b.writeNV(index, emptyPassword(), m.encode()); err != nil {
		return fmt.Errorf("cannot write mark: %w", classify(err))
	}
	return nil
}

// RemoveMark undefines the index (factory reset). It is no error when there is
// none.
func (t *TPM) RemoveMark(ctx context.Context) error {
	b := t.bind(ctx)
	index, public, err := b.nvIndex(MarkIndex)
	if err != nil || public == nil {
		return err
	}
	if err := b.undefineNV(index); err != nil {
		return fmt.Errorf("cannot remove mark: %w", classify(err))
	}
	return nil
}
