package mount

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Filesystem describes a file system that is mounted by the new mount calls
// (fsopen(2) and its sisters): options are set one by one, so that a comma in a
// value cannot become another option, and attributes hold before anybody can
// see the mount.
type Filesystem struct {
	Type    string
	Source  string   // device; "" where the file system needs none
	Options []string // "key" or "key=value"
	Attr    Attr     // ReadOnly here makes the file system read-only too
}

// String is the mount(8) command line without the place.
func (f Filesystem) String() string {
	s := "mount -t " + f.Type
	if o := append(f.Attr.Names(), f.Options...); len(o) > 0 {
		s += " -o " + strings.Join(o, ",")
	}
	if f.Source == "" {
		return s + " " + f.Type
	}
	return s + " " + f.Source
}

// Open makes the mount without attaching it anywhere. The file is the root of
// the mount; closing it before Attach undoes the mount.
func (f Filesystem) Open() (*os.File, error) {
	fs, err := unix.Fsopen(f.Type, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot mount %s: %w", f.Type, err)
	}
	defer unix.Close(fs)
	if err := f.configure(fs); err != nil {
		return nil, fmt.Errorf("cannot mount %s %s: %w%s", f.Type, f.Source, err, kernelText(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(f.Attr))
	if err != nil {
		return nil, fmt.Errorf("cannot mount %s %s: %w%s", f.Type, f.Source, err, kernelText(fs))
	}
	return os.NewFile(uintptr(fd), f.Type+":"+f.Source), nil
}

func (f Filesystem) configure(fs int) error {
	if f.Source != "" {
		if err := unix.FsconfigSetString(fs, "source", f.Source); err != nil {
			return fmt.Errorf("source: %w", err)
		}
	}
	if f.Attr&ReadOnly != 0 {
		if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
			return fmt.Errorf("ro: %w", err)
		}
	}
	for _, o := range f.Options {
		key, value, has := strings.Cut(o, "=")
		var err error
		if has {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return fmt.Errorf("option %s: %w", key, err)
		}
	}
	return unix.FsconfigCreate(fs)
}

// kernelText reads what the kernel has to say about a file system context: one
// message for each read, with its kind before it ("e ", "w ", "i "), ENODATA
// when there is no more.
func kernelText(fs int) string {
	var b strings.Builder
	buf := make([]byte, 512)
	for range 8 {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			break
		}
		text := strings.TrimSpace(string(buf[:n]))
		if len(text) > 2 && text[1] == ' ' {
			text = text[2:]
		}
		b.WriteString("; kernel: ")
		b.WriteString(text)
	}
	return b.String()
}

// Clone takes a detached copy of the mount at src, beginning at src's own
// directory or file, with exactly the attributes given, whatever the source
// mount has: /home may be bound with exec from a volume that is mounted noexec.
// Only a read-only source stays read-only. Closing the file before Attach
// drops the copy.
func Clone(src *os.File, attr Attr) (*os.File, error) {
	fd, err := unix.OpenTree(int(src.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, fmt.Errorf("cannot clone the mount at %s: %w", src.Name(), err)
	}
	tree := os.NewFile(uintptr(fd), src.Name())
	if err := setAttr(tree, attr); err != nil {
		tree.Close()
		return nil, fmt.Errorf("cannot set %s on the mount of %s: %w", strings.Join(attr.Names(), ","), src.Name(), err)
	}
	return tree, nil
}

func setAttr(tree *os.File, attr Attr) error {
	// Private: what is mounted below the copy later must not show up in the
	// source, nor the other way round.
	const replaced = NoSUID | NoDev | NoExec | NoSymfollow
	a := unix.MountAttr{Attr_set: uint64(attr), Attr_clr: uint64(replaced &^ attr), Propagation: unix.MS_PRIVATE}
	if attr&NoATime != 0 {
		// The access-time modes are one field, to be cleared as a whole.
		a.Attr_clr |= unix.MOUNT_ATTR__ATIME
	}
	return unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH, &a)
}

// Attach puts a detached mount on dst. Both are file descriptors: no path is
// looked up.
func Attach(tree, dst *os.File) error {
	const flags = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	if err := unix.MoveMount(int(tree.Fd()), "", int(dst.Fd()), "", flags); err != nil {
		return fmt.Errorf("cannot attach a mount at %s: %w", dst.Name(), err)
	}
	return nil
}

// bindAt makes src visible at dst. Both are a directory, or both are not.
func bindAt(src, dst *os.File, attr Attr) (err error) {
	tree, err := Clone(src, attr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	return Attach(tree, dst)
}

// MountAt mounts a file system on the directory that dst is open on.
func MountAt(f Filesystem, dst *os.File) (err error) {
	tree, err := f.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	return Attach(tree, dst)
}
