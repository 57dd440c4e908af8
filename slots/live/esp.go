package live

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"sealroot/mount"
	"sealroot/slots/gpt"
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
		// dirsync: a rename writes the new name before it removes the old one, and
		// an entry is on the medium before the blocks that it no longer names are
		// free. FAT has no journal, and an entry whose blocks belong to another
		// file would be worse than lost blocks.
		Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOSYMFOLLOW | unix.MS_DIRSYNC,
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
