package resize

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/ext4"
	"sealroot/state/luks2"
)

// Inodes are how many files a file system has room for, whatever is free of its bytes: of
// ext4, which makes no more of them but with new block groups behind its end. The zero value
// is of a file system that has no such bound: btrfs.
type Inodes struct {
	All, Free int64
	// PerGroup come at once, for GroupBytes behind the end: the first of them already with
	// FirstBytes, of which RestBytes still go into the last group that is there.
	PerGroup, GroupBytes, FirstBytes, RestBytes int64
}

// leastGroup is how many bytes of a block group make the kernel add it: 2 MiB of inodes, bitmaps,
// at most 4 MiB of copies of the group descriptors, and something to write to.
const leastGroup = 8 << 20

// inodesOf is of a file system with that superblock.
func inodesOf(sb ext4.Superblock, all, free int64) Inodes {
	group := int64(sb.GroupBlocks) * int64(sb.BlockSize)
	if group <= leastGroup || sb.GroupInodes == 0 {
		return Inodes{}
	}
	rest := balloon.Up(int64(sb.Bytes()), group) - int64(sb.Bytes())
	return Inodes{All: all, Free: free, PerGroup: int64(sb.GroupInodes), GroupBytes: group, FirstBytes: rest + leastGroup, RestBytes: rest}
}

// inodes of btrfs are made as files are.
func (*btrfsFS) inodes() (Inodes, error) { return Inodes{}, nil }

func (e *ext4FS) inodes() (Inodes, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(e.root.Fd()), &st); err != nil {
		return Inodes{}, fmt.Errorf("cannot measure the volume: %w", err)
	}
	sb, err := e.superblock(0)
	return inodesOf(sb, int64(st.Files), int64(st.Ffree)), err
}

// least is all that it spans where not even a balloon can be made.
func (e *ext4FS) least() (int64, error) {
	i, err := e.inodes()
	if err != nil || i.Free > 0 || i.All == 0 {
		return 0, err
	}
	dir, err := files.OpenDir(e.root)
	if err == nil {
		defer dir.Close()
		if files.HasSpare(dir) {
			return 0, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	return e.spanned(false)
}

// stock has files ready for the time when no inode is free. That there is none now, or that
// the file system is full, is no error of what was done before.
func (e *ext4FS) stock() {
	if dir, err := files.MakeDir(e.root); err == nil {
		files.Stock(dir)
		dir.Close()
	}
}

// Extend lets the inner file system span n bytes more, with all of them reserved, whatever
// balloons hold: for its inodes, which nothing else brings. Errors: those of Resize.
func (v *Volume) Extend(ctx context.Context, n int64) (Sizes, error) {
	return v.locked(func() error { return v.extend(ctx, n) })
}

func (v *Volume) extend(ctx context.Context, n int64) (err error) {
	m, err := v.measure(false)
	if err != nil {
		return err
	}
	if m.ReadOnly {
		return fmt.Errorf("cannot extend the volume: %w", ErrReadOnly)
	}
	if m, err = v.repair(ctx, m); err != nil {
		return err
	}
	n = n / balloon.BlockSize * balloon.BlockSize
	if _, err := m.bounded(m.Reserved + n); err != nil {
		return err
	}
	end := v.begin + m.Spanned + n
	switch {
	case n <= 0:
		return nil
	case end > m.end():
		return fmt.Errorf("cannot extend the volume to %d MiB, its device ends at %d MiB until the next boot: %w", end>>20, m.end()>>20, ErrTooLarge)
	case m.Classic: // before anything is changed
		if err := v.withKey(end, func(luks2.CryptTarget, []byte) error { return nil }); err != nil {
			return err
		}
	}
	defer func() { err = v.tidied(err) }()
	return v.behind(m, n)
}
