// Package resize lets the encrypted volume of the running machine grow and
// shrink, while it is used: how much of the state partition encrypted.img holds.
//
// The invariant, at every instant and also after a power cut: each block of the
// file system in the volume is reserved in the outer one, but for blocks that it
// has given back, which nothing is ever written to. So every step has one order.
// What grows: reserve, make that last, then let the file system use it. What
// shrinks: take it from the file system, make that last, and only then give the
// reservation back. A cut in between leaves too much reserved and never too little.
package resize

import (
	"context"
	"errors"
	"math"

	"sealroot/state"
)

var (
	// ErrNoRoom: the outer file system has not the room that is asked for, or none for
	// the metadata of what it was to do; a part may be done.
	ErrNoRoom = state.ErrNoRoom
	// ErrTooSmall: what the volume holds does not fit into the size asked for.
	ErrTooSmall = errors.New("the volume holds more than that")
	// ErrTooLarge: the devices of this boot end before the size asked for.
	ErrTooLarge = errors.New("larger than the volume's device in this boot")
	// ErrBusy: another program resizes the volume.
	ErrBusy = errors.New("another program resizes the volume")
	// ErrNotOpen: no encrypted volume is open in this boot (degraded, plain, none).
	ErrNotOpen = errors.New("no encrypted volume is open")
	// ErrReadOnly: the volume is mounted read-only.
	ErrReadOnly = errors.New("the volume is read-only")
	// ErrOverCommitted: the volume spans more than is reserved, and the outer file
	// system has no room for the rest.
	ErrOverCommitted = errors.New("the volume spans more than is reserved for it")
	// ErrCopied: btrfs outside does not write the volume in place.
	ErrCopied = state.ErrCopied
	// ErrFrozen: another program has frozen the volume.
	ErrFrozen = errors.New("it is frozen, by another program, or by a repair that was killed: once no such program runs, fsfreeze -u /state/encrypted ends that")
	// ErrNoKey: the devices would have to change, for which the volume key is needed.
	ErrNoKey = errors.New("state.device is classic, and this needs a key of the volume")
	// ErrWrongKey: the key is not that of the volume that is open.
	ErrWrongKey = errors.New("that is not the key of the volume that is open")
	// ErrFragmented: what is free in the volume lies in too many pieces to be recorded.
	ErrFragmented = errors.New("what is free in the volume lies in too many pieces")
)

// What Resize takes for as small and as large as possible.
const (
	Smallest = math.MinInt64
	Largest  = math.MaxInt64
)

// Sizes are those of one moment, in bytes.
type Sizes struct {
	Apparent      int64 // st_size of encrypted.img
	DataOffset    int64 // where the inner file system begins
	Spanned       int64 // what the inner file system spans, by its superblock
	GivenBack     int64 // of that: in balloons, held by nobody
	InBalloons    int64 // of that: in balloons, also what is reserved still
	Reserved      int64 // what the outer file system holds for the file, up to the end of the inner one
	OverCommitted int64 // spanned, in no balloon, and not reserved: a stray resize2fs

	// Copied is what the outer file system writes elsewhere, whatever is reserved: btrfs
	// after a snapshot (state.CopiedOnWrite).
	Copied int64

	// Moving is what of OuterFree writes to the volume may need as well, while a scrub or a
	// balance of btrfs outside has a block group read-only; 0 where none runs.
	Moving int64

	InnerFree, InnerUsed  int64 // of the inner file system; balloons are in neither
	OuterFree, OuterTotal int64

	Inodes Inodes // of the inner one
	// OuterInodes are how many files the outer one has room for, and OuterInodesFree how many
	// more; both are 0 without a bound.
	OuterInodes, OuterInodesFree int64

	Device  int64 // of the image, where the decrypted device ends
	Classic bool  // state.device: file and devices end where the inner file system ends

	// Unit is in what units the outer file system takes back: a power of two.
	Unit int64
	// KeptOutside is what Resize leaves free in the outer file system.
	KeptOutside int64
	// Bounds of Resize at this moment.
	MinReserved, MaxReserved int64
	// ReadOnly: the inner file system is mounted so.
	ReadOnly bool
	// Filesystem is the inner one's type: ext4 or btrfs.
	Filesystem string
}

// NeedsKey tells whether Resize to reserved bytes changes the devices, for which it needs
// a key.
func (s Sizes) NeedsKey(reserved int64) bool {
	switch reserved {
	case Smallest:
		reserved = s.MinReserved
	case Largest:
		reserved = s.MaxReserved
	}
	more := reserved - s.Reserved
	if s.Filesystem == string(state.Ext4) { // it takes back what it gave, and gives back, within its size
		return s.Classic && more > s.GivenBack
	}
	return s.Classic && more != 0
}

// Resizer is what Volume does, for those that are tested without one.
type Resizer interface {
	// Measure changes nothing. Errors: ErrBusy, with sizes of which OverCommitted may be what is
	// given back just then.
	Measure() (Sizes, error)
	Resize(ctx context.Context, reserved int64) (Sizes, error)
	Extend(ctx context.Context, n int64) (Sizes, error)
	Repair(ctx context.Context) (Sizes, error)
	MakeWritable() (Sizes, error)
}

var _ Resizer = (*Volume)(nil)
