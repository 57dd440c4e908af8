package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// shutDown ends the machine as systemd-shutdown does (switch_root_initramfs): what is in
// /run/initramfs becomes the root, with the old one at /oldroot, and its program
// /shutdown PID 1. It returns only when that failed.
func shutDown(verb string) error {
	const dir = "/run/initramfs"
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if err == nil {
		err = unix.Mount(dir, dir, "", unix.MS_BIND, "")
	}
	// The console is open on /dev, and what is mounted in /run cannot hold /run itself.
	for name, how := range map[string]uintptr{"/dev": unix.MS_MOVE, "/proc": unix.MS_MOVE, "/sys": unix.MS_MOVE, "/run": unix.MS_BIND} {
		err = errors.Join(err, os.Mkdir(dir+name, 0o755), unix.Mount(name, dir+name, "", how, ""))
	}
	err = errors.Join(err, os.Mkdir(dir+"/oldroot", 0o755))
	if err == nil {
		err = errors.Join(os.Chdir(dir), unix.PivotRoot(".", "oldroot"), os.Chdir("/"))
	}
	if err == nil {
		err = unix.Exec("/shutdown", []string{"/shutdown", verb}, nil)
	}
	return fmt.Errorf("cannot end the machine: %w", err)
}
