// Package seed copies a directory of the verified image into a new directory
// on the encrypted volume: a bind over a place that has content in the image
// (/var) would otherwise hide it. A copy is there whole or not at all, whenever
// the power goes: it is built under .sealroot/, brought to the disk with
// syncfs, and renamed.
//
// Every file is reached from an open directory by one name and without
// following symlinks, so the walk cannot leave either tree.
package seed

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/state/layout"
)

var (
	// ErrName says that a name is not a plain directory name.
	ErrName = errors.New("not a plain name")
	// ErrNotDirectory says that the name is taken by something that is no directory.
	ErrNotDirectory = errors.New("not a directory")
	// ErrTooDeep says that the source is nested deeper than maxDepth.
	ErrTooDeep = errors.New("directories are nested too deep")
)

// maxDepth bounds the open directories: two for each level.
const maxDepth = 256

// Stats counts what was copied.
type Stats struct {
	Entries int   // files of every kind, directories too
	Bytes   int64 // content of regular files, hard links counted once
}

// Into makes the directory name on volume (open: the root of the encrypted
// volume) with the content, owner, mode, times and extended attributes of src
// (open: a directory of the verified image), or, when src is nil, an empty one
// of root with mode 0755. When name is a directory already, it is left alone
// and created is false. What an interrupted call left behind is removed first.
//
// Extended attributes of symlinks and device nodes are reached through
// /proc/self/fd, so /proc must be mounted.
func Into(volume *os.File, name string, src *os.File) (created bool, stats Stats, err error) {
	return (&seeder{}).seed(volume, name, src)
}

// Empty does the same without the content of src.
func Empty(volume *os.File, name string, src *os.File) error {
	_, _, err := (&seeder{empty: true}).seed(volume, name, src)
	return err
}

func (s *seeder) seed(volume *os.File, name string, src *os.File) (created bool, stats Stats, err error) {
	s.checkpoint = func(string) error { return nil }
	created, err = s.into(volume, name, src)
	if err != nil {
		s.discard(volume)
		return false, Stats{}, fmt.Errorf("cannot seed %s: %w", name, err)
	}
	return created, s.stats, nil
}

// seeder is one call of Into or Empty.
type seeder struct {
	stats Stats
	empty bool             // the directory gets no content
	links map[inode]string // first copy of a file with several names, below root
	root  int              // the directory that is built
	tmp   string           // its name below .sealroot, once there may be one
	// checkpoint is asked before every step that changes the volume; a test
	// pulls the plug there.
	checkpoint func(step string) error
}

// discard removes what there is of a copy that failed: it may be all that the volume had
// room for, and nobody could write to /var then.
func (s *seeder) discard(volume *os.File) {
	if s.tmp == "" {
		return
	}
	private, err := openDir(int(volume.Fd()), layout.Private)
	if err != nil {
		return
	}
	defer unix.Close(private)
	_ = removeAll(private, s.tmp) // the next copy tries again
}

type inode struct{ dev, ino uint64 }

func (s *seeder) into(volume *os.File, name string, src *os.File) (bool, error) {
	if name == "" || name == "." || name == ".." || name == layout.Private || strings.ContainsAny(name, "/\x00") {
		return false, ErrName
	}
	vol := int(volume.Fd())
	exists, err := isDirectory(vol, name)
	if err != nil || exists {
		return false, err
	}
	private, err := s.openPrivate(vol)
	if err != nil {
		return false, err
	}
	defer unix.Close(private)
	s.tmp = "seed-" + name + ".tmp"
	if err := s.checkpoint("clean"); err != nil {
		return false, err
	}
	if err := removeAll(private, s.tmp); err != nil {
		return false, fmt.Errorf("cannot remove interrupted copy: %w", err)
	}
	if err := s.build(private, s.tmp, src); err != nil {
		return false, err
	}
	return true, s.publish(vol, private, s.tmp, name)
}

// build makes the whole copy as tmp.
func (s *seeder) build(private int, tmp string, src *os.File) error {
	if err := s.checkpoint("mkdir"); err != nil {
		return err
	}
	root, err := makeDir(private, tmp)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	s.root, s.links = root, map[inode]string{}
	if src == nil {
		return unix.Fchmod(root, 0o755)
	}
	st, err := fstat(int(src.Fd()))
	if err != nil {
		return err
	}
	if s.empty {
		return fdAttributes(int(src.Fd()), root, "", st)
	}
	// A descriptor of our own: reading a directory moves its offset.
	dir, err := unix.Openat(int(src.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open source: %w", err)
	}
	defer unix.Close(dir)
	return s.copyDir(dir, root, "", st, 0)
}

// publish brings tmp to stable storage and gives it its name.
func (s *seeder) publish(vol, private int, tmp, name string) error {
	if err := unix.Syncfs(private); err != nil {
		return fmt.Errorf("cannot sync: %w", err)
	}
	if err := s.checkpoint("rename"); err != nil {
		return err
	}
	if err := unix.Renameat2(private, tmp, vol, name, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("cannot rename: %w", err)
	}
	if err := s.checkpoint("fsync"); err != nil {
		return err
	}
	if err := errors.Join(unix.Fsync(vol), unix.Fsync(private)); err != nil {
		return fmt.Errorf("cannot sync: %w", err)
	}
	return nil
}

// openPrivate opens .sealroot on the volume and makes it if need be.
func (s *seeder) openPrivate(vol int) (int, error) {
	if err := s.checkpoint("private"); err != nil {
		return -1, err
	}
	if err := unix.Mkdirat(vol, layout.Private, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, fmt.Errorf("cannot make %s: %w", layout.Private, err)
	}
	fd, err := openDir(vol, layout.Private)
	if err != nil {
		return -1, fmt.Errorf("cannot open %s: %w", layout.Private, err)
	}
	return fd, nil
}

// isDirectory tells whether name is there; something else in its place is an
// error.
func isDirectory(dir int, name string) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, err
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return false, ErrNotDirectory
	}
	return true, nil
}

func openDir(dir int, name string) (int, error) {
	return unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// makeDir makes a directory that nobody else can enter while it is filled.
func makeDir(dir int, name string) (int, error) {
	if err := unix.Mkdirat(dir, name, 0o700); err != nil {
		return -1, fmt.Errorf("cannot make directory %q: %w", name, err)
	}
	fd, err := openDir(dir, name)
	if err != nil {
		return -1, fmt.Errorf("cannot open directory %q: %w", name, err)
	}
	return fd, nil
}

func fstat(fd int) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return unix.Stat_t{}, fmt.Errorf("cannot stat: %w", err)
	}
	return st, nil
}

// names lists a directory, sorted, with a descriptor of its own.
func names(dir int) ([]string, error) {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot list: %w", err)
	}
	f := os.NewFile(uintptr(fd), ".")
	defer f.Close()
	list, err := f.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("cannot list: %w", err)
	}
	slices.Sort(list)
	return list, nil
}
