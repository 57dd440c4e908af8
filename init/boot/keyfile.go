package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/mount/blockdev"
	"sealroot/mount/uevent"
	"sealroot/slots/gpt"
	"sealroot/slots/live"
	"sealroot/state/luks2"
)

// keyFileKeyslot is the keyslot of the key file in a new volume.
const keyFileKeyslot = 2

// keyWait is how long the medium with the key file may take to appear.
const keyWait = 30 * time.Second

// keyDir is where its file system is mounted, while the file is read.
const keyDir = "key"

var errKeyFile = errors.New("not a usable key file")

func (b *boot) usesKeyFile() bool {
	return slices.Contains(b.cfg.State.Unlock, config.UnlockKeyFile)
}

// unlockByKeyFile tries the key file on every keyslot; nil when it opens none.
func (b *boot) unlockByKeyFile(ctx context.Context, h *luks2.Header) []byte {
	pass, err := b.readKeyFile(ctx)
	if err != nil {
		b.attempt("key-file: %v", err)
		return nil
	}
	defer clear(pass)
	key := b.tryKeyslots(h, anyKeyslot, pass, newBudget())
	if key == nil {
		b.attempt("key-file: it does not open the volume")
		return nil
	}
	b.report.State.Unlocked = report.UnlockedKeyFile
	b.sys.Log.Info("state: unlocked by the key file")
	return key
}

// enrollKeyFile adds a keyslot for the key file to a new volume.
func (b *boot) enrollKeyFile(ctx context.Context, h *luks2.Header, key []byte) (*luks2.Header, error) {
	if !b.usesKeyFile() {
		return h, nil
	}
	pass, err := b.readKeyFile(ctx)
	if err != nil {
		return nil, err
	}
	defer clear(pass)
	return h.AddKeyslot(keyFileKeyslot, key, pass, luks2.RandomSecretKDF(), b.sys.Rand)
}

// readKeyFile waits for the partition and reads the key. The caller wipes it.
func (b *boot) readKeyFile(ctx context.Context) ([]byte, error) {
	k := b.cfg.State.KeyFile
	part, err := b.waitForKey(ctx, k.Partition)
	if err != nil {
		return nil, err
	}
	if k.Path == "" {
		dev, err := blockdev.Open(part.Node, false)
		if err != nil {
			return nil, err
		}
		defer dev.Close()
		return readKey(dev, int64(k.Offset), k.Size)
	}
	b.loadHints(ctx) // FAT
	fs := foreignFilesystem(k.Filesystem, part.Node)
	const place = runDir + "/" + keyDir
	if err := mkdirs(place); err != nil {
		return nil, fmt.Errorf("cannot mount the medium with the key file: %w", err)
	}
	if err := b.sys.Mounter.MountIn(fs, mount.Place{Root: runDir, Path: keyDir}); err != nil {
		return nil, fmt.Errorf("cannot mount the medium with the key file: %w", err)
	}
	key, err := readKeyIn(place, k.Path)
	if endErr := errors.Join(b.sys.Mounter.Unmount(place), os.Remove(place)); endErr != nil {
		b.warn("the medium with the key file stays mounted: %v", endErr)
	}
	return key, err
}

// foreignFilesystem is how a file system is mounted that is only looked into. Of ext4
// the journal would be written back to the medium, and a superblock that somebody made
// may ask for a panic of the kernel at the first error.
func foreignFilesystem(kind, node string) mount.Filesystem {
	fs := mount.Filesystem{
		Type: kind, Source: node,
		Attr: mount.ReadOnly | mount.NoSUID | mount.NoDev | mount.NoExec | mount.NoSymfollow,
	}
	if kind == "ext4" {
		fs.Options = []string{"noload", "errors=continue"}
	}
	return fs
}

// waitForKey waits for the partition of that UUID, on whatever disk but the boot
// disk. Of others only the partition tables are looked at.
func (b *boot) waitForKey(ctx context.Context, uuid string) (part blockdev.Partition, err error) {
	ctx, cancel := context.WithTimeout(ctx, keyWait)
	defer cancel()
	err = uevent.WaitFor(ctx, "the partition "+uuid+" with the key file", b.events, func(events []uevent.Event) (bool, error) {
		if err := b.loadDrivers(ctx, events); err != nil {
			return false, err
		}
		d, err := live.Find("/sys", "/dev", gpt.Naming{}, uuid)
		if errors.Is(err, live.ErrNoDisk) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if d.Block.DevNo() == b.disk.Block.DevNo() {
			return false, fmt.Errorf("%w: it is on the boot disk, beside what it would protect", errKeyFile)
		}
		part, _ = d.Block.Partition(d.From)
		return true, nil
	})
	return part, err
}

// readKeyIn reads a file of a medium that anybody may have made: nothing but a
// plain file, beneath dir, through no link.
func readKeyIn(dir, path string) ([]byte, error) {
	root, err := mount.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	// O_NONBLOCK so that a FIFO cannot hold up the boot.
	f, err := mount.OpenBeneath(root, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, mount.Strict)
	if err != nil {
		return nil, fmt.Errorf("cannot open the key file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("cannot open the key file: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() < config.MinKeyFile || info.Size() > config.MaxKeyFile {
		return nil, fmt.Errorf("%w: it has to be a plain file of 32 to 8192 bytes", errKeyFile)
	}
	return readKey(f, 0, int(info.Size()))
}

// readKey reads exactly n bytes from byte at on. As many equal ones are no key: what was never
// written reads so.
func readKey(r io.ReaderAt, at int64, n int) ([]byte, error) {
	key := make([]byte, n)
	got, err := r.ReadAt(key, at)
	if got == n {
		err = nil
	}
	if err == nil && !slices.ContainsFunc(key, func(c byte) bool { return c != key[0] }) {
		err = fmt.Errorf("%w: all of its bytes are equal", errKeyFile)
	}
	if err != nil {
		clear(key)
		return nil, fmt.Errorf("cannot read the key file: %w", err)
	}
	return key, nil
}
