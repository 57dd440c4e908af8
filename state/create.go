package state

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon/files"
	"sealroot/state/luks2"
)

// CreateParams says how a new volume is made.
type CreateParams struct {
	// Label is shown by tools that list volumes; at most 47 bytes.
	Label string
	Rand  io.Reader
	// Filesystem is the type of the volume's file system.
	Filesystem Filesystem
	// Device says how large the file is beside what is reserved.
	Device DeviceSize
	// Enroll adds the keyslots and tokens by which the volume can be opened
	// again; a volume without any keyslot is refused.
	Enroll func(h *luks2.Header, volumeKey []byte) (*luks2.Header, error)
	// Mounting mounts the new file system, and unmounts it when a later step fails.
	Mounting
	// Fill puts the first files into the mounted volume; may be nil.
	Fill func(root *os.File) error
	// Replaces is the volume of that name, by PrebuiltOf; it gives its room, and at the end its name.
	Replaces *Prebuilt
}

// Create makes encrypted.img in dir, which must not hold anything of that name but
// a prebuilt volume that is replaced, and leaves it open and mounted. Everything is
// on stable storage before the file gets its name; a power cut before that leaves
// nothing, or the prebuilt volume. Errors: ErrNoRoom, ErrMapped, fs.ErrExist, those
// of the callbacks.
func Create(dir *os.File, devs Devices, p CreateParams) (*Volume, error) {
	if err := makePlace(dir); err != nil {
		return nil, err
	}
	if there, err := HasImage(dir); err != nil {
		return nil, fmt.Errorf("cannot look for %s: %w", ImageName, err)
	} else if there && p.Replaces == nil {
		return nil, fmt.Errorf("cannot create %s: %w", ImageName, os.ErrExist)
	}
	want := int64(0)
	if p.Replaces != nil {
		if err := emptyPrebuilt(dir); err != nil {
			return nil, err
		}
		want = p.Replaces.Reserved
	}
	free, err := freeIn(dir)
	if err != nil {
		return nil, err
	}
	sizes, err := SizesFor(p.Filesystem, free, want)
	if err != nil {
		return nil, err
	}
	image, err := unnamed(dir)
	if err != nil {
		return nil, err
	}
	v := &Volume{image: image, Reserved: sizes.Reserved}
	if err := v.create(dir, devs, sizes, p); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

// unnamed makes a file that vanishes when it is closed.
func unnamed(dir *os.File) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), Placed(dir, "."), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot make a file on the state partition: %w", err)
	}
	return os.NewFile(uintptr(fd), ImageName), nil
}

func (v *Volume) create(dir *os.File, devs Devices, sizes Sizes, p CreateParams) error {
	if err := flag(v.image); err != nil {
		return err
	}
	if err := v.image.Truncate(p.Device.apparent(sizes.Reserved)); err != nil {
		return fmt.Errorf("cannot size %s: %w", ImageName, err)
	}
	if err := Reserve(v.image, 0, sizes.Reserved); err != nil {
		return err
	}
	// It is made while there is room; a volume without one gives back later, if at all.
	if record, err := files.OpenRecord(dir); err == nil {
		record.Close()
	}
	key, err := v.format(p)
	if err != nil {
		return err
	}
	defer clear(key)
	if err := v.attach(devs, key); err != nil {
		return err
	}
	root, err := v.makeFilesystem(p)
	if err != nil {
		return err
	}
	err = v.finish(dir, root, p)
	root.Close()
	if err != nil {
		return errors.Join(err, p.Unmount())
	}
	return nil
}

func (v *Volume) finish(dir, root *os.File, p CreateParams) error {
	if err := p.Filesystem.grow(root, v.Reserved-int64(v.Header.DataOffset())); err != nil {
		return fmt.Errorf("cannot grow the file system in %s: %w", ImageName, err)
	}
	if p.Fill != nil {
		if err := p.Fill(root); err != nil {
			return err
		}
	}
	return v.name(dir, root, p)
}

// format writes the header and returns the volume key.
func (v *Volume) format(p CreateParams) ([]byte, error) {
	var id [16]byte
	key := make([]byte, 64)
	if _, err := io.ReadFull(p.Rand, id[:]); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(p.Rand, key); err != nil {
		return nil, err
	}
	h, err := luks2.Format(luks2.FormatParams{
		UUID: uuidText(id), Label: p.Label, VolumeKey: key, SectorSize: BlockSize, Rand: p.Rand,
	})
	if err == nil {
		h, err = p.Enroll(h, key)
	}
	if err == nil && len(h.Keyslots()) == 0 {
		err = errors.New("internal error: no keyslot was enrolled")
	}
	if err == nil {
		v.Header, err = luks2.WriteNew(v.image, h, p.Rand)
	}
	if err != nil {
		clear(key)
		return nil, fmt.Errorf("cannot format %s: %w", ImageName, err)
	}
	return key, nil
}

// makeFilesystem writes the template and mounts it; finish grows it to what is
// reserved: the kernel does in milliseconds what mkfs would do in user space.
func (v *Volume) makeFilesystem(p CreateParams) (*os.File, error) {
	if err := WriteFilesystem(v.crypt, p.Filesystem, p.Rand); err != nil {
		return nil, fmt.Errorf("cannot make the file system in %s: %w", ImageName, err)
	}
	root, err := p.Mount(v.Device(), p.Filesystem, p.Filesystem.MountOptions())
	if err != nil {
		return nil, fmt.Errorf("cannot mount the encrypted volume: %w", err)
	}
	return root, nil
}

// name makes everything durable and then gives the file its name.
func (v *Volume) name(dir, root *os.File, p CreateParams) error {
	if err := unix.Syncfs(int(root.Fd())); err != nil {
		return fmt.Errorf("cannot sync the new volume: %w", err)
	}
	if err := v.image.Sync(); err != nil {
		return fmt.Errorf("cannot sync %s: %w", ImageName, err)
	}
	// crash point: before this line there is no file, or the prebuilt one; after it
	// a whole one
	if err := giveImage(v.image, dir, p.Replaces != nil); err != nil {
		return err
	}
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("cannot sync the state partition: %w", err)
	}
	return nil
}
