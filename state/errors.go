// Package state is the life cycle of the encrypted volume in the file
// encrypted.img on the state partition: create it once, open it at every boot.
//
// State is derived from what is on the disk, never journaled. The invariant at
// every instant, also after a power cut: what the inner file system may write to
// is reserved in the outer file system. That is header, keyslots and all that it
// spans, but for holes: what it gave back, each in a balloon, a file inside that
// nobody writes to, and in the record beside encrypted.img. Where a boot finds
// less and cannot make it good, the volume is read-only (Volume.ReadOnly).
//
// Crash points of Create: until the file has its name nothing exists, because
// it is made with O_TMPFILE; the name is given only after everything in it is
// on stable storage. A file of that name is therefore always complete, and is
// never overwritten, re-made or deleted by this package, but for a reset
// (BeginReset) and for a prebuilt one (PrebuiltOf), which holds nothing.
package state

import (
	"errors"

	"sealroot/state/layout"
)

// ImageName is the file's name in the root of the state partition.
const ImageName = layout.Image

// MountDir is the directory, beside the file, that the volume is mounted on.
const MountDir = layout.Volume

var (
	// ErrNoImage: there is no encrypted.img.
	ErrNoImage = errors.New("no encrypted.img")
	// ErrNotImage: encrypted.img is not an ordinary file of its own (a link, a
	// FIFO, a directory, a device, or one with a second name).
	ErrNotImage = errors.New("encrypted.img is not a plain file")
	// ErrPrebuilt: encrypted.img came with the image, and is no machine's volume.
	ErrPrebuilt = errors.New("encrypted.img came with the image and is not opened: every copy of that image has its keys")
	// ErrNoRoom: the state partition is too small or too full.
	ErrNoRoom = errors.New("not enough room on the state partition")
	// ErrDamaged: the volume opened, but what is in it is not a file system
	// that this program made.
	ErrDamaged = errors.New("encrypted volume is damaged")
	// ErrInUse: another program holds encrypted.img.
	ErrInUse = errors.New("encrypted.img is in use")
	// ErrMapped: the decrypted volume could not be taken away again. Anybody
	// with root's rights can read it.
	ErrMapped = errors.New("the encrypted volume is still mapped")
)
