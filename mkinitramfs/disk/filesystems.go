package disk

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"sealroot/init/config"
)

// content is what a file holds: data or, when that is nil, another file's.
type content struct {
	data []byte
	path string
}

func (c content) size() (int64, error) {
	if c.data != nil {
		return int64(len(c.data)), nil
	}
	info, err := os.Stat(c.path)
	if err != nil {
		return 0, fmt.Errorf("cannot read file for the ESP: %w", err)
	}
	return info.Size(), nil
}

// placeESP makes the EFI system partition with the files named.
func (b *Builder) placeESP(ctx context.Context, disk *os.File, to partition, files map[string]content, work string) error {
	image, tree := filepath.Join(work, "esp.img"), filepath.Join(work, "esp")
	if err := stage(tree, files); err != nil {
		return err
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return fmt.Errorf("cannot make ESP: %w", err)
	}
	if err := os.Truncate(image, to.size); err != nil {
		return fmt.Errorf("cannot make ESP: %w", err)
	}
	var id [4]byte
	if _, err := rand.Read(id[:]); err != nil {
		return fmt.Errorf("cannot make volume number: %w", err)
	}
	err := b.Tools.Run(ctx, nil, "mkfs.vfat", "-F", "32", "-S", strconv.Itoa(sectorSize), "-n", "ESP",
		"-h", strconv.FormatInt(to.start/sectorSize, 10), "-i", fmt.Sprintf("%x", id), image)
	if err != nil {
		return err
	}
	top, err := filepath.Glob(filepath.Join(tree, "*"))
	if err != nil {
		return fmt.Errorf("cannot make ESP: %w", err)
	}
	args := append([]string{"-i", image, "-s", "-Q", "-m"}, top...)
	if err := b.Tools.Run(ctx, nil, "mcopy", append(args, "::/")...); err != nil {
		return err
	}
	return copyFile(disk, to, image)
}

// stage puts files into a directory.
func stage(tree string, files map[string]content) error {
	for _, name := range sortedKeys(files) {
		path := filepath.Join(tree, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			if c := files[name]; c.data != nil {
				err = os.WriteFile(path, c.data, 0o644)
			} else {
				err = os.Link(c.path, path)
			}
		}
		if err != nil {
			return fmt.Errorf("cannot make ESP: %w", err)
		}
	}
	return nil
}

// placeState makes the outer file system of the state, with the layers of the slots
// only. The encrypted volume on it is made by the machine itself at its first boot.
func (b *Builder) placeState(ctx context.Context, disk *os.File, to partition, layers []config.Layer) error {
	if err := b.makeState(ctx, disk, to); err != nil || len(layers) == 0 {
		return err
	}
	return b.placeLayers(ctx, disk, to, layers)
}

func (b *Builder) makeState(ctx context.Context, disk *os.File, to partition) error {
	return b.Tools.Run(ctx, nil, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", "state",
		"-m", "0", // nothing is reserved for root: root owns everything here
		// As the file systems that PID 1 makes have it. One for more bytes would do for one big
		// file, and not for what binds.unencrypted has there; of the image this makes nothing
		// larger, of 20 GiB it takes 320 MiB.
		"-i", "16384",
		// The image is made of holes: zeros need not be written again.
		"-E", fmt.Sprintf("offset=%d,nodiscard,assume_storage_prezeroed=1,root_owner=0:0", to.start),
		disk.Name(), strconv.FormatInt(to.size/kib, 10)+"k")
}
