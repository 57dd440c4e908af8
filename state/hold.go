package state

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
)

// The inner file system may span more than there is room for: its file was copied without
// what holds zeros, or another program made it larger and the power was cut before
// anybody reserved that. Then it is mounted all the same, before anybody else can write
// to it, and balloons take what is free where nothing is reserved. What is used there is
// reserved after that.
//
// A power cut leaves balloons, some of which hold what need not be: the next boot does it
// again, and who resizes lets go of the rest. What they hold is in the record when the boot
// goes on: the next one has less room than it takes to hold something, and needs none.

// HoldRoom is how many bytes of the state partition a mount, and the balloons for n bytes,
// need for what they write to what is not reserved: of each 128 MiB a bitmap, and the
// journal's copy of it.
func HoldRoom(n int64) int64 { return 2*keepOutside + n>>14 }

// mayHold tells whether there is that room.
func (v *Volume) mayHold(n int64) bool {
	free, err := freeIn(v.image)
	return err == nil && free >= HoldRoom(n)
}

// holdLater leaves to Settle what is not reserved of these ranges, if that can do without.
func (v *Volume) holdLater(want []balloon.Range) bool {
	holes, err := v.holes(want)
	missing := balloon.Total(holes)
	if v.Superblock.Type != Ext4 || err != nil || !v.mayHold(missing) {
		return false // btrfs gets smaller only by sealroot state repair
	}
	v.givenBack = balloon.Join(v.givenBack, holes)
	v.Reserved -= missing
	return true
}

// hold has balloons in place of what settle had no room for: err. The file system had so
// many bytes before its journal was replayed.
func (v *Volume) hold(root *os.File, had int64, err error) error {
	begin := int64(v.Header.DataOffset())
	v.givenBack = balloon.Join(v.givenBack, []balloon.Range{{Start: begin + had, End: begin + v.Superblock.Bytes}})
	if !v.mayHold(balloon.Total(v.givenBack)) {
		return err
	}
	err = files.Hold(root, v.Superblock.Bytes, balloon.Shift(v.givenBack, -begin))
	if err := errors.Join(err, unix.Syncfs(int(root.Fd()))); err != nil {
		return err
	}
	return v.settle(root)
}

// keepHeld records what balloons hold. Without that the next boot may have the volume
// read-only, until who resizes has written the record; so what goes wrong keeps nobody.
func (v *Volume) keepHeld(dir *os.File) {
	// crash point: balloons hold it, and the record does not say so
	given, _ := balloon.Largest(v.givenBack, balloon.MaxRanges)
	_ = files.WriteRecord(dir, v.Header.UUID(), given)
}
