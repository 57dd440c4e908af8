// Package verity builds, checks and describes dm-verity hash trees: the
// superblock that veritysetup writes, the tree, and the device-mapper target.
// It holds no system calls. Nothing here is trusted by itself: a superblock and
// a tree come from the disk, and only a root hash that somebody signed
// (package signature) makes them mean anything.
//
// Of this package, PID 1 uses superblock.go, params.go, fec.go and target.go.
package verity

import (
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"math"
	"strings"
)

// The errors of this package; each comes wrapped with what was wrong.
var (
	// ErrSuperblock: the bytes are not a superblock that this package accepts.
	ErrSuperblock = errors.New("not a usable verity superblock")
	// ErrAlgorithm: a hash algorithm that is not on the allow-list.
	ErrAlgorithm = errors.New("hash algorithm not accepted")
	// ErrParams: sizes that make no hash tree, or one that does not fit.
	ErrParams = errors.New("unusable verity parameters")
	// ErrCorrupt: a block does not match its hash; see BlockError.
	ErrCorrupt = errors.New("block does not match the hash tree")
)

// Algorithm is a hash algorithm by the name that the kernel gives it.
type Algorithm string

// The accepted algorithms. sha1 is not among them: the superblock is untrusted
// and must not be able to choose a weak hash.
const (
	SHA256 Algorithm = "sha256"
	SHA512 Algorithm = "sha512"
)

// Size is the length of a digest in bytes, 0 for an unknown algorithm.
func (a Algorithm) Size() int {
	switch a {
	case SHA256:
		return sha256.Size
	case SHA512:
		return sha512.Size
	}
	return 0
}

// IsRootHash tells whether s is a root hash of one of the algorithms, in
// lower-case hex.
func IsRootHash(s string) bool {
	return (len(s) == 2*sha256.Size || len(s) == 2*sha512.Size) && strings.Trim(s, "0123456789abcdef") == ""
}

func (a Algorithm) new() hash.Hash {
	if a == SHA512 {
		return sha512.New()
	}
	return sha256.New()
}

const (
	minBlockSize = 512
	// The kernel takes at most its page size, which is 64 KiB at most.
	maxBlockSize = 65536
	// MaxSalt is the longest salt in bytes (the superblock has room for no more).
	MaxSalt = 256
	// No device has more bytes; keeps every sum below free of overflow.
	maxBytes = math.MaxInt64 / 4
)

// Params describes a hash tree and where it lies on the hash device. Levels
// are stored from the top to the one that covers the data, as format 1 of the
// kernel's Documentation/admin-guide/device-mapper/verity.rst says.
type Params struct {
	Algorithm     Algorithm
	DataBlockSize int    // bytes, a power of two
	HashBlockSize int    // bytes, a power of two
	DataBlocks    uint64 // data blocks that the tree covers
	HashStart     uint64 // where the tree begins, in hash blocks; 1 behind a superblock
	Salt          []byte // at most MaxSalt bytes, hashed before each block
	UUID          [16]byte
	// FECRoots is how many bytes of Reed-Solomon parity 255 bytes hold, and with
	// them how much can be repaired; 0 when there is none behind the tree.
	FECRoots int
}

// NewParams returns the parameters of a tree over dataSize bytes as sealroot's
// images have it by default: SHA-256, blocks of 4096 bytes, the superblock in
// front of the tree. An error is that of ForData.
func NewParams(dataSize int64, salt []byte, uuid [16]byte) (Params, error) {
	return Params{
		Algorithm: SHA256, DataBlockSize: 4096, HashBlockSize: 4096, HashStart: 1, Salt: salt, UUID: uuid,
	}.ForData(dataSize)
}

// ForData returns the parameters for dataSize bytes of data. The error is that
// of Validate; ErrParams when dataSize is not a number of whole blocks.
func (p Params) ForData(dataSize int64) (Params, error) {
	if p.DataBlockSize <= 0 || dataSize <= 0 || dataSize%int64(p.DataBlockSize) != 0 {
		return Params{}, fmt.Errorf("%w: data of %d bytes is not whole blocks of %d", ErrParams, dataSize, p.DataBlockSize)
	}
	p.DataBlocks = uint64(dataSize / int64(p.DataBlockSize))
	if err := p.Validate(); err != nil {
		return Params{}, err
	}
	return p, nil
}

