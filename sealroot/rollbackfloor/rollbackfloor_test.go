package rollbackfloor

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"sealroot/state/floor"
)

func TestDecide(t *testing.T) {
	old, same := Level{Slot: "a", Version: 1, Known: true}, Level{Slot: "a", Version: 2, Known: true}
	unknown, empty := Level{Slot: "a", Why: "no manifest"}, Level{Slot: "a", Empty: true}
	holds := []Held{{"a", "has security version 1"}}
	for _, tt := range []struct {
		name         string
		now, running int
		other        Level
		burn         bool
		want         Plan
	}{
		{"nothing_newer", 2, 2, old, false, Plan{Floor: 2}},
		{"older_runs", 3, 2, same, true, Plan{Floor: 3}},
		{"held_back", 1, 2, old, false, Plan{Floor: 1, Holds: holds}},
		{"burned", 1, 2, old, true, Plan{Ask: true, Floor: 2, Holds: holds}},
		{"every_slot_has_it", 1, 2, same, false, Plan{Ask: true, Floor: 2}},
		{"empty_slot", 0, 2, empty, false, Plan{Ask: true, Floor: 2}},
		{"nobody_knows", 0, 2, unknown, false, Plan{Holds: []Held{{"a", "has an unknown security version (no manifest)"}}}},
	} {
		if got := Decide(tt.now, tt.running, []Level{tt.other}, tt.burn); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// Without burn no slot that boots is ever left below the floor that is asked for.
func TestNoSlotIsLeftBehind(t *testing.T) {
	for now := range 4 {
		for running := range 4 {
			for version := range 4 {
				for _, other := range []Level{{Version: version, Known: true}, {Version: version}, {Version: version, Empty: true}} {
					p := Decide(now, running, []Level{other}, false)
					if p.Floor < now || p.Ask && p.Floor > running || p.Ask && !other.Empty && (!other.Known || other.Version < p.Floor) {
						t.Errorf("Decide(%d, %d, %+v) = %+v", now, running, other, p)
					}
				}
			}
		}
	}
}

func TestAsk(t *testing.T) {
	volume := t.TempDir()
	if err := Ask(volume, 1); err == nil {
		t.Error("asked on a volume that PID 1 has not made")
	}
	if err := os.Mkdir(filepath.Join(volume, filepath.Dir(floor.File)), 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(volume, floor.File)
	if n, err := Asked(volume); n != 0 || err != nil {
		t.Errorf("nothing asked: %d, %v", n, err)
	}
	// what a power cut left
	if err := os.WriteFile(path+".new", []byte("9"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 3} {
		if err := Ask(volume, n); err != nil {
			t.Fatal(err)
		}
		if got, err := Asked(volume); got != n || err != nil {
			t.Errorf("Asked = %d, %v, want %d", got, err, n)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
	if err := os.WriteFile(path, []byte("many\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := Asked(volume); n != 0 || !errors.Is(err, floor.ErrFormat) {
		t.Errorf("damaged: %d, %v, want ErrFormat", n, err)
	}
}
