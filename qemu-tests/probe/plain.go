package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// plainPath is there when this program is the /init of an initramfs: it names the block
// device of the root and the type of its file system.
const plainPath = "/plain"

// plainRoot goes from an initramfs straight to a root on a plain disk, and leaves nothing
// behind: with the modules in /modules loaded in the order of their names, and by means of
// its own, for others are compared with it. It returns only when that failed.
func plainRoot() error {
	text, err := os.ReadFile(plainPath)
	if err != nil {
		return err
	}
	device, fs, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	const root = "/sysroot"
	dirs := []string{"/proc", "/sys", "/dev", "/run"}
	for i, what := range []string{"proc", "sysfs", "devtmpfs", "tmpfs"} {
		os.Mkdir(dirs[i], 0o755)
		err = errors.Join(err, unix.Mount(what, dirs[i], what, 0, ""))
	}
	modules, _ := filepath.Glob("/modules/*")
	slices.Sort(modules)
	for _, file := range modules {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
			fmt.Printf("probe: %s: %v\n", file, err)
		}
		f.Close()
	}
	err = errors.Join(err, os.Mkdir(root, 0o755))
	for range 300 { // a disk takes its time
		if _, missing := os.Stat(device); missing == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	err = errors.Join(err, unix.Mount(device, root, fs, unix.MS_RDONLY, ""))
	for _, dir := range dirs {
		err = errors.Join(err, unix.Mount(dir, root+dir, "", unix.MS_MOVE, ""))
	}
	for _, left := range []string{"/modules", plainPath, "/init"} {
		err = errors.Join(err, os.RemoveAll(left))
	}
	err = errors.Join(err, os.Chdir(root), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), os.Chdir("/"))
	if err == nil {
		err = unix.Exec("/sbin/init", []string{"/sbin/init"}, nil)
	}
	return fmt.Errorf("cannot start the root on %s: %w", device, err)
}
