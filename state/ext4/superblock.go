// Package ext4 makes ext4 file systems from a template, reads their
// superblocks and grows them while mounted: what PID 1 needs of mke2fs,
// dumpe2fs and resize2fs.
package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
)

var (
	// ErrNotExt4 says that there is no ext4 superblock.
	ErrNotExt4 = errors.New("not an ext4 file system")
	// ErrSuperblock says that there is one, but damaged or impossible.
	ErrSuperblock = errors.New("invalid ext4 superblock")
)

// Fields of struct ext4_super_block (fs/ext4/ext4.h), little endian.
const (
	superblockOffset = 1024
	superblockBytes  = 1024

	sbBlocksLow    = 0x04
	sbFreeLow      = 0x0c
	sbLogBlockSize = 0x18
	sbGroupBlocks  = 0x20
	sbGroupInodes  = 0x28
	sbMagic        = 0x38
	sbState        = 0x3a
	sbCompat       = 0x5c
	sbIncompat     = 0x60
	sbROCompat     = 0x64
	sbUUID         = 0x68
	sbHashSeed     = 0xec
	sbBlocksHigh   = 0x150
	sbFreeHigh     = 0x158
	sbChecksumType = 0x175
	sbChecksum     = 0x3fc

	magic            = 0xef53
	stateClean       = 1
	stateErrors      = 2
	maxLogBlockSize  = 6 // 64 KiB
	incompatExtents  = 0x40
	incompatRecover  = 0x4
	incompat64Bit    = 0x80
	roCompatChecksum = 0x400
)

// Superblock is what callers need of a superblock.
type Superblock struct {
	UUID          [16]byte
	BlockSize     int    // bytes
	Blocks        uint64 // of BlockSize
	FreeBlocks    uint64
	GroupBlocks   uint32 // of BlockSize, in each block group but the last
	GroupInodes   uint32 // in each block group, also where the last is smaller
	Clean         bool   // unmounted cleanly, or the journal makes it so
	Errors        bool   // the kernel found errors: it has to be checked
	NeedsRecovery bool   // the next mount replays the journal
}

// Bytes is the size of the file system.
func (s Superblock) Bytes() uint64 { return s.Blocks * uint64(s.BlockSize) }

// ReadSuperblock reads the primary superblock. Errors wrap ErrNotExt4 or
// ErrSuperblock; any other is the device's. ext2 and ext3 count as ErrNotExt4.
func ReadSuperblock(r io.ReaderAt) (Superblock, error) {
	b := make([]byte, superblockBytes)
	if n, err := r.ReadAt(b, superblockOffset); n < len(b) {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return Superblock{}, fmt.Errorf("%w: too small", ErrNotExt4)
		}
		return Superblock{}, fmt.Errorf("cannot read ext4 superblock: %w", err)
	}
	return parseSuperblock(b)
}

func parseSuperblock(b []byte) (Superblock, error) {
	le := binary.LittleEndian
	incompat, roCompat := le.Uint32(b[sbIncompat:]), le.Uint32(b[sbROCompat:])
	logSize := le.Uint32(b[sbLogBlockSize:])
	switch {
	case le.Uint16(b[sbMagic:]) != magic:
		return Superblock{}, fmt.Errorf("%w: wrong magic", ErrNotExt4)
	case incompat&incompatExtents == 0:
		return Superblock{}, fmt.Errorf("%w: no extents (ext2 or ext3)", ErrNotExt4)
	case logSize > maxLogBlockSize:
		return Superblock{}, fmt.Errorf("%w: block size 2^%d KiB", ErrSuperblock, logSize)
	case roCompat&roCompatChecksum != 0 && (b[sbChecksumType] != 1 || le.Uint32(b[sbChecksum:]) != superblockSum(b)):
		return Superblock{}, fmt.Errorf("%w: wrong checksum", ErrSuperblock)
	}
	s := Superblock{
		UUID:          [16]byte(b[sbUUID:]),
		BlockSize:     1024 << logSize,
		Blocks:        uint64(le.Uint32(b[sbBlocksLow:])),
		FreeBlocks:    uint64(le.Uint32(b[sbFreeLow:])),
		GroupBlocks:   le.Uint32(b[sbGroupBlocks:]),
		GroupInodes:   le.Uint32(b[sbGroupInodes:]),
		Clean:         le.Uint16(b[sbState:])&stateClean != 0,
		Errors:        le.Uint16(b[sbState:])&stateErrors != 0,
		NeedsRecovery: incompat&incompatRecover != 0,
	}
	if incompat&incompat64Bit != 0 {
		s.Blocks |= uint64(le.Uint32(b[sbBlocksHigh:])) << 32
		s.FreeBlocks |= uint64(le.Uint32(b[sbFreeHigh:])) << 32
	}
	if s.Blocks == 0 || s.Blocks > math.MaxInt64/uint64(s.BlockSize) || s.FreeBlocks > s.Blocks {
		return Superblock{}, fmt.Errorf("%w: %d blocks, %d free", ErrSuperblock, s.Blocks, s.FreeBlocks)
	}
	return s, nil
}

// superblockSum is over the superblock without its last field.
func superblockSum(b []byte) uint32 { return kernelSum(^uint32(0), b[:sbChecksum]) }

// kernelSum is the kernel's crc32c, which inverts neither before nor after as hash/crc32
// does.
func kernelSum(seed uint32, b []byte) uint32 {
	return ^crc32.Update(^seed, crc32.MakeTable(crc32.Castagnoli), b)
}
