package resize

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
)

const (
	// holdParts is in about how many balloons all free space is taken: each holds as well
	// what happens to lie between the holes.
	holdParts = 512
	leastHold = 16 << 20
)

// hold takes all that is free, for it cannot choose the place of a balloon, and lets go
// of what does not lie in the holes. For that moment the file system is full.
func (e *ext4FS) hold(ctx context.Context, holes []balloon.Range) error {
	err := e.takeFree(ctx)
	if err = errors.Join(err, e.sync(), e.tidy(holes)); err != nil {
		return fmt.Errorf("cannot hold what is not reserved: %w", err)
	}
	return nil
}

func (e *ext4FS) takeFree(ctx context.Context) error {
	dir, err := e.dir()
	if err != nil {
		return err
	}
	defer dir.Close()
	last, err := lastNumber(dir)
	if err != nil {
		return err
	}
	free, _, err := e.usage()
	if err != nil {
		return err
	}
	size := max(free/holdParts, leastHold) / balloon.BlockSize * balloon.BlockSize
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		last++
		f, err := newBalloon(dir, last)
		if err != nil {
			return err
		}
		err = allocate(f, size)
		if f.Close(); errors.Is(err, unix.ENOSPC) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (e *ext4FS) tidy(holes []balloon.Range) error {
	list, err := e.balloons()
	if err != nil || len(list) == 0 {
		return err
	}
	dir, err := files.OpenDir(e.root)
	if err != nil {
		return err
	}
	defer dir.Close()
	changed := false
	for _, b := range list {
		last := int64(0) // of a file that is no balloon: all of it is reserved by now
		if b.Err == nil {
			last = lastIn(b.Held, holes)
		}
		if b.Err == nil && last == b.Size && b.Sealed {
			continue
		}
		changed = true
		if derr := deflate(dir, b.Name, last); derr != nil {
			err = errors.Join(err, derr)
		}
	}
	if changed {
		err = errors.Join(err, e.sync())
	}
	return err
}

// lastIn is the byte of a file, of which held are the places, after the last one that
// lies in holes.
func lastIn(held, holes []balloon.Range) (end int64) {
	at := int64(0)
	for _, r := range held {
		if both := balloon.Both([]balloon.Range{r}, holes); len(both) > 0 {
			end = at + both[len(both)-1].End - r.Start
		}
		at += r.Bytes()
	}
	return end
}
