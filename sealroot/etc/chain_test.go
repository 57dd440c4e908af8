package etc

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state/layout"
)

// withLists is a world with two images, which have another /etc with the layers of a list.
func withLists(t *testing.T) *world {
	w := newWorld(t)
	must(t, unix.Mount("tmpfs", w.dir, "tmpfs", 0, "")) // a sync of the machine's own disk takes its time
	t.Cleanup(func() { unix.Unmount(w.dir, unix.MNT_DETACH) })
	must(t, os.Mkdir(w.volume, 0o755))
	for id, list := range map[string]string{v1: "", v1x: "x", v1y: "y", v2: "", v2x: "x", v2y: "y"} {
		files := map[string]string{"a": "a" + id[:1] + "\n", "both": "b\n", "only-" + id[:1]: "o\n"}
		if list != "" {
			files["layer-"+list] = "l\n"
		}
		w.files(id, files)
	}
	return w
}

func (w *world) trial(id string) Result {
	w.t.Helper()
	r, err := w.boot(id, Options{Trial: true})
	must(w.t, err)
	return r
}

// An image on trial tries a list of layers, and at its last try none. The /etc of before
// all that is put back, for whichever list it was.
func TestListsOfATrialArePutBack(t *testing.T) {
	w := withLists(t)
	w.booted(v1x)
	w.shell(v1x, "echo mine >a; rm both")
	before := w.list(v1x)
	w.trial(v2x)
	w.shell(v2x, "echo migrated >a; echo more >more")
	if r := w.trial(v2); r.PutBack {
		t.Error("the first list of the trial was put back")
	}
	w.has(v2, map[string]string{"a": "migrated\n", "more": "more\n", "layer-x": "", "only-2": "o\n"})
	if r := w.booted(v1x); !r.PutBack {
		t.Errorf("after the trial: %+v", r)
	}
	if got := w.list(v1x); got != before {
		t.Errorf("after the trial:\n%s\nwant\n%s", got, before)
	}
}

// A list on trial is put back, what was changed before it stays, and the image that comes
// back after that has the /etc that it had, and what was changed since it was left: under
// every list that counts.
func TestListsBetweenTwoImages(t *testing.T) {
	for name, trial := range map[string]bool{"committed": false, "dropped": true} {
		t.Run(name, func(t *testing.T) {
			w := withLists(t)
			w.booted(v2)
			w.shell(v2, "rm only-2; echo own >a")
			w.booted(v1)
			w.shell(v1, "echo one >one")
			if trial {
				w.trial(v1x)
			} else {
				w.booted(v1x)
			}
			w.has(v1x, map[string]string{"one": "one\n", "layer-x": "l\n"})
			w.shell(v1x, "echo two >two; rm layer-x")
			two, last := "two\n", v1x
			if trial {
				if r := w.booted(v1); !r.PutBack {
					t.Errorf("the list before: %+v", r)
				}
				two, last = "", v1
				w.has(last, map[string]string{"one": "one\n", "two": ""})
			}
			w.shell(last, "echo three >three")
			if r := w.booted(v2); r.PutBack || len(r.Conflicts) > 0 {
				t.Errorf("back: %+v", r)
			}
			w.has(v2, map[string]string{"a": "own\n", "only-2": "", "one": "one\n", "two": two, "three": "three\n", "layer-x": ""})
		})
	}
}

// What was committed under a list is not lost with another one that failed on trial.
func TestCommittedListIsNotPutBack(t *testing.T) {
	w := withLists(t)
	w.booted(v1)
	w.trial(v2x)
	must(t, Committed(w.volume, v2x))
	w.shell(v2x, "echo kept >kept")
	w.trial(v2y)
	w.shell(v2y, "echo lost >lost")
	if r := w.booted(v1); r.PutBack {
		t.Errorf("an /etc of before the commit was put back: %+v", r)
	}
	w.has(v1, map[string]string{"kept": "kept\n", "only-2": "", "lost": ""})
}

// With a list that the image had before, /etc is what it is now: what was put aside when
// the list was left is no second side.
func TestListOfBeforeIsNotInConflict(t *testing.T) {
	w := withLists(t)
	w.booted(v1)
	w.shell(v1, "echo 1 >n")
	w.booted(v1x)
	w.shell(v1x, "echo 2 >n")
	if r := w.booted(v1); len(r.Conflicts) > 0 {
		t.Errorf("conflicts %v", r.Conflicts)
	}
	w.has(v1, map[string]string{"n": "2\n"})
}

// However lists come and go, little is kept.
func TestListsAreBounded(t *testing.T) {
	w := withLists(t)
	for i := range 40 {
		id := []string{v1, v1x, v2, v2x, v2y, v1y, v1x, v2}[i*5%8]
		if i%3 == 0 {
			w.trial(id)
		} else {
			w.booted(id)
		}
		w.shell(id, fmt.Sprintf("echo %d >n", i))
		w.has(id, map[string]string{"n": fmt.Sprintf("%d\n", i)})
		if left := entries(t, filepath.Join(w.volume, layout.EtcKept)); len(left) > 4 {
			t.Fatalf("kept for %v", left)
		}
	}
}

// The power is cut at every write of a merge for another list of layers: the image that
// comes back has what it would have without the cut.
func TestMergeOfListsCutAtEveryWrite(t *testing.T) {
	errCut := fmt.Errorf("no power")
	story := func(cut int) (text string, isCut bool) {
		w := withLists(t)
		w.booted(v2)
		w.shell(v2, "rm only-2; echo own >a")
		w.booted(v1)
		w.shell(v1, "echo one >one; rm both")
		step := 0
		_, err := w.boot(v1x, Options{Step: func(string) error {
			if step++; step > cut && cut >= 0 {
				return errCut
			}
			return nil
		}})
		if isCut = err != nil; isCut {
			w.booted(v1x)
		}
		w.shell(v1x, "echo two >two")
		w.booted(v2)
		text = w.list(v2)
		must(t, unix.Unmount(w.dir, 0))
		return text, isCut
	}
	want, _ := story(-1)
	for cut := 0; ; cut++ {
		got, isCut := story(cut)
		if got != want {
			t.Fatalf("cut at step %d:\n%s\nwant\n%s", cut, got, want)
		}
		if !isCut {
			if cut < 10 {
				t.Errorf("only %d steps were cut", cut)
			}
			return
		}
	}
}
