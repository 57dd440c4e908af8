package etc

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// varOf makes the /var of an image.
func (w *world) varOf(id string, files map[string]string) *os.File {
	w.t.Helper()
	dir := w.image(id) + "-var"
	put(w.t, dir, files)
	f, err := os.Open(dir)
	must(w.t, err)
	w.t.Cleanup(func() { f.Close() })
	return f
}

// An image adds its directories of /var when it is merged here first. One that comes back
// adds none: a later image may have moved the data that was there, and the way back would
// find the image's empty directory in its place.
func TestVarDirsOfAnImageThatComesBack(t *testing.T) {
	w := inMemory(t, "")
	w.files(v3, map[string]string{"a": "a3\n"})
	for _, id := range []string{v1x, v2x} {
		w.files(id, map[string]string{"a": "x\n"})
	}
	content := map[string]*os.File{}
	for id, version := range map[string]string{v1: "15", v2: "16", v2x: "16", v3: "17"} {
		content[id] = w.varOf(id, map[string]string{"lib/db/" + version + "/main/": ""})
	}
	at := func(name string) string { return filepath.Join(w.volume, "var/lib/db", name) }
	move := func(from, to string) func() { return func() { must(t, os.Rename(at(from), at(to))) } }
	remove := func(name string) func() { return func() { must(t, os.RemoveAll(at(name))) } }
	for i, step := range []struct {
		image  string
		trial  bool
		before func() // what was done to the data before this boot
		want   int    // directories
	}{
		{image: v1}, // the machine's first boot, which fills /var
		{image: v2, before: func() { put(t, at("15"), map[string]string{"main/rows": "rows"}) }, want: 1},
		{image: v1, before: move("15", "before-2")}, // a rollback
		{image: v1, before: move("before-2", "15")}, // which its hook made good
		{image: v2, before: remove("16")},           // forward again
		{image: v2x, want: 1},                       // with other layers it is another image's /var
		{image: v2, before: remove("16")},           // as before
		{image: v3, trial: true, want: 1},
		{image: v2, before: move("17", "kept")}, // the trial failed
		{image: v3, trial: true},                // once more
		{image: v2},
		{image: v3},                                          // and for good
		{image: v1, before: move("15", "before-3"), want: 1}, // nothing is kept of it: as a new one
	} {
		if step.before != nil {
			step.before()
		}
		r, err := w.boot(step.image, Options{Var: content[step.image], Trial: step.trial})
		if err != nil || r.VarError != nil {
			t.Fatalf("step %d: %v, %v", i, r.VarError, err)
		}
		if i == 0 {
			must(t, os.MkdirAll(at("15/main"), 0o755)) // as PID 1 fills it
		}
		if r.VarDirs != step.want {
			t.Errorf("step %d, image %.4s: %d directories were added, want %d\n%s", i, step.image, r.VarDirs, step.want, w.listVar())
		}
	}
	if text, err := os.ReadFile(at("before-3/main/rows")); string(text) != "rows" {
		t.Errorf("the data: %q, %v", text, err)
	}
}

// The power is cut before every write of a first merge; the machine goes back, and then to
// the new image again: that has not added its directories yet, on trial or not, until all
// were there. Cut when the old image comes back, that adds none.
func TestVarDirsCutBeforeTheWayBack(t *testing.T) {
	errCut := errors.New("no power")
	for _, trial := range []bool{false, true} {
		for cut := 0; ; cut++ {
			w, content := varWorld(t)
			_, err := w.boot(v2, Options{Var: content, Trial: trial, Step: cutAt(cut, errCut)})
			if err != nil && !errors.Is(err, errCut) {
				t.Fatal(err)
			}
			w.booted(v1)
			if _, err := w.boot(v2, Options{Var: content, Trial: trial}); err != nil {
				t.Fatal(err)
			}
			if got := w.listVar(); got != varWant {
				t.Errorf("trial %v, cut at step %d: /var is\n%swant\n%s", trial, cut, got, varWant)
			}
			must(t, unix.Unmount(w.dir, unix.MNT_DETACH))
			if err == nil {
				break
			}
		}
	}
	for cut := 0; ; cut++ {
		w, content := varWorld(t)
		if _, err := w.boot(v2, Options{Var: content}); err != nil {
			t.Fatal(err)
		}
		w.booted(v1)
		must(t, os.RemoveAll(filepath.Join(w.volume, "var/spool")))
		_, err := w.boot(v2, Options{Var: content, Step: cutAt(cut, errCut)})
		if err != nil && !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		if r, err := w.boot(v2, Options{Var: content}); err != nil || strings.Contains(w.listVar(), "spool") {
			t.Errorf("back, cut at step %d: %+v, %v\n%s", cut, r, err, w.listVar())
		}
		must(t, unix.Unmount(w.dir, unix.MNT_DETACH))
		if err == nil {
			if cut < 5 {
				t.Errorf("a merge has %d steps", cut)
			}
			return
		}
	}
}

// cutAt cuts the power before a step.
func cutAt(cut int, err error) func(string) error {
	step := 0
	return func(string) error {
		if step++; step > cut {
			return err
		}
		return nil
	}
}
