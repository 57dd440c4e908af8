package state

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Mounting mounts the file system of a volume in its place.
type Mounting struct {
	// Mount mounts the file system on a device and opens its root directory. When it
	// fails nothing is mounted.
	Mount func(device string, f Filesystem, options []string) (root *os.File, err error)
	// Unmount undoes Mount.
	Unmount func() error
}

// Mount mounts an opened volume, and settles it (Settle); dir is that of Open. One that is
// ReadOnly is mounted so, and so is one that becomes it here: its journal has no room to be
// replayed, or it does not settle. Read-only is the file system and not the mount: the
// running system makes it writable (sealroot state repair), and what is bound from there
// with it. When it fails nothing is mounted. Errors: those of the callbacks.
func (v *Volume) Mount(dir *os.File, m Mounting) error {
	root, err := v.mount(m)
	if err != nil && v.ReadOnly == nil && v.Unsettled != nil { // its journal may have had no room to be replayed
		v.ReadOnly = fmt.Errorf("%w: %w", v.Unsettled, err)
		root, err = v.mount(m)
	}
	if err != nil {
		return err
	}
	was := v.ReadOnly
	v.Settle(dir, root)
	root.Close()
	if v.ReadOnly == nil || was != nil {
		return nil
	}
	// What it gave back is not to be had again.
	if err := m.Unmount(); err != nil {
		return fmt.Errorf("cannot mount the encrypted volume anew: %w", err)
	}
	if root, err = v.mount(m); err != nil {
		return err
	}
	return root.Close()
}

// mount mounts the volume once, read-only where it is that. The kernel replays the journal
// of that too, for which there may be no room: then it is left for the next boot.
func (v *Volume) mount(m Mounting) (*os.File, error) {
	kind := v.Superblock.Type
	options := kind.MountOptions()
	if v.Unsettled != nil && kind == Ext4 {
		// Where something has to be held, the kernel fills no tables of inodes: HoldRoom is
		// not for that.
		options = append(options, "noinit_itable")
	}
	if v.ReadOnly != nil {
		options = append(options, "ro")
	}
	root, err := m.Mount(v.Device(), kind, options)
	if err != nil && v.ReadOnly != nil {
		if dev, rerr := os.Open(v.Device()); rerr == nil { // or a remount could write beside the journal
			_ = unix.IoctlSetPointerInt(int(dev.Fd()), unix.BLKROSET, 1)
			dev.Close()
		}
		var left error
		if root, left = m.Mount(v.Device(), kind, append(options, kind.NoReplay())); left == nil {
			v.Unreplayed, err = err, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot mount the encrypted volume: %w", err)
	}
	return root, nil
}
