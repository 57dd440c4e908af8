package boot

import (
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/mount/mounttest"
	"sealroot/state"
	"sealroot/state/luks2"
)

// Where there was no room to reserve what the volume spans, a journal that cannot be
// replayed has it read-only; with room, the boot has no volume.
func TestMountWithoutRoom(t *testing.T) {
	for size, want := range map[string]bool{"64M": true, "512M": false} {
		disk, where := filepath.Join(t.TempDir(), "disk"), t.TempDir()
		for _, words := range [][]string{{"mkfs.ext4", "-q", "-m", "0", disk, size}, {"mount", "-o", "loop", disk, where}} {
			if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", words, err, out)
			}
		}
		defer exec.Command("umount", where).Run()
		image, err := os.Create(filepath.Join(where, state.ImageName))
		if err != nil {
			t.Fatal(err)
		}
		h, _, _ := volume(t)
		_, err = luks2.WriteNew(image, h, rand.Reader)
		if err := errors.Join(err, image.Truncate(1<<30), image.Sync(), image.Close()); err != nil {
			t.Fatal(err)
		}
		outer, err := openDir(where)
		if err != nil {
			t.Fatal(err)
		}
		defer outer.Close()
		b, recorder := checking(t, config.FsckAuto)
		recorder.FailAt, recorder.FailWith = 1, unix.EIO
		b.sys.Devices, b.volume.outer = &fakeDevices{t: t}, outer
		if err := b.openVolume(t.Context()); errors.Is(err, unix.EIO) == want { // else nothing is really mounted
			t.Errorf("%s: %v", size, err)
		}
		readOnly := slices.ContainsFunc(recorder.Steps(), func(s string) bool { return strings.HasPrefix(s, "mount -t ext4") && strings.Contains(s, "ro,") })
		if warned := strings.Contains(strings.Join(b.report.Warnings, " "), state.ErrNoRoom.Error()); readOnly != want || warned != want || (b.report.State.ReadOnly != "") != want {
			t.Errorf("%s: warnings %q, steps %q, want read-only %v", size, b.report.Warnings, recorder.Steps(), want)
		}
	}
}

// A first boot that was cut while the kernel wrote the superblock of btrfs: it is mended
// before anybody looks what the partition holds, or it would neither mount nor be as it was
// made. Where btrfs is not mounted nothing is mended.
func TestTornUnfinished(t *testing.T) {
	for kind, mended := range map[state.Filesystem]bool{state.Btrfs: true, state.Ext4: false} {
		f, err := os.Create(filepath.Join(t.TempDir(), "partition"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		err = errors.Join(f.Truncate(256<<20), state.WriteFilesystem(f, state.Btrfs, rand.Reader))
		if err == nil {
			_, err = f.WriteAt([]byte{7}, 64<<10+72) // the next transaction, and its sum is of the last
		}
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := state.CheckUnmounted(f); !errors.Is(err, state.ErrNotEmpty) {
			t.Errorf("control: %v, want %v", err, state.ErrNotEmpty)
		}
		out, err := exec.Command("losetup", "--find", "--show", f.Name()).CombinedOutput()
		if err != nil {
			t.Fatalf("losetup: %v: %s", err, out)
		}
		node := strings.TrimSpace(string(out))
		defer exec.Command("losetup", "--detach", node).Run()
		b, _ := testBoot(&person{}, config.State{PartitionFilesystem: string(kind)})
		b.sys.Mounter = &mounttest.Recorder{}
		if err := b.stillEmpty(node, kind); err != nil {
			t.Error(err)
		}
		os.Remove(runDir) // where nobody else had made it
		if sb, err := state.ReadSuperblock(f); (err == nil && sb.Type == state.Btrfs) != mended {
			t.Errorf("%s: %+v, %v, want mended %v", kind, sb, err, mended)
		}
	}
}
