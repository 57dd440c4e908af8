package resize

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/ext4"
)

// ext4 cannot shrink while it is mounted. It gives back by balloons: files that hold
// blocks which are allocated and were never written to, so that nothing reads or
// writes what is in them.
type ext4FS struct {
	mounted
	resize func(fd int, blocks uint64) error // ext4.Resize
}

const (
	// largestBalloon bounds a step, and what a power cut can leave half done.
	largestBalloon = 1 << 30
	leastBalloon   = files.LeastBytes
	// slackBytes is what stays free at least after something was given back, beside
	// a part of what is used: for metadata and who writes just then.
	slackBytes = 32 << 20
	slackPart  = 64
)

func (*ext4FS) name() string { return "ext4" }

func (*ext4FS) shrinks() bool { return false }

func (*ext4FS) slack(used int64) int64 { return slackBytes + used/slackPart }

func (e *ext4FS) spanned(durable bool) (int64, error) {
	// The kernel's own superblock is in the page cache of the device.
	now, err := e.superblock(0)
	if err != nil || !durable {
		return int64(now.Bytes()), err
	}
	if err := e.sync(); err != nil {
		return 0, err
	}
	last, err := e.superblock(unix.O_DIRECT)
	return int64(max(now.Bytes(), last.Bytes())), err
}

func (e *ext4FS) sound() error {
	sb, err := e.superblock(0)
	if err == nil && sb.Errors {
		err = errors.New("the volume's file system is marked as damaged, it has to be checked by e2fsck: the next boot with state.fsck: auto does that")
	}
	return err
}

// superblock is read with these flags of open.
func (e *ext4FS) superblock(flags int) (ext4.Superblock, error) {
	sb, err := readSuperblock(e.device, flags, ext4.ReadSuperblock, ext4.ErrSuperblock)
	if err == nil && sb.BlockSize != balloon.BlockSize {
		return ext4.Superblock{}, fmt.Errorf("cannot resize a file system with blocks of %d bytes", sb.BlockSize)
	}
	return sb, err
}

func (e *ext4FS) balloons() ([]files.Balloon, error) {
	end, err := e.spanned(false)
	if err != nil {
		return nil, err
	}
	list, err := files.List(e.root, end)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return list, err
}

func (e *ext4FS) givenBack() ([]balloon.Range, error) {
	list, err := e.balloons()
	return files.Held(list), err
}

func (e *ext4FS) grow(size int64) error {
	return e.resize(int(e.root.Fd()), uint64(size)/balloon.BlockSize)
}

func (e *ext4FS) give(ctx context.Context, n int64, release func([]balloon.Range) (int64, error)) error {
	list, err := e.givenBack()
	if err != nil {
		return err
	}
	wanted := n
	for given := balloon.Total(list); n >= balloon.BlockSize; {
		if err := ctx.Err(); err != nil {
			return err
		}
		free, used, err := e.usage()
		if err != nil {
			return err
		}
		size := min(n, largestBalloon, free-e.slack(used-given)) / balloon.BlockSize * balloon.BlockSize
		if size < min(n, leastBalloon)/balloon.BlockSize*balloon.BlockSize {
			if n < leastBalloon { // balloons before this one have used blocks for their extents
				return nil
			}
			return fmt.Errorf("cannot give more back, %d MiB are free: %w", free>>20, ErrTooSmall)
		}
		b, err := e.inflate(size)
		if err != nil {
			return err
		}
		released, err := release(b.Held)
		if err != nil {
			return err
		}
		if released == 0 && n < wanted {
			return nil // a rest that the outer file system does not take back alone
		} else if released == 0 {
			return fmt.Errorf("cannot give back %d KiB, the state partition takes back more at once: %w", n>>10, ErrTooSmall)
		}
		n, given = n-released, given+b.Size
	}
	return nil
}

// inflate makes a balloon of at most size bytes and proves what it holds, on stable
// storage.
func (e *ext4FS) inflate(size int64) (files.Balloon, error) {
	dir, err := files.MakeDir(e.root)
	if err != nil {
		return files.Balloon{}, tooSmall(err, "nothing is free in it")
	}
	defer dir.Close()
	last, err := lastNumber(dir)
	if err != nil {
		return files.Balloon{}, err
	}
	f, err := files.Create(dir, last+1)
	if err != nil {
		return files.Balloon{}, tooSmall(err, "no inode is free in it")
	}
	defer f.Close()
	err = tooSmall(allocate(f, size), "it was written to since it was measured")
	var b files.Balloon
	if err == nil {
		b, err = e.prove(f, e.sync)
	}
	if err != nil {
		// Nothing of it was given back.
		err = fmt.Errorf("cannot make a balloon: %w", errors.Join(err, deflate(dir, f.Name(), 0)))
	}
	return b, err
}

