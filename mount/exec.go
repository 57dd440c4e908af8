package mount

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// ErrNoInit means that the root has no program to hand over to.
var ErrNoInit = errors.New("no init program")

// maxInit bounds what CheckInit reads.
const maxInit = 32 << 20

// CheckInit tells whether path is an executable file in the root directory;
// links are followed as they will be after the switch. The file is read, so
// that a block that does not match its hash shows before the switch.
func CheckInit(root *os.File, path string) error {
	f, err := OpenBeneath(root, path, unix.O_PATH, InRoot)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoInit, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoInit, err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
		return fmt.Errorf("%w: %s is not an executable file", ErrNoInit, f.Name())
	}
	// Through the O_PATH descriptor: it is the file that was looked at.
	r, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoInit, err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(r, maxInit)); err != nil {
		return fmt.Errorf("%w: %w", ErrNoInit, err)
	}
	return nil
}

// ExecInit replaces this process by the program at path. The program finds the
// console at file descriptors 0, 1 and 2 (/dev/null when there is none), passed at
// its present one unless it is nil, and no other one open. It returns only on failure;
// descriptors are then already marked to be closed by the next exec.
func ExecInit(path string, argv, env []string, passed *os.File) error {
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("cannot mark open files: %w", err)
	}
	if err := openConsole(); err != nil {
		return err
	}
	if passed != nil {
		if err := keepAt(int(passed.Fd()), int(passed.Fd())); err != nil {
			return fmt.Errorf("cannot pass %s on: %w", passed.Name(), err)
		}
	}
	if err := unix.Exec(path, argv, env); err != nil {
		return fmt.Errorf("cannot execute %s: %w", path, err)
	}
	return nil
}

// openConsole puts the console on descriptors 0 to 2. O_NOCTTY: the program
// itself decides whether it takes a controlling terminal.
func openConsole() error {
	fd, err := unix.Open("/dev/console", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		fd, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return fmt.Errorf("cannot open a console: %w", err)
	}
	for std := range 3 {
		if err := keepAt(fd, std); err != nil {
			return fmt.Errorf("cannot put the console on descriptor %d: %w", std, err)
		}
	}
	if fd > 2 {
		return unix.Close(fd)
	}
	return nil
}

// keepAt has the next program find an open file at a descriptor.
func keepAt(fd, at int) error {
	if fd == at {
		// dup3(2) refuses equal numbers; only the mark has to go.
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
		return err
	}
	return unix.Dup3(fd, at, 0)
}
