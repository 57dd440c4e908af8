package uppers

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/state/layout"
)

// What the slot kept for other images goes, and nothing else: not what is shared, what
// is another slot's or the running image's, nor what a link leads to.
func TestCollect(t *testing.T) {
	volume, outside := t.TempDir(), t.TempDir()
	one, two := strings.Repeat("1a", 32), strings.Repeat("2b", 32)
	keep := []string{
		layout.SlotUpper("opt", "a", one) + "/upper/x", layout.SlotUpper("opt", "b", two) + "/upper/x", layout.SlotUpper("opt", "b", one) + "/upper/x",
		layout.Overlays + "/opt/upper/x", layout.Overlays + "/opt/work/x", layout.Overlays + "/opt/a-/x", layout.Overlays + "/opt/a-notes/x", layout.Overlays + "/srv/upper/x",
	}
	gone := []string{layout.SlotUpper("opt", "a", two) + "/upper/x", layout.SlotUpper("opt", "a", two) + "/work/work/x", layout.SlotUpper("var-lib", "a", one+one) + "/upper/x"}
	for _, name := range slices.Concat(keep, gone) {
		if err := os.MkdirAll(filepath.Join(volume, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(volume, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(outside, "a-"+two), 0o755))
	must(os.Symlink(outside, filepath.Join(volume, layout.Overlays, "linked")))
	must(os.WriteFile(filepath.Join(volume, layout.Overlays, "file"), nil, 0o644))
	must(os.Symlink(filepath.Join(volume, layout.Overlays, "srv"), filepath.Join(volume, layout.SlotUpper("srv", "a", two))))

	removed, err := Collect(volume, "a", one)
	if err != nil || removed != 3 {
		t.Errorf("removed %d, %v, want 3", removed, err)
	}
	for _, name := range keep {
		if _, err := os.Stat(filepath.Join(volume, name)); err != nil {
			t.Error(err)
		}
	}
	for _, name := range gone {
		if _, err := os.Stat(filepath.Join(volume, name)); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(outside, "a-"+two)); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
	if removed, err := Collect(volume, "a", one); err != nil || removed != 0 {
		t.Errorf("again: removed %d, %v", removed, err)
	}
	for _, empty := range []string{t.TempDir(), filepath.Join(volume, "none")} {
		if removed, err := Collect(empty, "a", one); err != nil || removed != 0 {
			t.Errorf("%s: removed %d, %v", empty, removed, err)
		}
	}
	// what cannot be removed is told of
	if _, err := Collect("/proc/self/mem", "a", one); err == nil || os.IsNotExist(err) || strings.Contains(err.Error(), fs.ErrNotExist.Error()) {
		t.Errorf("no volume: %v", err)
	}
}
