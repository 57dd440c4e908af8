package verity

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// SuperblockSize is the size of a superblock in bytes.
const SuperblockSize = 512

// The superblock as cryptsetup's lib/verity/verity.c lays it out, integers
// little endian:
//
//	  0  8  "verity\0\0"
//	  8  4  version, 1
//	 12  4  format of the hash, 1 (salt before the block; 0 is old Chrome OS)
//	 16 16  UUID
//	 32 32  algorithm, NUL padded
//	 64  4  data block size
//	 68  4  hash block size
//	 72  8  data blocks
//	 80  2  salt size
//	 82  6  zero
//	 88 256 salt, zero padded
//	344 168 zero
const (
	offVersion   = 8
	offFormat    = 12
	offUUID      = 16
	offAlgorithm = 32
	offDataBlock = 64
	offHashBlock = 68
	offBlocks    = 72
	offSaltSize  = 80
	offPad       = 82
	offSalt      = 88
	magic        = "verity\x00\x00"
)

// ReadSuperblock reads the superblock at the start of a hash device. The result
// is valid by itself (Params.Validate) and is nothing but a claim of the disk.
// Errors: ErrSuperblock, ErrAlgorithm, ErrParams, or that of the device.
func ReadSuperblock(r io.ReaderAt) (Params, error) {
	b := make([]byte, SuperblockSize)
	if n, err := r.ReadAt(b, 0); n < len(b) {
		if err == io.EOF {
			return Params{}, fmt.Errorf("%w: only %d bytes", ErrSuperblock, n)
		}
		return Params{}, fmt.Errorf("cannot read verity superblock: %w", err)
	}
	return ParseSuperblock(b)
}

// ParseSuperblock is ReadSuperblock for bytes in memory, SuperblockSize of them.
func ParseSuperblock(b []byte) (Params, error) {
	if len(b) != SuperblockSize {
		return Params{}, fmt.Errorf("%w: %d bytes", ErrSuperblock, len(b))
	}
	if string(b[:len(magic)]) != magic {
		return Params{}, fmt.Errorf("%w: no magic", ErrSuperblock)
	}
	le := binary.LittleEndian
	if v := le.Uint32(b[offVersion:]); v != 1 {
		return Params{}, fmt.Errorf("%w: version %d", ErrSuperblock, v)
	}
	if v := le.Uint32(b[offFormat:]); v != 1 {
		return Params{}, fmt.Errorf("%w: hash format %d", ErrSuperblock, v)
	}
	name, ok := text(b[offAlgorithm:offDataBlock])
	if !ok {
		return Params{}, fmt.Errorf("%w: algorithm is not NUL padded", ErrSuperblock)
	}
	saltSize := int(le.Uint16(b[offSaltSize:]))
	if saltSize > MaxSalt {
		return Params{}, fmt.Errorf("%w: salt of %d bytes", ErrSuperblock, saltSize)
	}
	// Whatever a later version may keep there, this one would not honour it.
	if !zero(b[offPad:offSalt]) || !zero(b[offSalt+saltSize:]) {
		return Params{}, fmt.Errorf("%w: unknown fields", ErrSuperblock)
	}
	p := Params{
		Algorithm: Algorithm(name),
		// A size over 2 GiB turns negative on a 32-bit machine; Validate
		// refuses both.
		DataBlockSize: int(le.Uint32(b[offDataBlock:])),
		HashBlockSize: int(le.Uint32(b[offHashBlock:])),
		DataBlocks:    le.Uint64(b[offBlocks:]),
		Salt:          bytes.Clone(b[offSalt : offSalt+saltSize]),
		UUID:          [16]byte(b[offUUID:offAlgorithm]),
		// The tree begins at the first hash block behind the superblock; no
		// accepted hash block is smaller than it.
		HashStart: 1,
	}
	if err := p.Validate(); err != nil {
		return Params{}, err
	}
	return p, nil
}

// Superblock returns the superblock of the parameters, SuperblockSize bytes.
// HashStart has no place in it and must be 1.
func (p Params) Superblock() ([]byte, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if p.HashStart != 1 {
		return nil, fmt.Errorf("%w: a tree behind a superblock begins at block 1, not %d", ErrParams, p.HashStart)
	}
	le := binary.LittleEndian
	b := make([]byte, SuperblockSize)
	copy(b, magic)
	le.PutUint32(b[offVersion:], 1)
	le.PutUint32(b[offFormat:], 1)
	copy(b[offUUID:], p.UUID[:])
	copy(b[offAlgorithm:], p.Algorithm)
	le.PutUint32(b[offDataBlock:], uint32(p.DataBlockSize))
	le.PutUint32(b[offHashBlock:], uint32(p.HashBlockSize))
	le.PutUint64(b[offBlocks:], p.DataBlocks)
	le.PutUint16(b[offSaltSize:], uint16(len(p.Salt)))
	copy(b[offSalt:], p.Salt)
	return b, nil
}

// text is a NUL padded field; not ok when the NUL is missing or bytes follow it.
func text(field []byte) (string, bool) {
	end := bytes.IndexByte(field, 0)
	if end < 0 || !zero(field[end:]) {
		return "", false
	}
	return string(field[:end]), true
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
