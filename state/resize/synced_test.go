package resize

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state"
	"sealroot/state/balloon"
)

// watched tells before the file system is synced for its size.
type watched struct {
	inner
	before func()
}

func (w watched) spanned(durable bool) (int64, error) {
	if durable {
		w.before()
	}
	return w.inner.spanned(durable)
}

// What is dirty while something is not reserved is written only once that is, or balloons
// hold it.
func TestRepairReservesFirst(t *testing.T) {
	for _, c := range []struct {
		name string
		kind state.Filesystem
		full bool // there is room for a part alone
	}{{"ext4", state.Ext4, false}, {"btrfs", state.Btrfs, false}, {"held", state.Ext4, true}} {
		t.Run(c.name, func(t *testing.T) {
			v := newVolumeOf(t, c.kind, 1<<30, 512<<20)
			m, err := v.Measure()
			if err != nil {
				t.Fatal(err)
			}
			end := v.begin + m.Spanned
			for _, r := range []balloon.Range{{Start: end - 256<<20, End: end - 200<<20}, {Start: end - 64<<20, End: end}} {
				if err := errors.Join(state.Release(v.image, r.Start, r.End), v.image.Sync()); err != nil {
					t.Fatal(err)
				}
			}
			if c.full {
				reserve := filepath.Join(v.dir.Name(), "reserve")
				run(t, "fallocate", "-l", "24M", reserve)
				fillOuter(t, v)
				run(t, "rm", reserve)
				run(t, "sync", "-f", v.dir.Name())
			}
			dirty := filepath.Join(v.root.Name(), "dirty")
			if err := os.WriteFile(dirty, bytes.Repeat([]byte{1}, 8<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			looked := false
			look := func() {
				if looked {
					return
				}
				looked = true
				held, err := v.in.givenBack()
				holes, herr := v.holes(0, end)
				loose := balloon.Without(holes, balloon.Shift(held, v.begin))
				if err := errors.Join(err, herr); err != nil || len(loose) > 0 {
					t.Errorf("synced while %d bytes are not reserved: %v", balloon.Total(loose), err)
				}
				if out := run(t, "filefrag", "-v", dirty); !strings.Contains(out, "delalloc") {
					t.Errorf("synced before:\n%s", out)
				}
			}
			v.in = watched{v.in, look}
			s, err := v.Repair(t.Context())
			if err != nil || s.OverCommitted != 0 || (s.GivenBack > 0) != c.full {
				t.Errorf("Repair = %+v, %v", s, err)
			}
			look()
		})
	}
}

// A mount that is read-only is no sign that nobody writes to the file system.
func TestRepairUnderAReadOnlyMount(t *testing.T) {
	for name, do := range map[string]func(*Volume) (Sizes, error){
		"repair":   func(v *Volume) (Sizes, error) { return v.Repair(t.Context()) },
		"writable": (*Volume).MakeWritable,
	} {
		t.Run(name, func(t *testing.T) {
			v := newVolumeOf(t, state.Ext4, 1<<30, 512<<20)
			m, err := v.Measure()
			if err != nil {
				t.Fatal(err)
			}
			end := v.begin + m.Spanned
			if err := state.Release(v.image, end-64<<20, end); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(v.root.Name(), "dirty"), make([]byte, 8<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			run(t, "mount", "-o", "remount,bind,ro", v.root.Name())
			v.in = watched{v.in, func() {
				if holes, err := v.holes(0, end); err != nil || len(holes) > 0 {
					t.Errorf("synced while %d bytes are not reserved: %v", balloon.Total(holes), err)
				}
			}}
			if s, err := do(v); err != nil || s.OverCommitted != 0 || s.Reserved != end {
				t.Errorf("it is %+v, %v", s, err)
			}
		})
	}
}

// A balloon that somebody made and gave back out of order is on the disk before the record
// has it.
func TestRepairSyncsBeforeRecord(t *testing.T) {
	v := newVolume(t, 512<<20, 128<<20)
	f, err := os.Create(filepath.Join(folder(t, v), "00000001"))
	if err == nil {
		err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, 16<<20), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	given, err := v.in.givenBack()
	if err != nil || balloon.Total(given) != 16<<20 {
		t.Fatalf("givenBack = %v, %v", given, err)
	}
	for _, r := range balloon.Shift(given, v.begin) {
		if err := state.Release(v.image, r.Start, r.End); err != nil {
			t.Fatal(err)
		}
	}
	synced := 0
	v.in = watched{v.in, func() {
		synced++
		if len(v.recorded()) > 0 {
			t.Error("recorded before it was synced")
		}
	}}
	if s, err := v.Repair(t.Context()); err != nil || synced == 0 || s.GivenBack != 16<<20 || balloon.Total(v.recorded()) != 16<<20 {
		t.Errorf("Repair = %+v, %v; synced %d times", s, err, synced)
	}
}

// What grows does not wait for what somebody has written to memory: that may take long, and
// he needs the room.
func TestGrowingSyncsNothing(t *testing.T) {
	for _, c := range []struct {
		name string
		kind state.Filesystem
		back int64 // bytes that were given back before
	}{{"taken", state.Ext4, 96 << 20}, {"ext4", state.Ext4, 0}, {"btrfs", state.Btrfs, 0}} {
		t.Run(c.name, func(t *testing.T) {
			v := newVolumeOf(t, c.kind, 2<<30, 1<<30)
			if e, ok := v.in.(*ext4FS); ok {
				e.resize = func(int, uint64) error { return nil } // the kernel of a test may refuse
			}
			m, err := v.Measure()
			if err == nil && c.back > 0 {
				m, err = v.Resize(t.Context(), m.Reserved-c.back)
			}
			if err != nil {
				t.Fatal(err)
			}
			dirty := filepath.Join(v.root.Name(), "dirty")
			if err := os.WriteFile(dirty, bytes.Repeat([]byte{1}, 8<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			v.in = watched{v.in, func() { t.Error("synced for its size") }}
			s, err := v.Resize(t.Context(), m.Reserved+64<<20)
			if err != nil || c.kind == state.Btrfs && s.Reserved != m.Reserved+64<<20 || c.back > 0 && s.GivenBack != 32<<20 {
				t.Errorf("Resize = %+v, %v, was %+v", s, err, m)
			}
			if out := run(t, "filefrag", "-v", dirty); !strings.Contains(out, "delalloc") {
				t.Errorf("what was in memory only is on the disk:\n%s", out)
			}
			if err := v.Sync(); err != nil {
				t.Error(err)
			}
			if out := run(t, "filefrag", "-v", dirty); strings.Contains(out, "delalloc") {
				t.Errorf("Sync leaves in memory what was written:\n%s", out)
			}
			v.in = v.in.(watched).inner
			backed(t, v)
		})
	}
}
