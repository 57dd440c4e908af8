package sharing

import (
	"context"
	"errors"
	"fmt"

	"sealroot/state"
	"sealroot/state/balance"
	"sealroot/state/resize"
)

// Resizer is the volume of the running machine: *resize.Volume.
type Resizer interface {
	Measure() (resize.Sizes, error)
	ResizeTo(ctx context.Context, want func(resize.Sizes) int64) (resize.Sizes, error)
	Extend(ctx context.Context, n int64) (resize.Sizes, error)
	Repair(ctx context.Context) (resize.Sizes, error)
}

// Resized is the volume that a resizer resizes.
type Resized struct{ Resizer }

// Measure is in balance's terms. Errors: balance.ErrNotNow while another program resizes;
// resize.ErrCopied, for a person to be told once: nothing can be resized then.
func (r Resized) Measure() (balance.Sizes, error) {
	s, err := r.Resizer.Measure()
	if err != nil {
		return balance.Sizes{}, passing(err)
	}
	if s.Copied > 0 && s.OverCommitted == 0 && !s.ReadOnly {
		return balance.Sizes{}, fmt.Errorf("nothing is resized, for the volume is not reserved; sealroot state status says how much, and what to do: %w", resize.ErrCopied)
	}
	return Terms(s), nil
}

// Terms are sizes as package balance has them.
func Terms(s resize.Sizes) balance.Sizes {
	inner := s.InnerFree + s.InnerUsed
	device := inner + s.InBalloons + max(0, s.Apparent-s.DataOffset-s.Spanned)
	if s.Classic { // it is made larger with the volume
		device = 0
	}
	return balance.Sizes{
		// What is written elsewhere meanwhile must find room: so the volume gives back for it.
		Outer: s.OuterTotal, OuterFree: max(0, s.OuterFree-s.Moving), Inner: inner, InnerFree: s.InnerFree, Gap: s.OverCommitted, ReadOnly: s.ReadOnly,
		Device: device, Largest: s.Apparent >= s.OuterTotal/state.BlockSize*state.BlockSize, Copied: s.Copied,
		Slack: max(0, s.InnerFree-max(0, s.Reserved-s.MinReserved)), OuterSlack: s.KeptOutside,
		Unit: s.Unit, Balloons: s.InBalloons, Inodes: balance.Inodes(s.Inodes),
	}
}

// ErrNothing: next to nothing has changed, though that was decided.
var ErrNothing = errors.New("nothing has changed")

// leastChange is how much less, in bytes, is next to nothing.
const leastChange = 1 << 20

// reservedFor is what is reserved, as near as possible, once the file system is so large.
func reservedFor(s resize.Sizes, size int64) int64 {
	return min(max(s.Reserved+size-s.InnerFree-s.InnerUsed, s.MinReserved), s.MaxReserved)
}

// Resize changes by how much is reserved what the file system is to change by, as far
// as that is possible now. That somebody was faster and took the room is no failure: the
// next look sees it. What the sizes promise and the file systems refuse is one, and so is
// what changes nothing: it would be asked for at every look. Errors: ErrNothing, those of
// the resizer, with balance.ErrNotNow where another program was at it.
func (r Resized) Resize(ctx context.Context, size int64) error {
	s, err := r.Resizer.Measure()
	if err != nil {
		return passing(err)
	}
	reserved := reservedFor(s, size)
	unchanged := func(now int64) bool { return max(now-s.Reserved, s.Reserved-now) < leastChange }
	if unchanged(reserved) {
		return fmt.Errorf("%w: it is as near to that as it can be", ErrNothing)
	}
	grow := reserved > s.Reserved
	after, err := r.Resizer.ResizeTo(ctx, func(now resize.Sizes) int64 {
		if reserved = reservedFor(now, size); grow != (reserved > now.Reserved) {
			reserved = now.Reserved // somebody was faster, and did more
		}
		return reserved
	})
	switch {
	case err == nil && unchanged(after.Reserved):
		return ErrNothing
	case errors.Is(err, resize.ErrTooSmall), errors.Is(err, resize.ErrNoRoom):
		if !unchanged(after.Reserved) || reserved < after.MinReserved || reserved > after.MaxReserved {
			return nil
		}
	}
	return passing(err)
}

// Extend adds behind the end what the file system is to be larger by, as far as there is room
// now. Errors: as of Resize, with balance.ErrNoRoom where the partition has not the room.
func (r Resized) Extend(ctx context.Context, size int64) error {
	s, err := r.Resizer.Measure()
	if err != nil {
		return passing(err)
	}
	n := min(size-s.InnerFree-s.InnerUsed, s.MaxReserved-s.Reserved)
	if n < leastChange {
		return fmt.Errorf("%w: %w", balance.ErrNoRoom, ErrNothing)
	}
	after, err := r.Resizer.Extend(ctx, n)
	switch {
	case err == nil && after.Spanned-s.Spanned < leastChange: // the kernel adds no group that is too small
		return ErrNothing
	case errors.Is(err, resize.ErrNoRoom) && after.MaxReserved-after.Reserved < n:
		return nil
	case errors.Is(err, resize.ErrNoRoom):
		return fmt.Errorf("%w: %w", balance.ErrNoRoom, err)
	}
	return passing(err)
}

// passing marks what goes away by itself for package balance.
func passing(err error) error {
	if errors.Is(err, resize.ErrBusy) {
		return fmt.Errorf("%w: %w", balance.ErrNotNow, err)
	}
	return err
}

// Reserve allocates the gap, or lets nobody write there.
func (r Resized) Reserve(ctx context.Context) error {
	_, err := r.Repair(ctx)
	return passing(err)
}

// Look tells what both sides have. autoResize is state.auto_resize.
func Look(s resize.Sizes, l balance.Limits, autoResize string, past []Past, d balance.Decision) Sides {
	device := string(state.Oversized)
	if s.Classic {
		device = string(state.Classic)
	}
	return Sides{
		Device: device, DeviceBytes: s.Device - s.DataOffset, Spanned: s.Spanned,
		Partition: s.OuterTotal, PartitionFree: s.OuterFree, KeepFree: l.Keep(s.OuterTotal, s.KeptOutside), Reserved: s.Reserved,
		Volume: s.InnerFree + s.InnerUsed, VolumeFree: s.InnerFree, GivenBack: s.GivenBack, InBalloons: s.InBalloons,
		Spare: max(0, s.Reserved-s.MinReserved), Gap: s.OverCommitted, Copied: s.Copied, Moving: s.Moving,
		VolumeInodes: s.Inodes.All, VolumeInodesFree: s.Inodes.Free, PartitionInodes: s.OuterInodes, PartitionInodesFree: s.OuterInodesFree,
		few:        l.FewInodes(s.OuterTotal, balance.Inodes(s.Inodes)) || l.FewInodes(s.OuterTotal, inodesOutside(s)),
		AutoResize: autoResize, StatedRate: l.StatedRate(s.OuterTotal), Decisions: append([]Past{}, past...), Now: Sentence(d, nil),
	}
}

// inodesOutside are those of the partition. Nothing brings more of them.
func inodesOutside(s resize.Sizes) balance.Inodes {
	if s.OuterInodes == 0 {
		return balance.Inodes{}
	}
	return balance.Inodes{All: s.OuterInodes, Free: s.OuterInodesFree, PerGroup: s.OuterInodes, GroupBytes: s.OuterTotal}
}
