package state

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"sealroot/mount/blockdev"
	"sealroot/mount/dm"
	"sealroot/mount/keyring"
	"sealroot/mount/loop"
	"sealroot/state/luks2"
)

// KernelDevices makes real devices.
type KernelDevices struct{ DM dm.Control }

// node is an opened device node of a device we made.
type node struct {
	*blockdev.Device
	readOnly bool
	remove   func() error
}

// Path is the device node.
func (n *node) Path() string { return n.Name() }

// Number is "major:minor".
func (n *node) Number() string { return n.DevNo() }

// Remove closes the node and removes the device.
func (n *node) Remove() error { return errors.Join(n.Close(), n.remove()) }

func openNode(path string, readOnly bool, remove func() error) (Device, error) {
	d, err := blockdev.Open(path, !readOnly)
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	return &node{d, readOnly, remove}, nil
}

// Loop attaches img with 4096-byte sectors and direct I/O. Where it is open for reading
// alone, so is the device, and what is made over it.
func (k KernelDevices) Loop(img *os.File) (Device, error) {
	flags, err := unix.FcntlInt(img.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return nil, err
	}
	readOnly := flags&unix.O_ACCMODE == unix.O_RDONLY
	d, err := loop.Attach(img, loop.Options{BlockSize: BlockSize, DirectIO: true, ReadOnly: readOnly})
	if err != nil {
		return nil, err
	}
	return openNode(d.Path, readOnly, d.Detach)
}

// Crypt maps a device; the key passes through the thread's keyring.
func (k KernelDevices) Crypt(name string, t luks2.CryptTarget, on Device, volumeKey []byte) (Device, error) {
	var made dm.Device
	description := keyPrefix + t.UUID
	target := dmTarget(t, on.Number())
	if n, ok := on.(*node); ok {
		target.ReadOnly = n.readOnly
	}
	err := keyring.With(description, volumeKey, func() (err error) {
		made, err = k.DM.Crypt(name, luksDMUUID(t.UUID, name), target, description)
		return err
	})
	if err != nil {
		return nil, err
	}
	return openNode(made.Path, target.ReadOnly, func() error { return k.DM.Remove(name) })
}

// Recrypt lets a device that Crypt made over the one of that number ("major:minor"), and
// that may be in use, have the length of t. When it fails it has the length that it had.
// The key has to be the same; it passes in the same way.
func (k KernelDevices) Recrypt(name string, t luks2.CryptTarget, number string, volumeKey []byte) error {
	description := keyPrefix + t.UUID
	return keyring.With(description, volumeKey, func() error {
		return k.DM.Recrypt(name, dmTarget(t, number), description)
	})
}

// FollowFile lets the loop device of that path be as large as its file is now.
func (KernelDevices) FollowFile(path string) error { return loop.FollowFile(path) }

// keyPrefix and the volume's UUID name the key in the kernel's keyring.
const keyPrefix = "sealroot:"

func dmTarget(t luks2.CryptTarget, number string) dm.CryptTarget {
	return dm.CryptTarget{
		Device: number, OffsetBytes: t.OffsetBytes, LengthBytes: t.LengthBytes,
		SectorSize: uint32(t.SectorSize), Encryption: t.Encryption, KeyBytes: t.KeySize,
	}
}

// luksDMUUID is the device-mapper UUID that cryptsetup gives a LUKS2 volume, so
// that its tools recognise ours (cryptsetup lib/libdevmapper.c).
func luksDMUUID(uuid, name string) string {
	plain := make([]byte, 0, len(uuid))
	for i := range len(uuid) {
		if uuid[i] != '-' {
			plain = append(plain, uuid[i])
		}
	}
	return fmt.Sprintf("CRYPT-LUKS2-%s-%s", plain, name)
}
