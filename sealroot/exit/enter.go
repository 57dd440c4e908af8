package exit

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// End does what systemd-shutdown does at the very end: Dir, with the program in it, becomes
// the root, the one before is at oldRoot, and the program takes this process's place. All
// else must have been stopped. It returns only when it failed.
//
// An init that cannot become another program has it run as its child. That init holds
// the old root then, which is verified and read-only; all that can be written goes.
func End(e Ending) error {
	err := Put(Dir)
	if err == nil {
		err = enter(Dir)
	}
	if err == nil {
		err = unix.Exec(Program, []string{Program, string(e)}, nil)
	}
	return fmt.Errorf("cannot end the machine from memory: %w", err)
}

func enter(dir string) error {
	for _, name := range []string{"/dev", "/proc", "/sys", "/run", oldRoot} {
		if err := os.Mkdir(dir+name, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	for _, m := range []struct {
		from, to string
		flags    uintptr
	}{
		{"", "/", unix.MS_REC | unix.MS_PRIVATE}, // what is shared can be neither moved nor pivoted
		{dir, dir, unix.MS_BIND},
		{"", dir, unix.MS_BIND | unix.MS_REMOUNT | unix.MS_NOSUID}, // some have /run noexec
		{"/run", dir + "/run", unix.MS_BIND},                       // the new root lies in it
		{"/dev", dir + "/dev", unix.MS_MOVE},
		{"/sys", dir + "/sys", unix.MS_MOVE},
		{"/proc", dir + "/proc", unix.MS_MOVE},
	} {
		if err := unix.Mount(m.from, m.to, "", m.flags, ""); err != nil {
			return &os.LinkError{Op: "mount", Old: m.from, New: m.to, Err: err}
		}
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", oldRoot[1:]); err != nil {
		return &os.LinkError{Op: "pivot_root", Old: dir, New: dir + oldRoot, Err: err}
	}
	return os.Chdir("/")
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
