package mount

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrUnsafePath means that a path leaves its root, crosses a symbolic link or a
// mount where that is not allowed, or names something of another kind.
var ErrUnsafePath = errors.New("unsafe path")

// Resolve says what a lookup inside a root may meet on its way, as openat2(2)
// takes it.
type Resolve uint64

const (
	// Strict refuses symbolic links, mount points and "..": for data that an
	// attacker may have written.
	Strict Resolve = confined | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV
	// Beneath is Strict with mount points allowed.
	Beneath Resolve = confined | unix.RESOLVE_NO_MAGICLINKS
	// InRoot follows links as if the root were "/": for a verified image, in
	// which /sbin may be a link to /usr/sbin.
	InRoot Resolve = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
)

// OpenRoot opens a trusted directory as the root of later lookups.
func OpenRoot(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// OpenBeneath opens path inside root; path may begin with a slash. Flags are
// those of open(2); close-on-exec is added, and O_CREAT is not for here. A path
// that the resolve flags forbid is ErrUnsafePath as well as the kernel's own
// error (ELOOP, EXDEV). Flags without O_PATH and with a FIFO at the path would
// wait for its other end: use O_PATH or O_NONBLOCK on what others wrote.
func OpenBeneath(root *os.File, path string, flags int, how Resolve) (*os.File, error) {
	h := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: uint64(how)}
	name := root.Name() + "//" + trimSlashes(path)
	fd, err := openat2(int(root.Fd()), relative(path), &h)
	switch {
	case err == nil:
		return os.NewFile(uintptr(fd), name), nil
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		return nil, fmt.Errorf("cannot open %s: %w: %w", name, ErrUnsafePath, err)
	}
	return nil, fmt.Errorf("cannot open %s: %w", name, err)
}

// openat2 repeats the call a few times: a rename anywhere on the machine makes
// a lookup with ".." in it end in EAGAIN (openat2(2)).
func openat2(dir int, path string, how *unix.OpenHow) (int, error) {
	for try := 0; ; try++ {
		fd, err := unix.Openat2(dir, path, how)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN) && try < 8:
			time.Sleep(time.Millisecond)
		default:
			return fd, err
		}
	}
}

// relative makes a path relative, because RESOLVE_BENEATH refuses any other.
func relative(path string) string {
	if p := trimSlashes(path); p != "" {
		return p
	}
	return "."
}

func trimSlashes(path string) string {
	for len(path) > 0 && path[0] == '/' {
		path = path[1:]
	}
	return path
}

// open resolves a place for use as the source or target of a mount.
func (p Place) open(how Resolve) (*os.File, error) {
	root, err := OpenRoot(p.Root)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return OpenBeneath(root, p.Path, unix.O_PATH, how)
}
