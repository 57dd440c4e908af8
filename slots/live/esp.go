package live

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sealroot/mount"
	"sealroot/slots/gpt"
	"sealroot/slots/grubenv"
)

// ESP is the EFI system partition of the boot disk. It is mounted only for as
// long as one file is read or written: FAT has no journal, and every moment it
// is mounted for writing is one in which a power cut can hurt it.
type ESP struct {
	Disk    *Disk
	Mounter mount.Mounter
	Dir     string // where to mount; made when missing
}

// With mounts the ESP, runs use with the directory, and unmounts it.
func (e ESP) With(write bool, use func(dir string) error) (err error) {
	part, err := e.Disk.Partition(gpt.LabelESP)
	if err != nil {
		return err
	}
	p := mount.Point{
		What: part.Node, Where: e.Dir, Type: "vfat", Data: "umask=0077",
		Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOSYMFOLLOW,
	}
	if !write {
		p.Flags |= unix.MS_RDONLY
	}
	if err := e.Mounter.Mount(p); err != nil {
		return fmt.Errorf("cannot mount the EFI system partition: %w", err)
	}
	defer func() { err = errors.Join(err, e.Mounter.Unmount(e.Dir)) }()
	return use(e.Dir)
}

// grubenvPath is the environment block on the ESP.
const grubenvPath = "sealroot/grubenv"

func (e ESP) grubenv(write bool, use func(grubenv.Hint) error) error {
	return e.With(write, func(dir string) error {
		flags := os.O_RDONLY
		if write {
			flags = os.O_RDWR
		}
		f, err := os.OpenFile(filepath.Join(dir, grubenvPath), flags, 0)
		if err != nil {
			return err
		}
		return errors.Join(use(grubenv.Hint{File: f}), f.Close())
	})
}

// GrubHint is the one-shot of GRUB: the variable sealroot_once in the
// environment block on the ESP.
type GrubHint struct{ ESP ESP }

// Get returns the slot of the one-shot, "" when none is armed.
func (g GrubHint) Get() (slot string, err error) {
	err = g.ESP.grubenv(false, func(h grubenv.Hint) (err error) {
		slot, err = h.Get()
		return err
	})
	return slot, err
}

// Arm sets the one-shot.
func (g GrubHint) Arm(slot string) error {
	return g.ESP.grubenv(true, func(h grubenv.Hint) error { return h.Arm(slot) })
}

// Clear unsets the one-shot.
func (g GrubHint) Clear() error {
	return g.ESP.grubenv(true, func(h grubenv.Hint) error { return h.Clear() })
}

// SetDefault sets the slot that GRUB boots without a one-shot.
func (g GrubHint) SetDefault(slot string) error {
	return g.ESP.grubenv(true, func(h grubenv.Hint) error { return h.SetDefault(slot) })
}
