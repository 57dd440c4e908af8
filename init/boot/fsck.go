package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/mount"
	"sealroot/mount/blockdev"
	"sealroot/mount/child"
	"sealroot/slots"
	"sealroot/state"
	"sealroot/state/ext4"
)

// fsckTime is how long one check of a file system may take.
const fsckTime = 10 * time.Minute

// RunProgram runs a program of another root; child.Run is the real one.
type RunProgram func(ctx context.Context, root string, argv ...string) (child.Result, error)

var (
	// errNotRepaired: the file system has errors that are left.
	errNotRepaired = errors.New("its file system has errors; read-only at most. Repair it from another system (e2fsck, btrfs check)")
	// errRestart: e2fsck wants the machine restarted.
	errRestart = errors.New("e2fsck asks for a restart")
)

// checkerOf is the program of the root that checks a type of file system, and its
// arguments before the device. btrfs is only looked at: its transactions leave nothing
// to be put right, and btrfs-check(8) warns of its own repairs. Without --force it ends
// where it cannot ask /proc whether the device is mounted. Without -f e2fsck replays the
// journal and looks at nothing where the superblock says nothing of errors.
func checkerOf(f state.Filesystem) (name, args string) {
	if f == state.Btrfs {
		return "btrfs", " check --readonly --force "
	}
	return "e2fsck", " -f -p "
}

// fsckStatus judges the exit status of e2fsck(8), which is a set of bits, and that of
// btrfs-check(8), where any but 0 means errors.
func fsckStatus(name string, status int) error {
	const corrected, restart = 1, 2
	good := corrected | restart
	if name != "e2fsck" {
		good = 0
	}
	switch {
	case status&^good != 0:
		return fmt.Errorf("%s ends with status %d: %w", name, status, errNotRepaired)
	case status&restart != 0:
		return errRestart
	}
	return nil
}

// checkFilesystem repairs a file system that needs it, with the program of the
// verified root: nothing is mounted from it yet. what names it for a person.
// Errors: errNotRepaired, errRestart.
func (b *boot) checkFilesystem(ctx context.Context, what, device string, sb state.Superblock) error {
	if b.cfg.State.Fsck != config.FsckAuto || !sb.NeedsCheck() {
		return nil
	}
	b.warn("%s: the file system has errors; checking it", what)
	name, args := checkerOf(sb.Type)
	result, err := b.runChecker(ctx, name, args+device)
	for line := range bytes.Lines(result.Output) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			b.sys.Log.Info("%s: %s", name, clean(string(line)))
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %w", what, errNotRepaired, err)
	}
	if err := fsckStatus(name, result.Status); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	b.warn("%s: checked; %s ends with status %d", what, name, result.Status)
	return nil
}

// runChecker runs the verified root's own. For that it gets /dev in its place, and only
// for that long.
func (b *boot) runChecker(ctx context.Context, name, args string) (result child.Result, err error) {
	ctx, cancel := context.WithTimeout(ctx, fsckTime)
	defer cancel()
	b.guard.allow(name, fsckTime+restartLimit)
	defer func() { b.guard.allow("what follows "+name, stageLimit("state")) }()
	dev := mount.Filesystem{Type: "devtmpfs", Source: "dev", Attr: mount.NoSUID | mount.NoExec}
	if err := b.sys.Mounter.MountIn(dev, mount.Place{Root: newRoot, Path: "dev"}); err != nil {
		return result, err
	}
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/bin/"} {
		if result, err = b.sys.RunProgram(ctx, newRoot, strings.Fields(dir+name+args)...); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return result, errors.Join(err, b.sys.Mounter.Unmount(newRoot+"/dev"))
}

// mendedText is what a person is told of state.Mend.
const mendedText = "a power cut had torn the superblock of its file system, or the end of its journal; mended"

// mendOuter repairs the superblock of the state partition where a power cut tore it:
// the kernel would not mount it. What cannot be done, mounting it says. It returns the type
// that it is mounted as: a partition keeps its own, but whoever has the disk does not
// choose what the kernel gets to read. btrfs is mounted where the configuration has it.
func (b *boot) mendOuter(node string) (kind state.Filesystem, mended bool) {
	kind = state.Filesystem(b.cfg.State.PartitionFilesystem)
	part, err := blockdev.Open(node, true)
	if err != nil {
		return kind, false
	}
	defer part.Close()
	mend := state.Mend
	if kind != state.Btrfs {
		kind, mend = state.Ext4, ext4.Mend
	}
	if mended, err = mend(part, part.Size()); err != nil {
		b.warn("the state partition: %v", err)
	} else if mended {
		b.warn("the state partition: %s", mendedText)
	}
	if sb, err := state.ReadSuperblock(part); err == nil && sb.Type != state.Btrfs {
		kind = sb.Type
	}
	return kind, mended
}

// checkOuter is checkFilesystem for the state partition.
func (b *boot) checkOuter(ctx context.Context, node string, mended bool) error {
	if b.cfg.State.Fsck != config.FsckAuto {
		return nil
	}
	part, err := blockdev.Open(node, false)
	if err != nil {
		return nil // mounting it says so
	}
	sb, err := state.ReadSuperblock(part)
	part.Close()
	if err != nil || sb.Type != state.Filesystem(b.cfg.State.PartitionFilesystem) && sb.Type != state.Ext4 {
		return nil
	}
	if mended && sb.Type == state.Btrfs {
		sb.Errors = true // as of the volume, state.Volume
	}
	return b.checkFilesystem(ctx, "the state partition", node, sb)
}

// isDir tells whether a directory has a directory of that name.
func isDir(in *os.File, name string) bool {
	var st unix.Stat_t
	return unix.Fstatat(int(in.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// showDamaged mounts a state partition that could not be repaired for whoever looks
// after it: nothing of it is used.
func (b *boot) showDamaged(fs mount.Filesystem, cause error) error {
	fs.Attr |= mount.ReadOnly
	if err := b.sys.Mounter.MountIn(fs, mount.Place{Root: newRoot, Path: "state"}); err == nil {
		outer, err := openDir(stateDir)
		if err == nil && isDir(outer, state.MountDir) {
			b.volume.outer = outer
		} else {
			err = errors.Join(err, outer.Close(), b.sys.Mounter.Unmount(stateDir)) // in memory, then
		}
		if err != nil {
			b.sys.Log.Warn("%v", err)
		}
	}
	return stateError(slots.StateDamaged, "%w", cause)
}
