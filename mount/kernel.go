package mount

import (
	"fmt"
	"os"

	urootmount "github.com/u-root/u-root/pkg/mount"
	"golang.org/x/sys/unix"
)

// Kernel is the Mounter that mounts.
type Kernel struct{}

var _ Mounter = Kernel{}

// Mount makes the directory when it is missing and mounts p on it.
func (Kernel) Mount(p Point) error {
	if err := os.MkdirAll(p.Where, 0o755); err != nil {
		return fmt.Errorf("cannot make a mount point: %w", err)
	}
	// The error of u-root's Mount names the operation, the path, the device
	// and the type.
	_, err := urootmount.Mount(p.What, p.Where, p.Type, p.Data, p.Flags)
	return err
}

// MountIn mounts f on an existing directory; links in the place are refused.
func (Kernel) MountIn(f Filesystem, where Place) error {
	dst, err := where.open(Beneath)
	if err != nil {
		return err
	}
	defer dst.Close()
	return MountAt(f, dst)
}

// Bind opens both ends inside their roots, without following any link, and
// attaches a clone of the first to the second.
func (Kernel) Bind(b Bind) error {
	src, err := b.From.open(Beneath)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := b.To.open(Beneath)
	if err != nil {
		return err
	}
	defer dst.Close()
	return bindAt(src, dst, b.Attr)
}

// Overlay opens all directories inside their roots, without following any
// link, and mounts the overlay.
func (Kernel) Overlay(o Overlay, where Place) error {
	if err := o.Validate(); err != nil {
		return fmt.Errorf("cannot mount an overlay at %s: %w", where, err)
	}
	dst, err := where.open(Beneath)
	if err != nil {
		return err
	}
	defer dst.Close()
	var dirs []*os.File
	defer func() {
		for _, d := range dirs {
			d.Close()
		}
	}()
	for _, p := range o.places() {
		d, err := p.open(Beneath)
		if err != nil {
			return err
		}
		dirs = append(dirs, d)
	}
	n := len(o.Lower)
	od := OverlayDirs{Lower: dirs[:n], Attr: o.Attr}
	if len(dirs) > n {
		od.Upper, od.Work = dirs[n], dirs[n+1]
	}
	return OverlayAt(od, dst)
}

// Move opens both ends inside their roots, without following any link, and moves the
// first mount onto the second.
func (Kernel) Move(from, to Place) error {
	src, err := from.open(Beneath)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := to.open(Beneath)
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := Attach(src, dst); err != nil {
		return fmt.Errorf("cannot move the mount at %s: %w", src.Name(), err)
	}
	return nil
}

// Unmount takes the topmost mount at the path away; a link there is not followed.
func (Kernel) Unmount(where string) error {
	if err := unix.Unmount(where, unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("cannot unmount %s: %w", where, err)
	}
	return nil
}

// Detach does the same with all mounts below it, also where they are busy.
func (Kernel) Detach(where string) error {
	return os.NewSyscallError("umount2", unix.Unmount(where, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH))
}
