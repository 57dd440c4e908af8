package resize

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"sealroot/state"
	"sealroot/state/layout"
)

// A boot that held what is not reserved leaves less room than holding takes. The next one
// knows by the record that balloons have it, also when nobody has resized in between; where
// the record is lost it is read-only, until the service starts.
func TestHeldBefore(t *testing.T) {
	b := newTrap(t, state.Ext4, 512<<20, 128<<20)
	b.leave(190 << 20)
	for _, which := range []string{"first", "second"} {
		v := b.boot()
		if b.opened.ReadOnly != nil || len(v.recorded()) == 0 {
			t.Errorf("%s boot: read-only: %v; the record has %d ranges", which, b.opened.ReadOnly, len(v.recorded()))
		}
	}
	record := filepath.Join(b.v.dir.Name(), layout.GivenBack)
	if err := os.Remove(record); err != nil {
		t.Fatal(err)
	}
	v := b.boot()
	if !errors.Is(b.opened.ReadOnly, state.ErrNoRoom) {
		t.Fatalf("control: without the record: %v, want %v", b.opened.ReadOnly, state.ErrNoRoom)
	}
	if err := Reclaim(t.Context(), v); err != nil {
		t.Error(err)
	}
	b.whole(v)
	if v = b.boot(); b.opened.ReadOnly != nil {
		t.Errorf("after that: read-only: %v", b.opened.ReadOnly)
	}
	b.whole(v)
	backed(t, v)
}

// One that is read-only for another reason stays so.
func TestReclaimReadOnly(t *testing.T) {
	v := newVolume(t, 1<<30, 512<<20)
	run(t, "mount", "-o", "remount,ro", v.root.Name())
	if err := Reclaim(t.Context(), v); err != nil {
		t.Error(err)
	}
	if s, err := v.Measure(); err != nil || !s.ReadOnly {
		t.Errorf("Measure = %+v, %v", s, err)
	}
	run(t, "mount", "-o", "remount,rw", v.root.Name())
}

// A file system that has to be checked is not, where there was no room to reserve what it
// spans: it is read-only.
func TestHeldWithErrors(t *testing.T) {
	b := newTrap(t, state.Ext4, 512<<20, 128<<20)
	run(t, "debugfs", "-w", "-R", "set_super_value state 3", b.device)
	v := b.boot()
	if !errors.Is(b.opened.ReadOnly, state.ErrNoRoom) {
		t.Errorf("read-only: %v, want %v", b.opened.ReadOnly, state.ErrNoRoom)
	}
	if err := Reclaim(t.Context(), v); err != nil {
		t.Error(err)
	}
	if s, err := v.Measure(); err != nil || !s.ReadOnly {
		t.Errorf("Measure = %+v, %v", s, err)
	}
}
