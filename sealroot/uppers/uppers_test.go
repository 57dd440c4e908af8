package uppers

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

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
	if _, err := Collect("/proc/self/mem", "a", one); err == nil || os.IsNotExist(err) || strings.Contains(err.Error(), fs.ErrNotExist.Error()) {
		t.Errorf("no volume: %v", err)
	}
}

// A removal that fails half-way is told of, and nobody finds the rest of a layer at its
// place; the next call removes it, for whatever slot. A depth that keeps no file open for
// each level is no hindrance, and no hash is for all of the slot.
func TestCollectGoesOn(t *testing.T) {
	volume, one, two := t.TempDir(), strings.Repeat("1a", 32), strings.Repeat("2b", 32)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	upper := filepath.Join(volume, layout.SlotUpper("opt", "a", two), "upper")
	busy := filepath.Join(upper, "busy")
	must(os.MkdirAll(busy, 0o755))
	must(os.WriteFile(filepath.Join(upper, "file"), nil, 0o644))
	must(os.MkdirAll(filepath.Join(volume, layout.SlotUpper("srv", "a", two), "upper"), 0o755))
	must(os.MkdirAll(filepath.Join(volume, layout.SlotUpper("opt", "b", one), strings.Repeat("d/", 1000)), 0o755))
	removed := filepath.Join(volume, layout.OverlaysRemoved)
	unmount := func() {
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		must(err)
		for l := range strings.Lines(string(mounts)) {
			if f := strings.Fields(l); strings.HasPrefix(f[4], volume) {
				must(unix.Unmount(f[4], 0))
			}
		}
	}
	must(unix.Mount("busy", busy, "tmpfs", 0, ""))
	defer unmount()
	if n, err := Collect(volume, "a", one); n != 2 || err == nil {
		t.Errorf("removed %d, %v, want 2 out of the way, and an error", n, err)
	}
	if _, err := os.Lstat(upper); !os.IsNotExist(err) {
		t.Errorf("the rest of a layer is in its place: %v", err)
	}
	unmount()
	must(os.MkdirAll(filepath.Join(removed, "1"), 0o755)) // a name that is taken
	if n, err := Collect(volume, "b", ""); n != 1 || err != nil {
		t.Errorf("later, for another slot: removed %d, %v, want 1", n, err)
	}
	for _, name := range []string{removed, filepath.Join(volume, layout.SlotUpper("opt", "b", one))} {
		if _, err := os.Lstat(name); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
}
