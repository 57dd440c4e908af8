package resize

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/btrfs"
)

// btrfs gets smaller while it is mounted, by the rules of state/btrfs: so it shrinks in
// steps, stops at the first one for which there is no room, and tries no other sizes.
type btrfsFS struct {
	mounted
	info   func(fd int) (btrfs.Info, error)            // btrfs.ReadInfo
	resize func(fd int, device, size uint64) error     // btrfs.Resize
	pack   func(fd int, percent uint64) error          // btrfs.Compact
	chunks func(fd int) (total, used int64, err error) // btrfs.DataChunks
	moves  func(fd int) (bool, error)                  // btrfs.Moves
}

// packed is how full chunks of data are at least, in percent, once compact has moved together
// what can be: of fuller ones little comes, and all of it has to be moved.
const packed = 85

// usage is of which chunks, in percent, the data is moved together, one after the other.
func usage() []uint64 { return []uint64{50, 70, packed} }

func (*btrfsFS) name() string { return "btrfs" }

func (*btrfsFS) shrinks() bool { return true }

func (*btrfsFS) slack(used int64) int64 { return btrfs.Slack(used) }

// shrinkStep decides how much smaller a file system of size bytes may get at once, of n
// that are asked for, where room bytes are free beside the slack and chunks have
// allocated bytes.
func shrinkStep(n, size, allocated, room int64) int64 {
	step := min(n, btrfs.LargestStep(size), room, size-allocated-btrfs.Unallocated(size))
	return max(step, 0) / balloon.BlockSize * balloon.BlockSize
}

func (b *btrfsFS) look() (btrfs.Info, error) { return b.info(int(b.root.Fd())) }

func (b *btrfsFS) spanned(durable bool) (int64, error) {
	flags := 0
	if durable {
		if err := b.sync(); err != nil {
			return 0, err
		}
		flags = unix.O_DIRECT
	}
	last, err := b.superblock(flags)
	if err != nil {
		return 0, err
	}
	now, err := b.look()
	return max(now.Bytes, last.Bytes), err
}

// superblock is read with these flags of open.
func (b *btrfsFS) superblock(flags int) (btrfs.Superblock, error) {
	return readSuperblock(b.device, flags, btrfs.ReadSuperblock, btrfs.ErrSuperblock)
}

func (b *btrfsFS) sound() error {
	sb, err := b.superblock(0)
	if err == nil && sb.Errors {
		err = errors.New("the volume's file system is marked as damaged, it has to be checked by btrfs check")
	}
	return err
}

func (*btrfsFS) givenBack() ([]balloon.Range, error) { return nil, nil }

func (*btrfsFS) take(context.Context, int64, func([]balloon.Range) (int64, error)) (int64, error) {
	return 0, nil
}

func (*btrfsFS) calm() error { return nil }

// freezes goes by what runs for long: a scrub, and what only one program does at a time.
func (b *btrfsFS) freezes() bool {
	i, err := b.look()
	if err != nil {
		return false
	}
	moves, err := b.moves(int(b.root.Fd()))
	if err != nil || moves {
		return false
	}
	exclusive, err := os.ReadFile(filepath.Join(sysfs(i), "exclusive_operation")) // kernel: Documentation/ABI/testing/sysfs-fs-btrfs
	return err == nil && string(exclusive) == "none\n"
}

func (*btrfsFS) tidy([]balloon.Range) (bool, error) { return false, nil }

func (b *btrfsFS) grow(size int64) error {
	i, err := b.look()
	if err != nil {
		return err
	}
	if err := b.resize(int(b.root.Fd()), i.DeviceID, uint64(size)); errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: %w", ErrBusy, err)
	} else if err != nil {
		return err
	}
	return nil
}

// least is where shrinkStep ends once all that can be is moved together.
func (b *btrfsFS) least() (int64, error) {
	i, err := b.look()
	if err != nil {
		return 0, err
	}
	total, used, err := b.chunks(int(b.root.Fd()))
	return leastSize(i.Allocated, total, used), err
}

