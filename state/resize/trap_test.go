package resize

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/state"
	"sealroot/state/luks2"
)

// trap is a volume of a machine that is off, which a rescue system has grown to the end of
// its device, 4 GiB. The state partition never has those.
type trap struct {
	t      *testing.T
	v      *Volume // its places
	kind   state.Filesystem
	inner  string // mount point
	device string
	opened *state.Volume
	last   *Volume
	sums   map[string][32]byte
}

func newTrap(t *testing.T, kind state.Filesystem, outside, inside int64) *trap {
	t.Helper()
	v := newVolumeOf(t, kind, outside, inside)
	b := &trap{t: t, v: v, kind: kind, inner: v.root.Name(), device: v.devices.(kernelDevices).path, sums: map[string][32]byte{"file": put(t, v, "file", 5<<20)}}
	key := make([]byte, 64)
	h, err := luks2.Format(luks2.FormatParams{UUID: testUUID, VolumeKey: key, SectorSize: state.BlockSize, Rand: rand.Reader})
	if err == nil {
		h, err = h.AddKeyslot(0, key, []byte("pw"), luks2.RandomSecretKDF(), rand.Reader)
	}
	if err == nil {
		_, err = luks2.WriteNew(v.image, h, rand.Reader)
	}
	if err := errors.Join(err, v.root.Close()); err != nil {
		t.Fatal(err)
	}
	if kind == state.Btrfs {
		run(t, "btrfs", "filesystem", "resize", "max", b.inner)
		b.unmount(b.device)
	} else {
		b.unmount(b.device)
		run(t, "e2fsck", "-fp", b.device)
		run(t, "resize2fs", b.device)
	}
	t.Cleanup(func() {
		b.off()
		run(t, "mount", b.device, b.inner) // as newVolumeOf has left it
	})
	return b
}

// unmount returns once the device is out of use: namespaces of other programs may have
// copies of its mount.
func (b *trap) unmount(device string) {
	b.t.Helper()
	run(b.t, "umount", b.inner)
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		fd, err := unix.Open(device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
			return
		}
		if time.Now().After(end) {
			b.t.Fatalf("%s is in use: %v", device, err)
		}
	}
}

// off stops the machine.
func (b *trap) off() {
	b.t.Helper()
	if b.opened == nil {
		return
	}
	b.last.Close()
	b.unmount(b.opened.Device())
	if err := b.opened.Close(); err != nil {
		b.t.Fatal(err)
	}
	b.opened = nil
}

// boot opens the volume and mounts it as PID 1 does, and returns it for who resizes it.
func (b *trap) boot() *Volume {
	t := b.t
	t.Helper()
	b.off()
	dir, err := os.Open(b.v.dir.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if b.opened, err = state.Open(dir, loopDevices{t}, state.Oversized, func(l *state.LockedVolume) ([]byte, error) { return l.Header.Unlock(0, []byte("pw")) }); err != nil {
		t.Fatal(err)
	}
	mount := func() {
		options := b.kind.MountOptions()
		if b.kind == state.Ext4 {
			options = append(options, "noinit_itable") // as in newVolumeOn
		}
		if b.opened.ReadOnly != nil {
			options = append(options, "ro")
		}
		run(t, "mount", "-o", strings.Join(options, ","), b.opened.Device(), b.inner)
	}
	was := b.opened.ReadOnly
	mount()
	root, err := os.Open(b.inner)
	if err != nil {
		t.Fatal(err)
	}
	b.opened.Settle(dir, root)
	root.Close()
	if was == nil && b.opened.ReadOnly != nil {
		run(t, "umount", b.inner)
		mount()
	}
	v, err := open(Places{State: dir.Name(), Lock: b.v.lock}, func(*os.File) (crypt, error) {
		var st unix.Stat_t
		err := unix.Stat(b.opened.Device(), &st)
		return crypt{path: b.opened.Device(), number: st.Rdev, begin: testBegin, uuid: testUUID}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	b.last = v
	return v
}

// leave fills the state partition up to so many bytes.
func (b *trap) leave(n int64) (remove func()) {
	b.t.Helper()
	name := filepath.Join(b.v.dir.Name(), "most")
	var fs unix.Statfs_t
	f, err := os.Create(name)
	if err == nil {
		err = unix.Fstatfs(int(f.Fd()), &fs)
	}
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), 0, 0, int64(fs.Bavail)*fs.Bsize-n)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		b.t.Fatal(err)
	}
	return func() {
		if err := os.Remove(name); err != nil {
			b.t.Fatal(err)
		}
		run(b.t, "sync", "-f", b.v.dir.Name())
	}
}

// whole fails unless all that the volume spans is reserved or held, and it can be written
// to, to the last block.
func (b *trap) whole(v *Volume) {
	t := b.t
	t.Helper()
	s, err := v.Measure()
	if err != nil || s.OverCommitted != 0 || s.ReadOnly {
		t.Errorf("Measure = %+v, %v", s, err)
		return
	}
	if err := os.WriteFile(filepath.Join(b.inner, "small"), []byte("x"), 0o600); err != nil && !errors.Is(err, unix.ENOSPC) {
		t.Error(err)
	}
	run(t, "sync", "-f", b.inner)
	check(t, v, b.sums)
}

