// Package files reads what package balloon judges: extents, the balloons of a mounted
// volume, and the record beside encrypted.img.
package files

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
)

// maxExtents bounds what is kept of one file: a terabyte in pieces of a megabyte.
const maxExtents = 1 << 20

// fiemap is struct fiemap of uapi/linux/fiemap.h with room for extents.
type fiemap struct {
	start, length               uint64
	flags, mapped, count, spare uint32
	extents                     [256]fiemapExtent
}

type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

const (
	iocFiemap  = 0xc020660b // FS_IOC_FIEMAP, _IOWR('f', 11, struct fiemap)
	fiemapSync = 0x1
)

// Map lists the extents of a file from byte start to before byte end; those at the
// borders may reach further. It writes the file's dirty pages first.
func Map(f *os.File, start, end int64) (list []balloon.Extent, err error) {
	err = each(f, start, end, func(e balloon.Extent) error {
		if list = append(list, e); len(list) > maxExtents {
			return fmt.Errorf("more than %d: %w", maxExtents, errors.ErrUnsupported)
		}
		return nil
	})
	return list, err
}

// Reserved lists the bytes of a file from start to before end that its file system holds
// blocks for, written to or not. In bytes that are just written for the first time btrfs
// tells of no place, or leaves them out, also where one is reserved (fs/btrfs/extent_io.c,
// fiemap_process_hole, and extents that are split meanwhile): what is missing there is looked
// at again, after some time for whoever writes.
func Reserved(f *os.File, start, end int64) (list []balloon.Range, err error) {
	var fs unix.Statfs_t
	err = unix.Fstatfs(int(f.Fd()), &fs)
	for n := 0; err == nil && n < 4; n = 2*n + 1 {
		time.Sleep(time.Duration(n) * pause)
		var there []balloon.Range
		there, err = ranges(f, start, end, balloon.FlagUnknown|balloon.FlagDelalloc, 0)
		list = balloon.Join(list, there)
		if fs.Type != unix.BTRFS_SUPER_MAGIC || balloon.Total(list) == end-start {
			break
		}
	}
	return list, err
}

// pause is what Reserved waits before its second look; before the third three of it.
const pause = 10 * time.Millisecond

// Shared lists the bytes of a file from start to before end that another file has, too:
// who writes there needs new blocks.
func Shared(f *os.File, start, end int64) ([]balloon.Range, error) {
	return ranges(f, start, end, balloon.FlagShared, balloon.FlagShared)
}

// ranges lists the bytes of extents that have of these flags just those that are set.
func ranges(f *os.File, start, end int64, flags, set uint32) (list []balloon.Range, err error) {
	err = each(f, start, end, func(e balloon.Extent) error {
		at, to := max(start, e.Logical), min(end, e.Logical+e.Length)
		switch n := len(list); {
		case e.Flags&flags != set || at >= to:
		case n > 0 && list[n-1].End == at:
			list[n-1].End = to
		case n == maxExtents:
			return fmt.Errorf("more than %d pieces: %w", maxExtents, errors.ErrUnsupported)
		default:
			list = append(list, balloon.Range{Start: at, End: to})
		}
		return nil
	})
	return list, err
}

func each(f *os.File, start, end int64, do func(balloon.Extent) error) error {
	m := new(fiemap)
	for start < end {
		*m = fiemap{start: uint64(start), length: uint64(end - start), flags: fiemapSync, count: uint32(len(m.extents))}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), iocFiemap, uintptr(unsafe.Pointer(m)))
		runtime.KeepAlive(f)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return fmt.Errorf("cannot map the extents of %s: %w", f.Name(), errno)
		}
		if m.mapped == 0 || m.mapped > m.count {
			break
		}
		for _, e := range m.extents[:m.mapped] {
			next := int64(e.logical + e.length)
			last := e.flags&balloon.FlagLast != 0
			if next <= start && !last {
				return fmt.Errorf("cannot map the extents of %s: one at byte %d after byte %d", f.Name(), e.logical, start)
			}
			if err := do(balloon.Extent{Logical: int64(e.logical), Physical: int64(e.physical), Length: int64(e.length), Flags: e.flags}); err != nil {
				return fmt.Errorf("cannot map the extents of %s: %w", f.Name(), err)
			}
			if start = next; last {
				return nil
			}
		}
	}
	return nil
}
