// Package mount makes the mounts of the boot and hands the machine over to the
// real root.
//
// Two kinds of path are kept apart. A Point names a place that this program
// made itself, in the initramfs; it is mounted by path. Everything inside the
// new root and on the state partition is data that somebody else wrote: there a
// path is resolved once, inside its root, with openat2(2), and the mount is
// attached to the file descriptor that came out of it. Nothing is looked up a
// second time, so that a link cannot be put in between.
package mount

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Point is one mount(2) by path.
type Point struct {
	What  string  // device, or a word where the file system needs none
	Where string  // absolute path; made (mode 0755) when it is missing
	Type  string  // file system
	Flags uintptr // MS_NOSUID and the like
	Data  string  // options of the file system itself, separated by commas
}

// String is the point as a mount(8) command line, for logs and golden traces.
func (p Point) String() string {
	var b strings.Builder
	b.WriteString("mount -t ")
	b.WriteString(p.Type)
	if o := p.Options(); len(o) > 0 {
		b.WriteString(" -o ")
		b.WriteString(strings.Join(o, ","))
	}
	b.WriteString(" ")
	b.WriteString(p.What)
	b.WriteString(" ")
	b.WriteString(p.Where)
	return b.String()
}

// Options lists flags and data as words, flags first.
func (p Point) Options() []string {
	var o []string
	for _, f := range flagNames {
		if p.Flags&f.flag != 0 {
			o = append(o, f.name)
		}
	}
	if p.Data != "" {
		o = append(o, strings.Split(p.Data, ",")...)
	}
	return o
}

// flagNames are the words of mount(8) for mount(2)'s flags.
var flagNames = [...]struct {
	flag uintptr
	name string
}{
	{unix.MS_RDONLY, "ro"},
	{unix.MS_NOSUID, "nosuid"},
	{unix.MS_NODEV, "nodev"},
	{unix.MS_NOEXEC, "noexec"},
	{unix.MS_SYNCHRONOUS, "sync"},
	{unix.MS_NOATIME, "noatime"},
	{unix.MS_NODIRATIME, "nodiratime"},
	{unix.MS_STRICTATIME, "strictatime"},
	{unix.MS_NOSYMFOLLOW, "nosymfollow"},
}

// Mounter makes and undoes mounts. Kernel is the real one; mounttest.Recorder
// writes down what it is asked for.
type Mounter interface {
	// Mount mounts a file system by path.
	Mount(p Point) error
	// MountIn mounts a file system on a directory inside a root.
	MountIn(fs Filesystem, where Place) error
	// Bind makes a directory or file visible at a second place.
	Bind(b Bind) error
	// Overlay mounts an overlay of directories.
	Overlay(o Overlay, where Place) error
	// Move moves the mount that is on top at one place, with all below it, to another.
	Move(from, to Place) error
	// Unmount takes the topmost mount at a path away. It does not wait for
	// users of the file system: a busy one is unix.EBUSY.
	Unmount(where string) error
	// Detach takes the topmost mount at a path away with all below it. What is busy goes
	// with its last user.
	Detach(where string) error
}

// Table is a list of points in the order in which they are mounted.
type Table []Point

// Mount mounts the points in order. When one fails, those before it are
// unmounted again in reverse, and what goes wrong there is joined to the error.
// On success undo does the same later.
func (t Table) Mount(m Mounter) (undo func() error, err error) {
	for i, p := range t {
		if err := m.Mount(p); err != nil {
			return nil, errors.Join(err, t[:i].unmount(m))
		}
	}
	return func() error { return t.unmount(m) }, nil
}

func (t Table) unmount(m Mounter) error {
	var errs []error
	for i := len(t) - 1; i >= 0; i-- {
		if err := m.Unmount(t[i].Where); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Early lists the file systems that PID 1 mounts before anything else, with the
// flags that a distribution's init expects to find. The init may mount more.
func Early() Table {
	const noall = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return Table{
		{What: "proc", Where: "/proc", Type: "proc", Flags: noall},
		{What: "sysfs", Where: "/sys", Type: "sysfs", Flags: noall},
		{What: "devtmpfs", Where: "/dev", Type: "devtmpfs", Flags: unix.MS_NOSUID | unix.MS_STRICTATIME, Data: "mode=0755"},
		{What: "devpts", Where: "/dev/pts", Type: "devpts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_STRICTATIME, Data: "mode=0620,gid=5,ptmxmode=000"},
		{What: "tmpfs", Where: "/dev/shm", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_STRICTATIME, Data: "mode=1777"},
		{What: "tmpfs", Where: "/run", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_STRICTATIME, Data: "mode=0755"},
	}
}

// EFIVars is where the kernel shows the firmware's variables. The directory
// exists only on a machine that was started by EFI.
func EFIVars() Point {
	return Point{What: "efivarfs", Where: "/sys/firmware/efi/efivars", Type: "efivarfs", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC}
}

// Place is a path that is resolved inside a root directory.
type Place struct {
	Root string // trusted: a directory that this program made or mounted
	Path string // untrusted: looked up below Root and never outside of it
}

// String is the place with a double slash where the root ends.
func (p Place) String() string { return p.Root + "//" + strings.TrimLeft(p.Path, "/") }

// Bind makes From visible at To; mounts below From do not come along.
type Bind struct {
	From, To Place
	// Attr replaces the attributes of From's mount; only read-only stays.
	Attr Attr
}

// String is the bind as a mount(8) command line.
func (b Bind) String() string {
	return fmt.Sprintf("mount -o %s %s %s", strings.Join(append([]string{"bind"}, b.Attr.Names()...), ","), b.From, b.To)
}