// A boot has no room for what ext4 spans, and holds it: it comes up writable, also after a
// second one, and after one that has lost the record.
func TestTrapAtTheBoot(t *testing.T) {
	b := newTrap(t, state.Ext4, 512<<20, 128<<20)
	for _, which := range []string{"first", "second"} {
		v := b.boot()
		if b.opened.ReadOnly != nil {
			t.Fatalf("%s boot: read-only: %v", which, b.opened.ReadOnly)
		}
		b.whole(v)
		if s, err := v.Measure(); err != nil || s.GivenBack < 3<<30 || s.OuterFree < 100<<20 {
			t.Errorf("%s boot: %+v, %v", which, s, err)
		}
	}
	v := b.boot()
	if s, err := v.Repair(t.Context()); err != nil || len(v.recorded()) == 0 || s.GivenBack < 3<<30 {
		t.Errorf("Repair = %+v, %v", s, err)
	}
	backed(t, v)
	v = b.boot()
	b.whole(v)
	backed(t, v)
}

// A boot that has no room even for what is used of it has the volume read-only, and a
// repair takes none of what there is: so room can be made, and then it is writable.
func TestTrapWithoutRoom(t *testing.T) {
	for name, left := range map[string]int64{"nothing": 24 << 20, "some": 100 << 20} {
		t.Run(name, func(t *testing.T) {
			b := newTrap(t, state.Ext4, 512<<20, 128<<20)
			remove := b.leave(left)
			v := b.boot()
			if err := b.opened.ReadOnly; !errors.Is(err, state.ErrNoRoom) || !strings.Contains(err.Error(), "sealroot state repair") {
				t.Fatalf("read-only: %v, want %v", err, state.ErrNoRoom)
			}
			before, err := v.Measure()
			if err != nil || !before.ReadOnly {
				t.Fatalf("Measure = %+v, %v", before, err)
			}
			if s, err := v.Repair(t.Context()); !errors.Is(err, ErrOverCommitted) || !s.ReadOnly || s.OuterFree < before.OuterFree {
				t.Errorf("Repair = %+v, %v, before it %+v", s, err, before)
			}
			if s, err := v.MakeWritable(); !errors.Is(err, ErrOverCommitted) || !s.ReadOnly || s.OuterFree < before.OuterFree-8<<20 {
				t.Errorf("MakeWritable = %+v, %v", s, err)
			}
			remove()
			if _, err := v.Repair(t.Context()); err != nil && !errors.Is(err, ErrOverCommitted) {
				t.Error(err)
			}
			if s, err := v.MakeWritable(); err != nil || s.ReadOnly {
				t.Errorf("MakeWritable with room = %+v, %v", s, err)
			}
			b.whole(v)
			b.whole(b.boot())
		})
	}
}

// btrfs gives up its end once somebody repairs it.
func TestTrapBtrfs(t *testing.T) {
	b := newTrap(t, state.Btrfs, 1<<30, 512<<20)
	v := b.boot()
	if err := b.opened.ReadOnly; !errors.Is(err, state.ErrNoRoom) {
		t.Fatalf("read-only: %v, want %v", err, state.ErrNoRoom)
	}
	before, err := v.Measure()
	if err != nil {
		t.Fatal(err)
	}
	if s, err := v.Repair(t.Context()); !errors.Is(err, ErrOverCommitted) || s.OuterFree < before.OuterFree {
		t.Errorf("Repair = %+v, %v", s, err)
	}
	if s, err := v.MakeWritable(); err != nil || s.ReadOnly || s.Spanned > 600<<20 || s.OuterFree < 300<<20 {
		t.Errorf("MakeWritable = %+v, %v", s, err)
	}
	b.whole(v)
	b.whole(b.boot())
}

// A state partition that is read-only has a volume that can be read.
func TestReadOnlyPartition(t *testing.T) {
	b := newTrap(t, state.Ext4, 512<<20, 128<<20)
	b.boot() // holds what is missing, and has its journal empty once it is off
	b.off()
	where := b.v.dir.Name()
	run(t, "mount", "--bind", where, where)
	defer func() {
		b.off()
		run(t, "umount", where)
	}()
	run(t, "mount", "-o", "remount,bind,ro", where)
	v := b.boot()
	if err := b.opened.ReadOnly; !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), "restart once the state partition can be written to") {
		t.Errorf("read-only: %v, want %v", err, unix.EROFS)
	}
	check(t, v, b.sums)
	s, err := v.Measure()
	if err != nil || !s.ReadOnly || s.OverCommitted != 0 {
		t.Errorf("Measure = %+v, %v", s, err)
	}
	if _, err := v.Resize(t.Context(), s.Reserved-1<<20); !errors.Is(err, ErrReadOnly) {
		t.Errorf("Resize: %v, want %v", err, ErrReadOnly)
	}
	if s, err := v.MakeWritable(); err == nil || !s.ReadOnly {
		t.Errorf("MakeWritable = %+v, %v", s, err)
	}
}