// leastSize is of chunks that have allocated bytes, of which data has total and uses used.
func leastSize(allocated, total, used int64) int64 {
	allocated -= max(0, total-used/packed*100)
	return allocated + min(allocated/7, btrfs.Unallocated(math.MaxInt64)) // an eighth of the sum
}

func (b *btrfsFS) give(ctx context.Context, n int64, release func([]balloon.Range) (int64, error)) error {
	for usage := usage(); n >= balloon.BlockSize; {
		if err := ctx.Err(); err != nil {
			return err
		}
		free, used, err := b.usage()
		if err != nil {
			return err
		}
		i, err := b.look()
		if err != nil {
			return err
		}
		room := free - b.slack(used)
		step := shrinkStep(n, i.Bytes, i.Allocated, room)
		if step < min(n, leastBalloon)/balloon.BlockSize*balloon.BlockSize {
			if room >= leastBalloon && len(usage) > 0 {
				less, err := b.compact(i.Allocated, usage[0])
				if err != nil {
					return err
				}
				if !less {
					usage = usage[1:]
				}
				continue
			}
			if room >= leastBalloon {
				return fmt.Errorf("cannot give more back, what is free lies between what is used: %w", ErrTooSmall)
			}
			return fmt.Errorf("cannot give more back, %d MiB are free: %w", free>>20, ErrTooSmall)
		}
		if err := b.shrink(i, i.Bytes-step); err != nil {
			return err
		}
		if _, err := release([]balloon.Range{{Start: i.Bytes - step, End: i.Bytes}}); err != nil {
			return err
		}
		n -= step
	}
	return nil
}

// shrink lets the file system span size bytes, on stable storage.
func (b *btrfsFS) shrink(i btrfs.Info, size int64) error {
	err := b.resize(int(b.root.Fd()), i.DeviceID, uint64(size))
	switch {
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("%w: %w", ErrTooSmall, err) // it has the size it had
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case err != nil:
		return err
	}
	switch spans, err := b.spanned(true); {
	case err != nil:
		return err
	case spans > size:
		return fmt.Errorf("cannot give back what the volume spans: its superblock has %d bytes, not %d", spans, size)
	}
	return nil
}

// compact frees a chunk of data of which at most percent are used, of all that have
// allocated bytes, and tells whether those are less now.
func (b *btrfsFS) compact(allocated int64, percent uint64) (less bool, err error) {
	err = b.pack(int(b.root.Fd()), percent)
	switch {
	case errors.Is(err, unix.EBUSY):
		return false, fmt.Errorf("%w: %w", ErrBusy, err)
	case err != nil && !errors.Is(err, unix.ENOSPC):
		return false, err
	}
	i, err := b.look()
	return i.Allocated < allocated, err
}

// hold gives up the end of the file system from the first hole on: other programs may
// have written between two of them.
func (b *btrfsFS) hold(ctx context.Context, holes []balloon.Range) error {
	i, err := b.look()
	if err != nil || len(holes) == 0 {
		return err
	}
	return b.give(ctx, i.Bytes-holes[0].Start, func([]balloon.Range) (int64, error) { return 0, nil })
}

// isBtrfsOn tells whether the device alone holds the btrfs that is mounted at root:
// st_dev is a number of its own there, which belongs to no device.
func isBtrfsOn(root *os.File, c crypt) (bool, error) {
	i, err := btrfs.ReadInfo(int(root.Fd()))
	if err == nil && i.Devices != 1 {
		err = fmt.Errorf("cannot resize btrfs on %d devices: %w", i.Devices, ErrNotOpen)
	}
	if err != nil {
		return false, err
	}
	number, err := os.ReadFile(filepath.Join(sysfs(i), "devices", filepath.Base(c.path), "dev"))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return strings.TrimSpace(string(number)) == fmt.Sprintf("%d:%d", unix.Major(c.number), unix.Minor(c.number)), err
}

// sysfs is where the kernel tells of a mounted file system.
func sysfs(i btrfs.Info) string {
	u := i.UUID
	return filepath.Join("/sys/fs/btrfs", fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]))
}
