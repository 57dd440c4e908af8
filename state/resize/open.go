package resize

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/mount/dm"
	"sealroot/state"
	"sealroot/state/balloon"
	"sealroot/state/btrfs"
	"sealroot/state/ext4"
	"sealroot/state/luks2"
)

// Places are where the running system has what belongs to the volume.
type Places struct {
	State string // the mounted state partition: layout.State
	Lock  string // a file that resizers lock: layout.ResizeLock
	// Device is state.device of this boot's configuration. Key finds the volume key where
	// state.Classic needs it; nil: such resizes are ErrNoKey.
	Device state.DeviceSize
	Key    Key
	// Undisturbed keeps signals from ending the program until restore: it has the file
	// system frozen, which would stay so. nil: somebody else sees to that.
	Undisturbed func() (restore func())
}

// crypt is the decrypted device as the kernel has it.
type crypt struct {
	path   string // e.g. /dev/dm-1
	loop   string // what it is over: major:minor
	number uint64 // as st_dev has it
	begin  int64  // of the image, where it begins
	uuid   string

	encryption string // e.g. aes-xts-plain64
	sectorSize int    // bytes
}

// Open finds the volume and proves that what is mounted is in encrypted.img, and
// where. Errors: ErrNotOpen.
func Open(p Places) (*Volume, error) { return open(p, findCrypt) }

func open(p Places, find func(image *os.File) (crypt, error)) (_ *Volume, err error) {
	v := &Volume{lock: p.Lock, classic: p.Device == state.Classic, key: p.Key, undisturbed: p.Undisturbed}
	var opened []*os.File
	defer func() {
		if err != nil {
			for _, f := range opened {
				f.Close()
			}
		}
	}()
	if v.dir, err = os.Open(p.State); err != nil {
		return nil, fmt.Errorf("cannot open the state partition: %w: %w", ErrNotOpen, err)
	}
	opened = append(opened, v.dir)
	if v.image, err = state.OpenShared(v.dir); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotOpen, err)
	}
	opened = append(opened, v.image)
	v.unit = state.Unit(v.image)
	c, err := find(v.image)
	if err != nil {
		return nil, err
	}
	v.uuid, v.begin = c.uuid, c.begin
	v.devices = kernelDevices{c, state.KernelDevices{DM: dm.New()}}
	if v.root, err = os.Open(filepath.Join(p.State, state.MountDir)); err != nil {
		return nil, fmt.Errorf("cannot open the volume: %w: %w", ErrNotOpen, err)
	}
	opened = append(opened, v.root)
	v.in, err = innerOf(v.root, c)
	return v, err
}

// innerOf is the file system that is mounted at root, if it is the device's.
func innerOf(root *os.File, c crypt) (inner, error) {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Fstatfs(int(root.Fd()), &fs), unix.Fstat(int(root.Fd()), &st)); err != nil {
		return nil, fmt.Errorf("cannot inspect the volume: %w", err)
	}
	m := mounted{root: root, device: c.path}
	switch fs.Type {
	case unix.EXT4_SUPER_MAGIC:
		if st.Dev == c.number {
			return &ext4FS{mounted: m, resize: ext4.Resize}, nil
		}
	case unix.BTRFS_SUPER_MAGIC:
		if on, err := isBtrfsOn(root, c); err != nil {
			return nil, err
		} else if on {
			return &btrfsFS{mounted: m, info: btrfs.ReadInfo, resize: btrfs.Resize, pack: btrfs.Compact, chunks: btrfs.DataChunks, moves: btrfs.Moves}, nil
		}
	}
	return nil, fmt.Errorf("cannot resize what is mounted at %s: it is not the volume's file system: %w", root.Name(), ErrNotOpen)
}

// findCrypt finds the device of state.DeviceName, and proves that it is over a loop
// device of the image: a hole at a wrong place would destroy what is there.
func findCrypt(image *os.File) (c crypt, err error) {
	table, err := dm.New().Table(state.DeviceName)
	if err != nil {
		return c, fmt.Errorf("%w: %w", ErrNotOpen, err)
	}
	if c, err = parseTable(table); err != nil {
		return c, err
	}
	if err := isLoopOf(c.loop, image); err != nil {
		return c, err
	}
	if c.path, err = deviceNamed(state.DeviceName); err != nil {
		return c, err
	}
	var st unix.Stat_t
	if err := unix.Stat(c.path, &st); err != nil {
		return c, err
	}
	info, err := image.Stat()
	if err != nil {
		return c, err
	}
	h, err := luks2.Read(image, info.Size())
	if err != nil {
		return c, fmt.Errorf("cannot use %s: %w", state.ImageName, err)
	}
	if int64(h.DataOffset()) != c.begin {
		return c, fmt.Errorf("cannot resize the volume: its device begins at byte %d, by the header of %s at %d: %w", c.begin, state.ImageName, h.DataOffset(), ErrNotOpen)
	}
	c.number, c.uuid = st.Rdev, h.UUID()
	return c, nil
}

// parseTable reads what the decrypted device is over, and how, out of a table of one crypt
// target (kernel: Documentation/admin-guide/device-mapper/dm-crypt.rst). Errors: ErrNotOpen.
func parseTable(table []dm.Status) (crypt, error) {
	if len(table) == 1 && table[0].Start == 0 && table[0].Type == "crypt" {
		// cipher, key, offset of the IV, device, first sector, number of options, options
		if words := strings.Fields(table[0].Text); len(words) >= 5 {
			sector, err := strconv.ParseInt(words[4], 10, 48)
			c := crypt{loop: words[3], begin: sector * 512, encryption: words[0], sectorSize: 512}
			for _, word := range words[5:] {
				if size, ok := strings.CutPrefix(word, "sector_size:"); ok && err == nil {
					c.sectorSize, err = strconv.Atoi(size)
				}
			}
			if err == nil && sector >= 0 && c.begin%balloon.BlockSize == 0 {
				return c, nil
			}
		}
	}
	return crypt{}, fmt.Errorf("cannot resize the volume: device %s has another table than ours: %w", state.DeviceName, ErrNotOpen)
}

// isLoopOf tells whether a block device, as "major:minor", is a loop device that shows
// the whole image.
func isLoopOf(number string, image *os.File) error {
	path, err := nodeOf(number)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("cannot open the volume's loop device: %w", err)
	}
	defer f.Close()
	i, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstat(int(image.Fd()), &st)
	}
	if err != nil {
		return fmt.Errorf("cannot inspect the volume's loop device: %w", err)
	}
	if i.Inode != st.Ino || i.Device != st.Dev || i.Offset != 0 || i.Sizelimit != 0 {
		return fmt.Errorf("cannot resize the volume: %s is not what is open: %w", state.ImageName, ErrNotOpen)
	}
	return nil
}

// nodeOf is the node of a block device that is named as "major:minor".
func nodeOf(number string) (string, error) {
	name, err := os.Readlink(filepath.Join("/sys/dev/block", number))
	if err != nil {
		return "", fmt.Errorf("cannot find device %s: %w", number, err)
	}
	return filepath.Join("/dev", filepath.Base(name)), nil
}

// deviceNamed is the node of a device-mapper device.
func deviceNamed(name string) (string, error) {
	list, err := filepath.Glob("/sys/class/block/dm-*/dm/name")
	if err != nil {
		return "", err
	}
	for _, path := range list {
		if text, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(text)) == name {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(filepath.Dir(path)))), nil
		}
	}
	return "", fmt.Errorf("cannot find device %s: %w", name, ErrNotOpen)
}
