// Command floor is the least that a verified boot can be: as /init it makes,
// one after the other, the system calls of such a boot and nothing else. The
// benchmark compares sealroot with it. It decides nothing and checks nothing.
//
// The file /floor says what to do: the first line is the dm-verity table, the
// others are kernel modules in their order.
package main

import (
	"fmt"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const newRoot = "/sysroot"

func main() {
	err := boot()
	// An init must not end: that would be a kernel panic.
	fmt.Fprintf(os.Stderr, "floor: %v\n", err)
	time.Sleep(time.Second)
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func boot() error {
	for _, fs := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"}} {
		if err := unix.Mkdir(fs[1], 0o755); err != nil && err != unix.EEXIST {
			return err
		}
		if err := unix.Mount(fs[0], fs[1], fs[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", fs[1], err)
		}
	}
	text, err := os.ReadFile("/floor")
	if err != nil {
		return err
	}
	table, modules, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	for _, path := range strings.Fields(modules) {
		if err := insert(path); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	if err := verity(table); err != nil {
		return fmt.Errorf("verity: %w", err)
	}
	if err := unix.Mkdir(newRoot, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/dev/dm-0", newRoot, "squashfs", unix.MS_RDONLY|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	for _, path := range []string{"/dev", "/proc", "/sys", "/run"} {
		if err := unix.Mount(path, newRoot+path, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", path, err)
		}
	}
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Exec("/sbin/init", []string{"/sbin/init"}, []string{"HOME=/", "TERM=linux"})
}

func insert(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.FinitModule(fd, "", 0)
}

// verity makes dm-0 from "length version data-device hash-device …", length in
// sectors (struct dm_ioctl and dm_target_spec, uapi/linux/dm-ioctl.h).
func verity(table string) error {
	var sectors uint64
	length, params, _ := strings.Cut(table, " ")
	if _, err := fmt.Sscan(length, &sectors); err != nil {
		return err
	}
	control, err := unix.Open("/dev/mapper/control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(control)
	for _, request := range []uintptr{unix.DM_DEV_CREATE, unix.DM_TABLE_LOAD, unix.DM_DEV_SUSPEND} {
		buf := make([]byte, 4096)
		h := (*unix.DmIoctl)(unsafe.Pointer(&buf[0]))
		h.Version = [3]uint32{4, 0, 0}
		h.Data_size, h.Data_start = uint32(len(buf)), unix.SizeofDmIoctl
		copy(h.Name[:], "root")
		if request == unix.DM_TABLE_LOAD {
			h.Flags, h.Target_count = unix.DM_READONLY_FLAG, 1
			spec := (*unix.DmTargetSpec)(unsafe.Pointer(&buf[unix.SizeofDmIoctl]))
			spec.Length = sectors
			copy(spec.Target_type[:], "verity")
			copy(buf[unix.SizeofDmIoctl+unix.SizeofDmTargetSpec:], params)
		}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(control), request, uintptr(unsafe.Pointer(h))); errno != 0 {
			return fmt.Errorf("ioctl %#x: %w", request, errno)
		}
	}
	return nil
}