// tooSmall makes ErrTooSmall, with the reason, of what the volume says when it is full.
func tooSmall(err error, why string) error {
	if errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("%w: %s: %w", ErrTooSmall, why, err)
	}
	return err
}

// allocate takes size bytes, or the half of it and so on where there is no room.
func allocate(f *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		if err == nil {
			return nil
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if size /= 2; !errors.Is(err, unix.ENOSPC) || size < leastBalloon {
			return err
		}
		size = size / balloon.BlockSize * balloon.BlockSize
		if err := f.Truncate(0); err != nil {
			return err
		}
	}
}

// prove makes a file a balloon. sync is e.sync.
func (e *ext4FS) prove(f *os.File, sync func() error) (b files.Balloon, err error) {
	if err := f.Sync(); err != nil {
		return b, err
	}
	if err := files.ChangeFlags(f, files.Immutable|files.NoDump, 0); err != nil {
		return b, err
	}
	end, err := e.spanned(false)
	if err != nil {
		return b, err
	}
	before, err := files.Look(f, end)
	if err != nil {
		return b, err
	}
	// From here on no power cut takes the blocks from the balloon, and what the
	// journal had of them is where it belongs.
	if err := sync(); err != nil {
		return b, err
	}
	b, err = files.Look(f, end)
	switch {
	case err != nil:
		return b, err
	case b.Err != nil:
		return b, b.Err
	case !b.Sealed || !slices.Equal(inOrder(before.Held), inOrder(b.Held)):
		return b, fmt.Errorf("%w: its extents moved", balloon.ErrNotHeld)
	}
	return b, nil
}

// inOrder puts together the places of a file's bytes that follow one another in the file as
// well. The kernel may tell of the same in other pieces at another time: as its cache has
// them, which puts extents together, or as the tree of extents on the disk has them, of at
// most 32767 blocks each. The order stays that of the file: the same blocks in another one
// were moved, and belonged to some other file in between, with which the sync may have kept
// them.
func inOrder(held []balloon.Range) (list []balloon.Range) {
	for _, r := range held {
		if n := len(list); n > 0 && list[n-1].End == r.Start {
			list[n-1].End = r.End
		} else {
			list = append(list, r)
		}
	}
	return list
}

// lastNumber is the highest that names a balloon, or 0.
func lastNumber(dir *os.File) (last int, err error) {
	names, err := dir.Readdirnames(-1)
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			last = max(last, n)
		}
	}
	return last, err
}

// take syncs nothing, for somebody may just have much to write. A power cut finds each
// balloon as it was or cut, and all that was cut of it reserved, for the journal's commit
// has the device flushed first, and so the image; nobody gets its blocks before that.
func (e *ext4FS) take(ctx context.Context, n int64, reserve func([]balloon.Range) (int64, error)) (taken int64, err error) {
	list, err := e.balloons()
	if err != nil || len(list) == 0 {
		return 0, err
	}
	dir, err := files.OpenDir(e.root)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	for _, b := range slices.Backward(list) {
		if b.Err != nil {
			continue
		}
		// A part of what it holds may be reserved: then more of it is cut.
		for keep := b.Size; keep > 0; {
			left := (n - taken) / balloon.BlockSize * balloon.BlockSize
			if left <= 0 {
				return taken, nil
			}
			if err := ctx.Err(); err != nil {
				return taken, err
			}
			keep = max(0, keep-left)
			reserved, err := reserve(behind(b.Held, keep))
			if err != nil {
				return taken, err
			}
			if err := deflate(dir, b.Name, keep); err != nil {
				return taken, err
			}
			taken += reserved
		}
	}
	return taken, nil
}

// behind are the places of a file's bytes from keep on.
func behind(held []balloon.Range, keep int64) (list []balloon.Range) {
	for _, r := range held {
		n := min(keep, r.Bytes())
		if keep -= n; n < r.Bytes() {
			list = append(list, balloon.Range{Start: r.Start + n, End: r.End})
		}
	}
	return list
}

// deflate cuts a balloon, of which all from byte keep on is reserved, and seals what is
// left of it.
func deflate(dir *os.File, name string, keep int64) (err error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot take balloon %s back: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err = files.ChangeFlags(f, files.NoDump, files.Immutable); err == nil {
		if keep == 0 {
			err = unix.Unlinkat(int(dir.Fd()), name, 0)
		} else {
			err = cut(dir, name, keep)
		}
		if err != nil || keep > 0 {
			err = errors.Join(err, files.ChangeFlags(f, files.Immutable, 0))
		}
	}
	if err != nil {
		return fmt.Errorf("cannot take balloon %s back: %w", name, err)
	}
	return nil
}

func cut(dir *os.File, name string, keep int64) error {
	w, err := unix.Openat(int(dir.Fd()), name, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Ftruncate(w, keep), unix.Close(w))
}
