// Package btrfs makes btrfs file systems from a template, reads their superblocks and
// changes the size of those that are mounted: what PID 1 needs of mkfs.btrfs and btrfs.
package btrfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
)

var (
	// ErrNotBtrfs says that there is no btrfs superblock.
	ErrNotBtrfs = errors.New("not a btrfs file system")
	// ErrSuperblock says that there is one, but damaged, impossible, or of a file
	// system that this program does not use.
	ErrSuperblock = errors.New("invalid btrfs superblock")
)

// Fields of struct btrfs_super_block (include/uapi/linux/btrfs_tree.h), little endian.
const (
	superblockOffset = 64 << 10
	mirrorOffset     = 64 << 20
	superblockBytes  = 4096

	sbFsid       = 32
	sbPlace      = 48
	sbFlags      = 56
	sbMagic      = 64
	sbGeneration = 72
	sbTotalBytes = 112
	sbBytesUsed  = 120
	sbDevices    = 136
	sbSectorSize = 144
	sbNodeSize   = 148
	sbArraySize  = 160
	sbROCompat   = 180
	sbIncompat   = 188
	sbSumType    = 196
	sbDevItem    = 201 // struct btrfs_dev_item
	sbDevBytes   = sbDevItem + 8
	sbDevUsed    = sbDevItem + 16
	sbDevFsid    = sbDevItem + 82

	magic        = "_BHRfS_M"
	maxArray     = 2048
	flagWritten  = 1
	flagReloc    = 2
	flagErrors   = 4
	roCompatMask = 0x1 | 0x2 | 0x4 | 0x8 // free space tree and its validity, fs-verity, tree of block groups
	// incompatMask: mixed backrefs, a default subvolume (never followed), mixed groups,
	// LZO, Zstd, large nodes, many links, small extents, no holes, simple quotas. Nothing
	// that has several devices, zones or another UUID.
	incompatMask = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200 | 0x10000
)

// Superblock is what callers need of a superblock.
type Superblock struct {
	Bytes     int64 // of its one device that the file system spans
	Allocated int64 // bytes of the device that chunks have
	Errors    bool  // marked as damaged: it has to be checked
}

// ReadSuperblock reads the primary superblock. Errors wrap ErrNotBtrfs or
// ErrSuperblock; any other is the device's.
func ReadSuperblock(r io.ReaderAt) (Superblock, error) {
	b, err := readAt(r, superblockOffset)
	if err != nil {
		return Superblock{}, err
	}
	return parseSuperblock(b, superblockOffset)
}

// block is a superblock, or another block that begins with its checksum.
type block []byte

func (b block) u32(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
func (b block) u64(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }

// sum is crc32c over the block behind the place of its checksum.
func (b block) sum() uint32 { return crc32.Checksum(b[32:], crc32.MakeTable(crc32.Castagnoli)) }

func (b block) setSum() { binary.LittleEndian.PutUint32(b, b.sum()) }

func readAt(r io.ReaderAt, at int64) (block, error) {
	b := make(block, superblockBytes)
	if n, err := r.ReadAt(b, at); n < len(b) {
		if errors.Is(err, io.EOF) {
			return nil, ErrNotBtrfs // too small
		}
		return nil, err
	}
	return b, nil
}

// parseSuperblock judges a superblock that was read at that place.
func parseSuperblock(b block, at int64) (Superblock, error) {
	size, allocated, flags := b.u64(sbDevBytes), b.u64(sbDevUsed), b.u64(sbFlags)
	nodes, array := b.u32(sbNodeSize), b.u32(sbArraySize)
	what := ""
	switch {
	case string(b[sbMagic:][:len(magic)]) != magic:
		return Superblock{}, ErrNotBtrfs
	case b[sbSumType] == 0 && b[sbSumType+1] == 0 && b.u32(0) != b.sum():
		what = "wrong checksum"
	case b.u64(sbPlace) != uint64(at):
		what = "it belongs to another place"
	case b[sbSumType] != 0 || b[sbSumType+1] != 0 || // not crc32c
		flags&^(flagWritten|flagReloc|flagErrors) != 0 ||
		b.u64(sbIncompat)&^incompatMask != 0 || b.u64(sbROCompat)&^roCompatMask != 0:
		what = "features that are not used here"
	case b.u64(sbDevices) != 1 || !bytes.Equal(b[sbFsid:sbPlace], b[sbDevFsid:][:16]):
		what = "not on one device"
	case b.u32(sbSectorSize) != 4096 || nodes < 4096 || nodes > 65536 || nodes&(nodes-1) != 0 || array == 0 || array > maxArray:
		what = "impossible sizes of blocks"
	case size == 0 || size > math.MaxInt64 || size%4096 != 0 || size != b.u64(sbTotalBytes) ||
		b.u64(sbBytesUsed) > size || allocated > size:
		what = "impossible sizes"
	default:
		return Superblock{int64(size), int64(allocated), flags&flagErrors != 0}, nil
	}
	return Superblock{}, fmt.Errorf("%w: %s", ErrSuperblock, what)
}
