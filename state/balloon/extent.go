package balloon

import (
	"errors"
	"fmt"
)

// ErrNotHeld: a file does not hold all of its blocks unwritten, so nothing of it
// may be given back.
var ErrNotHeld = errors.New("not a balloon")

// Extent is one of a file's, in bytes, as FIEMAP tells it (uapi/linux/fiemap.h).
type Extent struct {
	Logical, Physical, Length int64
	Flags                     uint32
}

// Flags of Extent.
const (
	FlagLast      = 0x1
	FlagUnknown   = 0x2
	FlagDelalloc  = 0x4
	FlagUnwritten = 0x800
	FlagShared    = 0x2000
)

// BlockSize is that of the file systems which can give back: a block of theirs is
// never a part of a block outside.
const BlockSize = 4096

// Held returns the places on the device that a file of size bytes holds, in the
// order of the file, if it is a balloon: all of it is there and nothing of it was
// ever written to. blocks is its st_blocks in bytes, end the file system's size.
// Errors: ErrNotHeld.
func Held(list []Extent, size, blocks, end int64) ([]Range, error) {
	var held []Range
	at := int64(0)
	for i, e := range list {
		switch {
		case e.Flags&^FlagLast != FlagUnwritten:
			return nil, fmt.Errorf("%w: extent %d has flags %#x", ErrNotHeld, i, e.Flags)
		case e.Logical != at:
			return nil, fmt.Errorf("%w: extent %d begins at byte %d, want %d", ErrNotHeld, i, e.Logical, at)
		case e.Length <= 0 || e.Length%BlockSize != 0 || e.Physical%BlockSize != 0:
			return nil, fmt.Errorf("%w: extent %d has %d bytes at %d", ErrNotHeld, i, e.Length, e.Physical)
		case e.Physical <= 0 || e.Length > end || e.Physical > end-e.Length:
			return nil, fmt.Errorf("%w: extent %d ends outside", ErrNotHeld, i)
		}
		held = append(held, Range{e.Physical, e.Physical + e.Length})
		at += e.Length
	}
	// Beside its data a file has blocks for a tree of extents, and one for attributes.
	most := at + BlockSize*int64(3+len(list)/64)
	if at != size || blocks < at || blocks > most || Total(Join(held)) != at {
		return nil, fmt.Errorf("%w: %d bytes in extents, of %d, in %d bytes of blocks", ErrNotHeld, at, size, blocks)
	}
	return held, nil
}
