package exit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/mount"
	"sealroot/mount/dm"
)

// Main is the program as /shutdown, PID 1. It does not return.
func Main(args []string) {
	log := os.Stderr
	if kmsg, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		log = kmsg
	}
	ending, err := ParseEnding(args)
	if err != nil {
		fmt.Fprintf(log, "sealroot: exit: %v; restarting\n", err)
	}
	sys, done := kernel{dm: dm.New()}, make(chan []string, 1)
	go func() { done <- Apart(sys) }()
	left, answered := await(done, func() toDo { return toDoOf(sys) })
	for _, what := range left {
		fmt.Fprintf(log, "sealroot: exit: left behind: %s\n", what)
	}
	switch {
	case !answered:
		fmt.Fprintln(log, "sealroot: exit: a disk does not answer")
	case len(left) == 0:
		fmt.Fprintf(log, "sealroot: exit: everything is unmounted (%s)\n", ending)
	}
	power(ending)
}

// syncLimit is how long a last sync may take.
const syncLimit = 10 * time.Second

func power(ending Ending) {
	mount.SyncWithin(syncLimit)
	command := map[Ending]int{
		PowerOff: unix.LINUX_REBOOT_CMD_POWER_OFF,
		Halt:     unix.LINUX_REBOOT_CMD_HALT,
		KExec:    unix.LINUX_REBOOT_CMD_KEXEC,
		Reboot:   unix.LINUX_REBOOT_CMD_RESTART,
	}[ending]
	_ = unix.Reboot(command)
	// Without a kernel to execute, or on a machine that cannot turn itself off.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

// toDoOf is what is still to do; of what cannot be read, nothing.
func toDoOf(sys System) toDo {
	h, _ := look(sys)
	text, _ := os.ReadFile("/proc/meminfo")
	return toDo{held: len(h.names()), unwritten: unwritten(string(text))}
}

// kernel is the real System.
type kernel struct{ dm dm.Control }

func (kernel) Mounts() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("cannot list the mounts: %w", err)
	}
	return parseMounts(string(text)), nil
}

func (kernel) Mappers() ([]string, error) {
	files, _ := filepath.Glob("/sys/block/dm-*/dm/name")
	var names []string
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil {
			names = append(names, strings.TrimSpace(string(text)))
		}
	}
	return names, nil
}

func (kernel) Loops() ([]string, error) {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var paths []string
	for _, f := range files {
		paths = append(paths, "/dev/"+strings.Split(f, "/")[3])
	}
	return paths, nil
}

func (kernel) Move(from, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	// Nothing can be moved out of a mount that is shared.
	if err := new(mount.KernelRoot).SetPropagation(unix.MS_PRIVATE); err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("cannot move %s: %w", from, err)
	}
	return nil
}

func (kernel) Unmount(where string) error { return mount.Kernel{}.Unmount(where) }

func (kernel) ReadOnly(where string) error {
	err := unix.Mount("", where, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: it is not the root of a mount any more
		return fmt.Errorf("cannot make %s read-only: %w", where, err)
	}
	return nil
}

func (k kernel) Remove(name string) error { return k.dm.RemoveNow(name) }

func (kernel) Detach(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return fmt.Errorf("cannot detach %s: %w", path, err)
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
		return fmt.Errorf("cannot detach %s: %w", path, err)
	}
	return nil
}

func (kernel) Sleep(d time.Duration) { time.Sleep(d) }
