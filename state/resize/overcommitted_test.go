package resize

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state"
)

// grown is an ext4 in use, with a file open for writing, that somebody has grown to the end
// of its device, with nothing free outside.
func grown(t *testing.T, outside, inside int64) *trap {
	t.Helper()
	b := newTrap(t, state.Ext4, outside, inside)
	run(t, "mount", "-o", "nodiscard,errors=remount-ro,noinit_itable", b.device, b.inner)
	v, err := open(Places{State: b.v.dir.Name(), Lock: b.v.lock}, func(*os.File) (crypt, error) {
		var st unix.Stat_t
		err := unix.Stat(b.device, &st)
		return crypt{path: b.device, number: st.Rdev, begin: testBegin, uuid: testUUID}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	b.last = v
	f, err := os.Create(filepath.Join(b.inner, "open"))
	if err != nil {
		t.Fatal(err)
	}
	run(t, "sync", "-f", b.inner)
	t.Cleanup(func() {
		f.Close()
		v.Close()
		run(t, "umount", b.inner)
	})
	return b
}

// Where the outer file system has nothing for what is used of a stray growth, that comes
// from what is free in the volume.
func TestRepairFromWithin(t *testing.T) {
	b := grown(t, 2<<30, 1<<30)
	v := b.last
	remove := fillOuter(t, v)
	defer remove()
	before, err := v.Measure()
	if err != nil || before.OverCommitted < 2<<30 || before.OuterFree > 4<<20 {
		t.Fatalf("Measure = %+v, %v", before, err)
	}
	if s, err := v.Repair(t.Context()); err != nil || s.OverCommitted != 0 || s.ReadOnly || s.InnerFree < 64<<20 {
		t.Errorf("Repair = %+v, %v, before it %+v", s, err, before)
	}
	b.whole(v)
	backed(t, v)
}

// Where that has nothing either, and the kernel refuses read-only, it writes at least nothing of
// its own to what is not reserved.
func TestRepairIsRefusedReadOnly(t *testing.T) {
	b := grown(t, 512<<20, 128<<20)
	v := b.last
	run(t, "mount", "-o", "remount,init_itable", b.inner)
	remove := fillOuter(t, v)
	s, err := v.Repair(t.Context())
	if !errors.Is(err, ErrOverCommitted) || !errors.Is(err, unix.EBUSY) || s.InnerFree > 4<<20 {
		t.Errorf("Repair = %+v, %v", s, err)
	}
	options, err := superOptions(v.root)
	if err != nil || !slices.Contains(options, "noinit_itable") || !slices.Contains(options, "rw") {
		t.Errorf("mounted with %q, %v", options, err)
	}
	remove()
	if s, err := v.Repair(t.Context()); err != nil || s.OverCommitted != 0 {
		t.Errorf("Repair with room = %+v, %v", s, err)
	}
	b.whole(v)
}

// A btrfs that cannot be synced for want of its reservation becomes read-only.
func TestRepairWithoutSync(t *testing.T) {
	v := newVolumeOf(t, state.Btrfs, 1<<30, 512<<20)
	sums := map[string][32]byte{"file": put(t, v, "file", 5<<20)}
	run(t, "sync", "-f", v.root.Name())
	remove := fillOuter(t, v)
	run(t, "btrfs", "filesystem", "resize", "max", v.root.Name())
	chunk := make([]byte, 1<<20)
	for i := range chunk {
		chunk[i] = byte(i)
	}
	var err error
	for n := 0; n < 700 && err == nil; n++ {
		var f *os.File
		if f, err = os.Create(filepath.Join(v.root.Name(), "more"+fmt.Sprint(n))); err == nil {
			_, err = f.Write(chunk)
			err = errors.Join(err, f.Sync(), f.Close())
		}
	}
	if err == nil {
		t.Fatal("all was written")
	}
	s, err := v.Repair(t.Context())
	options, oerr := superOptions(v.root)
	if readOnly := slices.Contains(options, "ro"); err == nil || oerr != nil || !readOnly && s.OverCommitted > 0 {
		t.Errorf("Repair = %+v, %v; mounted with %q, %v", s, err, options, oerr)
	}
	check(t, v, sums)
	remove()
}
