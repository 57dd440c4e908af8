package files

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sort"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/layout"
)

// maxBalloons bounds the files that are looked at.
const maxBalloons = 1 << 16

// Balloon is a file in the folder of balloons.
type Balloon struct {
	Name   string
	Size   int64
	Sealed bool            // immutable
	Held   []balloon.Range // places in the file system, in the file's order; none with Err
	Err    error           // why it is none: balloon.ErrNotHeld
}

// OpenDir opens the folder of balloons of a file system whose root is open. Errors:
// fs.ErrNotExist.
func OpenDir(root *os.File) (*os.File, error) {
	return openAt(root, layout.Balloons, unix.O_RDONLY|unix.O_DIRECTORY)
}

// openAt opens a name below dir, following no link.
func openAt(dir *os.File, name string, flags uint64) (*os.File, error) {
	fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// List looks at all plain files in the folder of balloons but spare ones, in the order of
// their names. end is the file system's size. Errors: fs.ErrNotExist without the folder.
func List(root *os.File, end int64) ([]Balloon, error) {
	dir, err := OpenDir(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(maxBalloons + 1)
	if err != nil && err != io.EOF || len(names) > maxBalloons {
		return nil, fmt.Errorf("cannot list the balloons: more than %d: %w", maxBalloons, err)
	}
	sort.Strings(names)
	list := make([]Balloon, 0, len(names))
	for _, name := range names {
		if isSpare(name) {
			continue
		}
		var st unix.Stat_t
		err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue // not ours
		}
		var f *os.File
		if err == nil {
			f, err = openAt(dir, name, unix.O_RDONLY)
		}
		if errors.Is(err, unix.ENOENT) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("cannot look at balloon %s: %w", name, err)
		}
		b, err := Look(f, end)
		f.Close()
		if err != nil {
			return nil, err
		}
		list = append(list, b)
	}
	return list, nil
}

// Look judges one file.
func Look(f *os.File, end int64) (Balloon, error) {
	b := Balloon{Name: f.Name()}
	var st unix.Stat_t
	flags, err := Flags(f)
	if err == nil {
		err = unix.Fstat(int(f.Fd()), &st)
	}
	if err != nil {
		return b, fmt.Errorf("cannot look at balloon %s: %w", b.Name, err)
	}
	b.Size, b.Sealed = st.Size, flags&Immutable != 0
	if st.Nlink != 1 {
		b.Err = fmt.Errorf("%w: it has %d names", balloon.ErrNotHeld, st.Nlink)
		return b, nil
	}
	extents, err := Map(f, 0, 1<<62)
	if err == nil {
		b.Held, b.Err = balloon.Held(extents, st.Size, st.Blocks*512, end)
	}
	return b, err
}

// Held are the places of all balloons.
func Held(list []Balloon) []balloon.Range {
	var held []balloon.Range
	for _, b := range list {
		held = append(held, b.Held...)
	}
	return balloon.Join(held)
}