// Behind returns the parameters of a hash device whose superblock lies at a byte
// of it that is no longer the first. ErrParams: no hash block begins there.
func (p Params) Behind(offset int64) (Params, error) {
	if err := p.Validate(); err != nil {
		return Params{}, err
	}
	if offset < 0 || offset%int64(p.HashBlockSize) != 0 {
		return Params{}, fmt.Errorf("%w: no block of %d begins at byte %d", ErrParams, p.HashBlockSize, offset)
	}
	p.HashStart += uint64(offset) / uint64(p.HashBlockSize)
	return p, p.Validate()
}

// Validate checks the parameters by themselves: ErrAlgorithm or ErrParams.
func (p Params) Validate() error {
	if p.Algorithm.Size() == 0 {
		return fmt.Errorf("%w: %.32q", ErrAlgorithm, string(p.Algorithm))
	}
	for _, size := range []struct {
		name  string
		bytes int
	}{{"data", p.DataBlockSize}, {"hash", p.HashBlockSize}} {
		if size.bytes < minBlockSize || size.bytes > maxBlockSize || size.bytes&(size.bytes-1) != 0 {
			return fmt.Errorf("%w: %s block size %d", ErrParams, size.name, size.bytes)
		}
	}
	if p.DataBlocks == 0 || p.DataBlocks > maxBytes/uint64(p.DataBlockSize) {
		return fmt.Errorf("%w: %d data blocks", ErrParams, p.DataBlocks)
	}
	if p.HashStart > maxBytes/uint64(p.HashBlockSize) {
		return fmt.Errorf("%w: tree begins at block %d", ErrParams, p.HashStart)
	}
	if len(p.Salt) > MaxSalt {
		return fmt.Errorf("%w: salt of %d bytes", ErrParams, len(p.Salt))
	}
	return p.validateFEC()
}

// Blocks checks what the kernel demands of block sizes beside Validate: at least
// a sector of the device, at most a page of memory. ErrParams.
func (p Params) Blocks(sector, page int) error {
	for _, size := range []int{p.DataBlockSize, p.HashBlockSize} {
		if size < sector || size > page {
			return fmt.Errorf("%w: block size %d, this machine takes %d to %d", ErrParams, size, sector, page)
		}
	}
	return nil
}

// Fits is Validate, and that data and tree lie inside devices of these sizes
// in bytes.
func (p Params) Fits(dataDevice, hashDevice int64) error {
	if err := p.Validate(); err != nil {
		return err
	}
	if p.DataSize() > dataDevice {
		return fmt.Errorf("%w: %d bytes of data on a device of %d", ErrParams, p.DataSize(), dataDevice)
	}
	if p.HashSize() > hashDevice {
		return fmt.Errorf("%w: hash tree ends at byte %d on a device of %d", ErrParams, p.HashSize(), hashDevice)
	}
	if p.AreaSize() > hashDevice {
		return fmt.Errorf("%w: parity ends at byte %d on a device of %d", ErrParams, p.AreaSize(), hashDevice)
	}
	return nil
}

// DataSize is the number of data bytes covered. The parameters must be valid,
// as for the other sizes below.
func (p Params) DataSize() int64 {
	return int64(p.DataBlocks) * int64(p.DataBlockSize)
}

// TreeSize is the size of the hash tree in bytes, without superblock. It is 0
// for one data block: the root hash is then the hash of that block.
func (p Params) TreeSize() int64 {
	var blocks uint64
	for _, l := range p.levels() {
		blocks += l.blocks
	}
	return int64(blocks) * int64(p.HashBlockSize)
}

// HashSize is the room that superblock and tree need on the hash device, in bytes.
func (p Params) HashSize() int64 {
	return int64(p.HashStart)*int64(p.HashBlockSize) + p.TreeSize()
}

// level is one level of the tree.
type level struct {
	first  uint64 // its first block on the hash device, in hash blocks
	blocks uint64
}

// perBlock is how many digests one hash block holds; both digest sizes are
// powers of two, so the kernel pads neither.
func (p Params) perBlock() uint64 {
	return uint64(p.HashBlockSize / p.Algorithm.Size())
}

// levels lists the levels from the one over the data (index 0) to the top.
func (p Params) levels() []level {
	var levels []level
	for below := p.DataBlocks; below > 1; {
		below = (below + p.perBlock() - 1) / p.perBlock()
		levels = append(levels, level{blocks: below})
	}
	next := p.HashStart
	for i := len(levels) - 1; i >= 0; i-- {
		levels[i].first = next
		next += levels[i].blocks
	}
	return levels
}
