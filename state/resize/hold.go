package resize

import (
	"context"
	"errors"
	"fmt"
	"sort"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
)

// hold takes all that is free, for it cannot choose the place of a balloon, and lets go
// of what does not lie in the holes. For that moment the file system is full. It syncs
// nothing: what is dirty goes to what balloons leave, and that is reserved next.
func (e *ext4FS) hold(ctx context.Context, holes []balloon.Range) error {
	end, err := e.spanned(false)
	if err != nil {
		return err
	}
	err = files.Hold(e.root, end, holes)
	// A file that is no balloon may have blocks in holes: it keeps them.
	_, terr := e.deflateAll(holes, func(b files.Balloon) bool { return b.Err == nil })
	if err = errors.Join(err, terr); err != nil {
		return fmt.Errorf("cannot hold what is not reserved: %w", err)
	}
	return nil
}

// calm has the kernel leave the tables of inodes as they are that a larger file system got:
// it would fill them with zeros, one after the other.
func (e *ext4FS) calm() error {
	if err := unix.Mount("", e.root.Name(), "", unix.MS_REMOUNT|mountAttr, "noinit_itable"); err != nil {
		return fmt.Errorf("cannot keep the kernel from writing the volume's tables of inodes: %w", err)
	}
	return nil
}

// freezes: no call of ext4 writes for long.
func (*ext4FS) freezes() bool { return true }

func (e *ext4FS) tidy(holes []balloon.Range) (bool, error) {
	defer e.stock()
	return e.deflateAll(holes, func(files.Balloon) bool { return true })
}

// deflateAll cuts the balloons that which tells of behind their last byte in a hole, and
// seals the others. A file that is no balloon goes.
func (e *ext4FS) deflateAll(holes []balloon.Range, which func(files.Balloon) bool) (changed bool, err error) {
	list, err := e.balloons()
	if err != nil || len(list) == 0 {
		return false, err
	}
	dir, err := files.OpenDir(e.root)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	holes = balloon.Join(holes)
	for _, b := range list {
		last := lastIn(b.Held, holes)
		if !which(b) || b.Err == nil && last == b.Size && b.Sealed {
			continue
		}
		changed = true
		err = errors.Join(err, deflate(dir, b.Name, last)) // not synced, as in take
	}
	return changed, err
}

// lastIn is the byte of a file, of which held are the places, after the last one that
// lies in holes, which are in order.
func lastIn(held, holes []balloon.Range) (end int64) {
	at := int64(0)
	for _, r := range held {
		behind := sort.Search(len(holes), func(i int) bool { return holes[i].Start >= r.End })
		if behind > 0 && holes[behind-1].End > r.Start {
			end = at + min(holes[behind-1].End, r.End) - r.Start
		}
		at += r.Bytes()
	}
	return end
}
