package resize

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/state"
	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/layout"
)

// writeAnew writes to the image what it has, where btrfs does not write in place since a
// snapshot was made: so it gets extents of its own, which are. Each write is a copy that
// takes the old one's place on the disk when it is there, so that a power cut leaves
// either, with the same content. Only while the volume is read-only, and stays so: what
// somebody else writes between reading and writing would be lost. Errors: ErrCopied, ErrNoRoom.
func (v *Volume) writeAnew(ctx context.Context, m measured) error {
	if flagged, err := state.InPlace(v.image); err != nil {
		return err
	} else if !flagged {
		return fmt.Errorf("cannot repair %s, which btrfs writes in place only with attribute C, and that an empty file alone can be given; copy it with the volume closed, as docs/operators.md says: %w", state.ImageName, ErrCopied)
	}
	return v.whileReadOnly(func() error { return v.allAnew(ctx, m.copied) })
}

// allAnew is writeAnew of these ranges.
func (v *Volume) allAnew(ctx context.Context, copied []balloon.Range) error {
	wait, cancel := context.WithTimeout(ctx, headerWait)
	defer cancel()
	header, err := state.OpenHeader(wait, v.dir, true) // nobody changes keyslots meanwhile
	if err != nil {
		return err
	}
	defer header.Close()
	for _, r := range copied {
		extents, err := files.Map(v.image, r.Start, r.End)
		if err != nil {
			return err
		}
		for _, e := range extents {
			in := balloon.Within([]balloon.Range{r}, e.Logical, e.Logical+e.Length)
			for _, r := range in {
				if err := v.anew(ctx, r, e.Flags&balloon.FlagUnwritten != 0); err != nil {
					return err
				}
			}
		}
	}
	if err := unix.Syncfs(int(v.image.Fd())); err != nil {
		return fmt.Errorf("cannot sync the state partition: %w", err)
	}
	return nil
}

// headerWait is how long others may hold the header.
const headerWait = 30 * time.Second

// anew writes a range unit by unit: no extent of it reaches over the border of one.
func (v *Volume) anew(ctx context.Context, r balloon.Range, unwritten bool) error {
	buf := make([]byte, v.unit)
	for r.Start < r.End {
		next := min(r.End, (r.Start/v.unit+1)*v.unit)
		part := balloon.Range{Start: r.Start, End: next}
		if err := errors.Join(ctx.Err(), v.roomFor(part.Bytes())); err != nil {
			return err
		}
		var err error
		if unwritten {
			// crash point: a hole where nothing is; the next boot reserves it
			err = errors.Join(state.Release(v.image, part.Start, part.End), state.Reserve(v.image, part.Start, part.Bytes()))
		} else if _, err = v.image.ReadAt(buf[:part.Bytes()], part.Start); err == nil {
			if _, err = v.image.WriteAt(buf[:part.Bytes()], part.Start); err == nil {
				err = v.image.Sync() // or what is written next gets into the same extent
			}
		}
		if err != nil {
			return fmt.Errorf("cannot write %s anew: %w", state.ImageName, noRoom(err))
		}
		r.Start = next
	}
	return nil
}

// roomFor tells whether the state partition has room for n bytes more.
func (v *Volume) roomFor(n int64) error {
	var free int64
	for try := range 2 {
		var fs unix.Statfs_t
		if err := unix.Fstatfs(int(v.image.Fd()), &fs); err != nil {
			return fmt.Errorf("cannot measure the state partition: %w", err)
		}
		if free = int64(fs.Bavail) * fs.Bsize; free >= n+keepOutside {
			return nil
		}
		if try == 0 { // what was freed counts once its transaction has ended
			if err := unix.Syncfs(int(v.image.Fd())); err != nil {
				return fmt.Errorf("cannot sync the state partition: %w", err)
			}
		}
	}
	return fmt.Errorf("cannot write the volume anew, %d MiB are free on the state partition; delete the snapshots of /state/%s: %w", free>>20, layout.ImageSubvolume, ErrNoRoom)
}
