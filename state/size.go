package state

import (
	"fmt"

	"sealroot/state/layout"
)

// Sizes are those of a new encrypted.img, in bytes. All are multiples of BlockSize.
//
// The file is never over-committed: Reserved bytes are allocated in the outer
// file system from the first day, so that a write inside can never fail for
// want of room outside. Later the volume may give back what it holds in balloons
// (package resize), and the file has holes there. Its apparent size is larger,
// because the loop and dm-crypt devices take their size from it once and growing
// later then needs neither a reload of the device nor the volume key. The cap on
// the apparent size bounds what a stray resize2fs could claim.
type Sizes struct {
	Reserved int64 // allocated when it is made: header, keyslots and the whole inner file system
	Apparent int64 // st_size of the file, where it is Oversized
}

const (
	// BlockSize is the unit of all sizes: the inner file system's block, the
	// loop device's sector and dm-crypt's sector.
	BlockSize = 4096
	// minApparent is the smallest device (docs/formats.md, State).
	minApparent = 16 << 30
)

// SizesFor divides an outer file system of which free bytes are available: half of it
// is reserved for the encrypted volume, which has a file system f inside, the rest is
// for what lies beside it and for growing. With want bytes those are reserved in place
// of the half, as far as there is room; 0: the half. ErrNoRoom when free is too little.
func SizesFor(f Filesystem, free, want int64) (Sizes, error) {
	share := free / 2
	if want > 0 {
		share = min(want, free-layout.KeepFree)
	}
	reserved := max(share, layout.LeastVolume(string(f))) / BlockSize * BlockSize
	if reserved > free-layout.KeepFree {
		return Sizes{}, fmt.Errorf("cannot reserve %d MiB of %d MiB free on the state partition: %w",
			reserved>>20, free>>20, ErrNoRoom)
	}
	return Sizes{Reserved: reserved, Apparent: apparentFor(reserved)}, nil
}

// apparentFor is the apparent size that goes with a reserved size.
func apparentFor(reserved int64) int64 { return max(2*reserved, minApparent) }
