package disk

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"sealroot/slots/grubenv"
)

// placeESP makes the EFI system partition. Every file of a slot has a name of
// its own, so that an update never overwrites what the other slot boots from.
func (b *Builder) placeESP(ctx context.Context, disk *os.File, to partition, sets []set, work string) error {
	image, tree := filepath.Join(work, "esp.img"), filepath.Join(work, "esp")
	if err := stageESP(tree, sets); err != nil {
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
	if err := b.Tools.Run(ctx, nil, "mcopy", "-i", image, "-s", "-Q", "-m",
		filepath.Join(tree, "EFI"), filepath.Join(tree, "sealroot"), "::/"); err != nil {
		return err
	}
	return copyFile(disk, to, image)
}

// stageESP writes the ESP's files into a directory.
func stageESP(tree string, sets []set) error {
	env, err := firstEnv(sets)
	if err != nil {
		return err
	}
	files := map[string][]byte{"sealroot/grubenv": env}
	for i, s := range sets {
		image, err := os.ReadFile(s.uki)
		if err != nil {
			return fmt.Errorf("cannot read unified kernel image: %w", err)
		}
		files["EFI/Linux/sealroot-"+s.name+".efi"] = image
		files["sealroot/"+s.name+"/vmlinuz"] = s.parts.Kernel
		files["sealroot/"+s.name+"/initrd"] = s.parts.Initrd
		if i == 0 {
			// What firmware without boot entries starts: the committed slot.
			files["EFI/BOOT/BOOTX64.EFI"] = image
		}
	}
	for _, name := range sortedKeys(files) {
		path := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("cannot make ESP: %w", err)
		}
		if err := os.WriteFile(path, files[name], 0o644); err != nil {
			return fmt.Errorf("cannot make ESP: %w", err)
		}
	}
	return nil
}

// firstEnv is the grubenv of a new disk.
func firstEnv(sets []set) ([]byte, error) {
	env := grubenv.New()
	if err := env.Set(grubenv.Default, sets[0].name); err != nil {
		return nil, err
	}
	for _, s := range sets {
		if s.onTrial {
			if err := env.Set(grubenv.Once, s.name); err != nil {
				return nil, err
			}
		}
	}
	return env.Encode()
}

// placeState makes the outer file system of the state, empty. The encrypted
// volume on it is made by the machine itself at its first boot.
func (b *Builder) placeState(ctx context.Context, disk *os.File, to partition) error {
	return b.Tools.Run(ctx, nil, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", "state",
		"-m", "0", // nothing is reserved for root: root owns everything here
		"-i", "65536", // one big file and a few directories need few inodes
		// The image is made of holes: zeros need not be written again.
		"-E", fmt.Sprintf("offset=%d,nodiscard,assume_storage_prezeroed=1,root_owner=0:0", to.start),
		disk.Name(), strconv.FormatInt(to.size/kib, 10)+"k")
}
