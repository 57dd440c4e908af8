package judge

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/state"
)

// Filesystem is a type of file system, as mount(8) knows it.
type Filesystem string

// The types; the empty one is Ext4.
const (
	Ext4  Filesystem = "ext4"
	Btrfs Filesystem = "btrfs"
)

func (f Filesystem) name() string {
	if f == "" {
		return string(Ext4)
	}
	return string(f)
}

// mended makes good what PID 1 makes good before it mounts: a torn superblock.
func mended(image string) error {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil {
		_, err = state.Mend(f, info.Size())
	}
	return err
}

// mounted runs do on a mounted image, and unmounts it. Nothing waits for the host's disk:
// the image is a copy that nobody needs after a power cut of the host.
func (f Filesystem) mounted(image, dir string, do func(root string) error) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	device, err := attach(image)
	if err != nil {
		return err
	}
	if _, err := run("mount", "-t", f.name(), "-o", "nodiscard,nobarrier", device, dir); err != nil {
		err = fmt.Errorf("%w: %w%s", ErrDamaged, err, kernelSays(device))
		return errors.Join(err, detach(device))
	}
	err = do(dir)
	return errors.Join(err, unmount(dir), detach(device))
}

// unmount waits a while for whoever else looks into the folder just then, such as find(1).
func unmount(dir string) error {
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if err == nil || !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
	}
}

// clean has the file system's own checker find nothing.
func (f Filesystem) clean(image string) error {
	checker := []string{"e2fsck", "-fn"}
	if f == Btrfs {
		// Without --force it looks first whether the image is mounted, and fails when some
		// other btrfs in the table of mounts goes just then.
		checker = []string{"btrfs", "check", "--readonly", "--force", "--check-data-csum"}
	}
	if out, err := run(checker[0], append(checker[1:], image)...); err != nil {
		return fmt.Errorf("%w: %w:\n%s", ErrDamaged, err, out)
	}
	return nil
}

// Lines of dumpe2fs -h and of btrfs inspect-internal dump-super.
var (
	ext4Blocks = regexp.MustCompile(`(?m)^Block count: +(\d+)$`)
	btrfsBytes = regexp.MustCompile(`(?m)^dev_item\.total_bytes\s+(\d+)$`)
)

// superblock is what the file system's own tool tells of its superblock.
func (f Filesystem) superblock(image string) (string, error) {
	tool := []string{"dumpe2fs", "-h"}
	if f == Btrfs {
		tool = []string{"btrfs", "inspect-internal", "dump-super"}
	}
	text, err := run(tool[0], append(tool[1:], image)...)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return text, nil
}

// span is how many bytes a file system spans by its superblock.
func (f Filesystem) span(image string) (int64, error) {
	line, unit := ext4Blocks, int64(block)
	if f == Btrfs {
		line, unit = btrfsBytes, 1
	}
	text, err := f.superblock(image)
	if err != nil {
		return 0, err
	}
	found := line.FindStringSubmatch(text)
	if found == nil {
		return 0, fmt.Errorf("%w: the superblock tells no size:\n%s", ErrDamaged, text)
	}
	n, err := strconv.ParseInt(found[1], 10, 50)
	return n * unit, err
}
