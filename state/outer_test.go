package state

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/layout"
	"sealroot/state/luks2"
)

func runTool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// outerBtrfs is the state partition as PID 1 makes it: the template, grown when it is
// mounted first.
func outerBtrfs(t *testing.T, size int64) *os.File {
	t.Helper()
	disk, where := filepath.Join(t.TempDir(), "partition"), t.TempDir()
	f, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), WriteFilesystem(f, Btrfs, rand.Reader), f.Close()); err != nil {
		t.Fatal(err)
	}
	runTool(t, "mount", "-o", "loop,"+strings.Join(Btrfs.MountOptions(), ","), disk, where)
	dir, err := os.Open(where)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		dir.Close()
		runTool(t, "umount", where)
		runTool(t, "btrfs", "check", "--readonly", disk)
	})
	if err := GrowOuter(dir, size); err != nil {
		t.Fatal(err)
	}
	if got, err := sizeOf(dir); err != nil || got != size {
		t.Fatalf("grown to %d bytes, want %d: %v", got, size, err)
	}
	return dir
}

// imageOn makes encrypted.img as Create does, but for what needs devices.
func imageOn(t *testing.T, dir *os.File, size int64) *os.File {
	t.Helper()
	if err := makePlace(dir); err != nil {
		t.Fatal(err)
	}
	image, err := unnamed(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { image.Close() })
	if err := errors.Join(flag(image), image.Truncate(2*size), Reserve(image, 0, size), image.Sync(), giveImage(image, dir, false)); err != nil {
		t.Fatal(err)
	}
	return image
}

func TestImageOnBtrfs(t *testing.T) {
	dir := outerBtrfs(t, 512<<20)
	if there, err := HasImage(dir); there || err != nil {
		t.Errorf("HasImage = %v, %v before there is one", there, err)
	}
	if _, err := OpenImage(dir); !errors.Is(err, ErrNoImage) {
		t.Errorf("OpenImage = %v, want %v", err, ErrNoImage)
	}
	// A cut has left the subvolume.
	if err := makePlace(dir); err != nil {
		t.Fatal(err)
	}
	image := imageOn(t, dir, 64<<20)
	if _, err := os.Stat(filepath.Join(dir.Name(), ".encrypted", "encrypted.img")); err != nil {
		t.Error(err)
	}
	if there, err := HasImage(dir); !there || err != nil {
		t.Errorf("HasImage = %v, %v", there, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir.Name(), ".encrypted"), &st); err != nil || st.Ino != 256 {
		t.Errorf("the folder has inode %d, want a subvolume: %v", st.Ino, err)
	}
	flags, err := unix.IoctlGetUint32(int(image.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&(files.NoCopy|files.NoDump) != files.NoCopy|files.NoDump {
		t.Errorf("flags %#x, %v", flags, err)
	}
	f, err := OpenImage(dir)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if n, err := allocated(image); err != nil || n != 64<<20 {
		t.Errorf("%d bytes are reserved, want 64 MiB: %v", n, err)
	}
	// Another one takes its place.
	next, err := unnamed(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if err := give(next, dir, Placed(dir, ImageName)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("named over the one that is there: %v", err)
	}
	if err := giveImage(next, dir, true); err != nil {
		t.Error(err)
	}
	if err := errors.Join(FinishReset(dir), FinishReset(dir)); err != nil {
		t.Error(err)
	}
	if there, err := HasImage(dir); there || err != nil {
		t.Errorf("HasImage = %v, %v after a reset", there, err)
	}
	// What is in the place of the subvolume is not followed.
	if err := errors.Join(os.Remove(filepath.Join(dir.Name(), ".encrypted")), os.WriteFile(filepath.Join(dir.Name(), ".encrypted"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenImage(dir); !errors.Is(err, ErrNotImage) {
		t.Errorf("OpenImage beside a file = %v, want %v", err, ErrNotImage)
	}
}

// Each boot notices that the volume is not written in place, and writes nothing then.
func TestRestoreAfterSnapshot(t *testing.T) {
	h, err := luks2.Format(luks2.FormatParams{UUID: uuidText([16]byte{1}), VolumeKey: make([]byte, 64), SectorSize: BlockSize, Rand: strings.NewReader(strings.Repeat("x", 4096))})
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20
	begin := int64(h.DataOffset())
	dir := outerBtrfs(t, 512<<20)
	image := imageOn(t, dir, begin+size)
	inside, err := os.Create(filepath.Join(t.TempDir(), "inside"))
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	if err := errors.Join(inside.Truncate(size), WriteFilesystem(inside, Ext4, rand.Reader)); err != nil {
		t.Fatal(err)
	}
	if err := Release(image, begin+32<<20, begin+40<<20); err != nil {
		t.Fatal(err)
	}
	restored := func(when string, readOnly bool) {
		t.Helper()
		v := &Volume{image: image, Header: h, crypt: plainDevice{inside, size}}
		if err := v.restore(dir, 2*(begin+size), 2*(begin+size)); err != nil {
			t.Fatal(err)
		}
		if readOnly != errors.Is(v.ReadOnly, ErrCopied) || !readOnly && v.ReadOnly != nil {
			t.Errorf("%s: read-only %v, want %v", when, v.ReadOnly, readOnly)
		}
		there, err := files.Reserved(image, 0, begin+size)
		if whole := balloon.Total(there) == begin+size; err != nil || whole == readOnly {
			t.Errorf("%s: %d bytes are reserved, %v", when, balloon.Total(there), err)
		}
	}
	snapshot := filepath.Join(dir.Name(), "snapshot")
	runTool(t, "btrfs", "subvolume", "snapshot", filepath.Join(dir.Name(), layout.ImageSubvolume), snapshot)
	restored("after a snapshot", true)
	runTool(t, "btrfs", "subvolume", "delete", "--commit-after", snapshot)
	runTool(t, "btrfs", "subvolume", "sync", dir.Name())
	restored("after the snapshot is gone", true)
	// The control: a file as it was before.
	if err := FinishReset(dir); err != nil {
		t.Fatal(err)
	}
	image = imageOn(t, dir, begin+size)
	if err := Release(image, begin+32<<20, begin+40<<20); err != nil {
		t.Fatal(err)
	}
	restored("made anew", false)
}

// What is given back behind the end comes back in whole units.
func TestUnitOnBtrfs(t *testing.T) {
	dir := outerBtrfs(t, 512<<20)
	image := imageOn(t, dir, 200<<20)
	before, err := freeIn(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(Release(image, 100<<20+1<<20, 200<<20), unix.Syncfs(int(dir.Fd()))); err != nil {
		t.Fatal(err)
	}
	after, err := freeIn(dir)
	if back := after - before; err != nil || back < 96<<20-1<<20 || back > 96<<20+1<<20 {
		t.Errorf("%d MiB came back of 99, want 96: %v", back>>20, err)
	}
}

func TestPlacedOnExt4(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if got := Placed(dir, ImageName); got != ImageName {
		t.Errorf("Placed = %q", got)
	}
	if list, err := CopiedOnWrite(dir, 1); list != nil || err != nil {
		t.Errorf("CopiedOnWrite = %v, %v", list, err)
	}
	if OuterFilesystem(dir) != Ext4 || Unit(dir) != BlockSize {
		t.Errorf("OuterFilesystem = %q, Unit %d", OuterFilesystem(dir), Unit(dir))
	}
}
