package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// changeFiles runs the commands for files that only an attacker makes. known is
// false for a word that is none of them.
//
//	mkdir DIR | mv FROM TO | symlink TARGET NAME | cp FROM TO | chmod OCTAL FILE
//	mknod b|c|p MAJOR MINOR NAME | setfattr ATTRIBUTE VALUE FILE, "-" for no value
//	chattr a|i FILE: sets one flag of chattr(1) more
//	deep N DIR: so many directories, one in the other
//	freeze DIR: nothing is written to its file system any more
//	as UID PROGRAM
func changeFiles(w io.Writer, words []string) (known bool, err error) {
	command, ok := map[string]struct {
		args int
		run  func(a []string) error
	}{
		"mkdir":    {1, func(a []string) error { return os.Mkdir(a[0], 0o755) }},
		"mv":       {2, func(a []string) error { return os.Rename(a[0], a[1]) }},
		"symlink":  {2, func(a []string) error { return os.Symlink(a[0], a[1]) }},
		"cp":       {2, func(a []string) error { return copyFile(a[0], a[1]) }},
		"chmod":    {2, func(a []string) error { return chmod(a[0], a[1]) }},
		"mknod":    {4, func(a []string) error { return mknod(a[0], a[1], a[2], a[3]) }},
		"setfattr": {3, func(a []string) error { return setAttribute(a[0], a[1], a[2]) }},
		"chattr":   {2, func(a []string) error { return setFlag(a[0], a[1]) }},
		"deep":     {2, func(a []string) error { return deep(a[0], a[1]) }},
		"freeze":   {1, func(a []string) error { return freeze(a[0]) }},
		"as":       {2, func(a []string) error { return runAs(w, a[0], a[1]) }},
	}[words[0]]
	if !ok {
		return false, nil
	}
	if len(words)-1 != command.args {
		return true, fmt.Errorf("%s takes %d words", words[0], command.args)
	}
	return true, command.run(words[1:])
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

func chmod(octal, name string) error {
	mode, err := strconv.ParseUint(octal, 8, 16)
	if err != nil {
		return err
	}
	return unix.Chmod(name, uint32(mode))
}

func mknod(kind, major, minor, name string) error {
	mode, ok := map[string]uint32{"b": unix.S_IFBLK, "c": unix.S_IFCHR, "p": unix.S_IFIFO}[kind]
	x, err := strconv.ParseUint(major, 10, 32)
	y, err2 := strconv.ParseUint(minor, 10, 32)
	if err = errors.Join(err, err2); err != nil || !ok {
		return fmt.Errorf("mknod: bad numbers or kind: %w", err)
	}
	return unix.Mknod(name, mode|0o666, int(unix.Mkdev(uint32(x), uint32(y))))
}

func setAttribute(name, value, file string) error {
	if value == "-" {
		value = ""
	}
	return unix.Lsetxattr(file, name, []byte(value), 0)
}

func setFlag(letter, name string) error {
	flag, ok := map[string]uint32{"a": 0x20, "i": 0x10}[letter] // FS_APPEND_FL, FS_IMMUTABLE_FL
	if !ok {
		return fmt.Errorf("chattr: no flag %q", letter)
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return err
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags|flag))
}

func deep(count, name string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	dir, err := unix.Open(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	for range n {
		if err == nil {
			err = unix.Mkdirat(dir, "d", 0o755)
		}
		if err != nil {
			return err
		}
		var next int
		next, err = unix.Openat(dir, "d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		unix.Close(dir)
		dir = next
	}
	return errors.Join(err, unix.Close(dir))
}

func freeze(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	const fiFreeze = 0xc0045877 // FIFREEZE, _IOWR('X', 119, int)
	return errors.Join(unix.IoctlSetInt(int(f.Fd()), fiFreeze, 0), f.Close())
}

func runAs(w io.Writer, user, name string) error {
	uid, err := strconv.ParseUint(user, 10, 32)
	if err != nil {
		return err
	}
	cmd := exec.Command(name)
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	return cmd.Run()
}
