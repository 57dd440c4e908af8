package exit

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// End does what systemd-shutdown does at the very end: Dir, with the program in it, becomes
// the root, the one before is at oldRoot, and the program takes this process's place. All
// else must have been stopped. It returns only when it failed, with all file systems where
// they were; behind the change of the root there is no way back, and it ends the machine.
//
// An init that cannot become another program has it run as its child. That init holds
// the old root then, which is verified and read-only; all that can be written goes.
func End(e Ending) error {
	err := Put(Dir)
	if err == nil {
		err = end(kernelEntry{}, Dir, e)
	}
	return fmt.Errorf("cannot end the machine from memory: %w", err)
}

// entry is what End does to this process and its root.
type entry interface {
	Mount(from, to string, flags uintptr) error
	Unmount(where string) error
	// Pivot makes dir, a mount, the root of all processes that had this one's. It changes
	// nothing when it fails.
	Pivot(dir, old string) error
	// Exec returns only when it failed.
	Exec(program string, args []string) error
	// GoOn is the program in this process, because of an error. It does not return.
	GoOn(err error, args []string)
}

func end(sys entry, dir string, e Ending) error {
	if err := enter(sys, dir); err != nil {
		return err
	}
	// Every process has the new root now, and no init finds there what it ends with.
	err := sys.Exec(Program, []string{Program, string(e)})
	sys.GoOn(err, []string{string(e)})
	return err
}

// enter makes dir the root. When it fails it has taken back what it did, but for the
// propagation of the mounts, which are all private then.
func enter(sys entry, dir string) (err error) {
	for _, name := range []string{"/dev", "/proc", "/sys", "/run", oldRoot} {
		if err := os.Mkdir(dir+name, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	var undo []func() error // in the order in which it was done
	defer func() {
		for i := len(undo) - 1; err != nil && i >= 0; i-- {
			if back := undo[i](); back != nil {
				err = errors.Join(err, fmt.Errorf("cannot take it back: %w", back))
			}
		}
	}()
	unmount := func(where string) func() error { return func() error { return sys.Unmount(where) } }
	for _, m := range []struct {
		from, to string
		flags    uintptr
		undo     func() error
	}{
		{"", "/", unix.MS_REC | unix.MS_PRIVATE, nil}, // what is shared can be neither moved nor pivoted
		{dir, dir, unix.MS_BIND, unmount(dir)},
		{"", dir, unix.MS_BIND | unix.MS_REMOUNT | unix.MS_NOSUID, nil}, // some have /run noexec
		{"/run", dir + "/run", unix.MS_BIND, unmount(dir + "/run")},     // the new root lies in it
		{"/dev", dir + "/dev", unix.MS_MOVE, nil},
		{"/sys", dir + "/sys", unix.MS_MOVE, nil},
		{"/proc", dir + "/proc", unix.MS_MOVE, nil},
	} {
		if err := sys.Mount(m.from, m.to, m.flags); err != nil {
			return &os.LinkError{Op: "mount", Old: m.from, New: m.to, Err: err}
		}
		if m.flags == unix.MS_MOVE {
			m.undo = func() error { return sys.Mount(m.to, m.from, unix.MS_MOVE) }
		}
		if m.undo != nil {
			undo = append(undo, m.undo)
		}
	}
	if err := sys.Pivot(dir, oldRoot[1:]); err != nil {
		return &os.LinkError{Op: "pivot_root", Old: dir, New: dir + oldRoot, Err: err}
	}
	return nil
}

// kernelEntry is the real entry.
type kernelEntry struct{}

func (kernelEntry) Mount(from, to string, flags uintptr) error {
	return unix.Mount(from, to, "", flags, "")
}

func (kernelEntry) Unmount(where string) error { return unix.Unmount(where, 0) }

func (kernelEntry) Pivot(dir, old string) error {
	err := os.Chdir(dir)
	if err == nil {
		err = unix.PivotRoot(".", old)
	}
	// A working folder in dir would hold it; behind the change it is the new root already.
	_ = os.Chdir("/")
	return err
}

func (kernelEntry) Exec(program string, args []string) error { return unix.Exec(program, args, nil) }

func (kernelEntry) GoOn(err error, args []string) {
	fmt.Fprintf(os.Stderr, "sealroot: exit: cannot execute %s (%v); going on without\n", Program, err)
	Main(args)
}

// Entered says that this process is the program, started where End or systemd-shutdown
// starts it.
func Entered() bool {
	if os.Args[0] != Program {
		return false
	}
	_, err := os.Stat(oldRoot)
	return os.Getpid() == 1 || err == nil
}
