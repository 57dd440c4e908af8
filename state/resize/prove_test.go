package resize

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
)

// clearCache is EXT4_IOC_CLEAR_ES_CACHE, _IO('f', 40): the kernel forgets a file's extents,
// as it does when memory is short.
const clearCache = 0x6628

// proved makes a balloon of size bytes, and does that when its file system is synced.
func proved(t *testing.T, v *Volume, size int64, when func(f *os.File) error) (files.Balloon, error) {
	t.Helper()
	folder(t, v)
	dir, err := files.OpenDir(v.root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	f, err := files.Create(dir, 1)
	if err == nil {
		err = allocate(f, size)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	e := v.in.(*ext4FS)
	return e.prove(f, func() error { return errors.Join(e.sync(), when(f)) })
}

// What the kernel has in its cache of a file's extents, and what it reads of them again, are
// the same blocks in other pieces: nothing has moved.
func TestProveInOtherPieces(t *testing.T) {
	v := newVolume(t, 2<<30, 1<<30) // with more than 32767 free blocks in a row
	before := 0
	b, err := proved(t, v, 600<<20, func(f *os.File) error {
		list, err := files.Map(f, 0, 1<<62)
		before = len(list)
		return errors.Join(err, unix.IoctlSetInt(int(f.Fd()), clearCache, 0))
	})
	if err != nil || b.Err != nil || balloon.Total(b.Held) != 600<<20 {
		t.Errorf("prove = %+v, %v", b, err)
	}
	if before == len(b.Held) {
		t.Errorf("control: %d pieces, as before", before)
	}
}

// A balloon that holds other blocks after the sync may hold none of them after a power cut.
func TestProveMoved(t *testing.T) {
	v := newVolume(t, 1<<30, 512<<20)
	b, err := proved(t, v, 32<<20, func(f *os.File) error {
		var st unix.Stat_t
		other, err := os.Create(filepath.Join(v.root.Name(), "other"))
		if err == nil {
			err = errors.Join(
				unix.Fstat(int(f.Fd()), &st),
				files.ChangeFlags(f, 0, files.Immutable), f.Truncate(0),
				unix.Fallocate(int(other.Fd()), 0, 0, 256<<20), other.Close(),
				unix.Fallocate(int(f.Fd()), 0, 0, st.Size),
				files.ChangeFlags(f, files.Immutable, 0),
			)
		}
		return err
	})
	if !errors.Is(err, balloon.ErrNotHeld) {
		t.Errorf("prove = %+v, %v, want %v", b, err, balloon.ErrNotHeld)
	}
}

// Where somebody has taken what was free when it was measured, a shrink is refused as any
// for which there is no room, and leaves nothing behind.
func TestInflateWithoutRoom(t *testing.T) {
	for _, name := range []string{"balloon", "folder"} {
		t.Run(name, func(t *testing.T) {
			v := newVolume(t, 512<<20, 128<<20)
			e := v.in.(*ext4FS)
			if name == "balloon" {
				folder(t, v)
			}
			f, err := os.Create(filepath.Join(v.root.Name(), "most"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for at, n := int64(0), int64(64<<20); n >= balloon.BlockSize; {
				if err := unix.Fallocate(int(f.Fd()), 0, at, n); errors.Is(err, unix.ENOSPC) {
					n /= 2
				} else if err != nil {
					t.Fatal(err)
				} else {
					at += n
				}
			}
			for _, size := range []int64{2 << 20, 64 << 10} {
				if b, err := e.inflate(size); !errors.Is(err, ErrTooSmall) || !errors.Is(err, unix.ENOSPC) {
					t.Errorf("inflate(%d) = %+v, %v, want %v", size, b, err, ErrTooSmall)
				}
			}
			if list, err := e.balloons(); err != nil || len(list) > 0 {
				t.Errorf("it leaves %v, %v", list, err)
			}
		})
	}
}

func TestInOrder(t *testing.T) {
	type list = []balloon.Range
	one := list{{Start: 10, End: 40}, {Start: 50, End: 60}}
	for name, c := range map[string]struct {
		held list
		same bool
	}{
		"pieces":      {list{{Start: 10, End: 20}, {Start: 20, End: 30}, {Start: 30, End: 40}, {Start: 50, End: 60}}, true},
		"other_order": {list{{Start: 20, End: 40}, {Start: 10, End: 20}, {Start: 50, End: 60}}, false},
		"swapped":     {list{{Start: 50, End: 60}, {Start: 10, End: 40}}, false},
		"other_place": {list{{Start: 10, End: 30}, {Start: 31, End: 41}, {Start: 50, End: 60}}, false},
		"less":        {list{{Start: 10, End: 40}}, false},
	} {
		was := slices.Clone(c.held)
		if got := inOrder(c.held); slices.Equal(got, inOrder(one)) != c.same || !slices.Equal(c.held, was) {
			t.Errorf("%s: inOrder(%v) = %v", name, was, got)
		}
	}
	if got := inOrder(nil); len(got) != 0 {
		t.Errorf("of nothing: %v", got)
	}
}
