package etc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state/layout"
)

// inMemory is a world with two images whose volume is a tmpfs of its own.
func inMemory(t *testing.T, options string) *world {
	w := newWorld(t)
	must(t, unix.Mount("tmpfs", w.volume, "tmpfs", 0, options))
	t.Cleanup(func() { unix.Unmount(w.volume, unix.MNT_DETACH) })
	w.two()
	return w
}

// fill leaves no block and no inode of the volume free.
func (w *world) fill() {
	w.t.Helper()
	must(w.t, os.Mkdir(filepath.Join(w.volume, "fill"), 0o755))
	text := make([]byte, 64<<10)
	for i := 0; ; i++ {
		err := os.WriteFile(filepath.Join(w.volume, "fill", fmt.Sprint(i)), text, 0o600)
		if errors.Is(err, unix.ENOSPC) && len(text) > 0 {
			text = nil
		} else if errors.Is(err, unix.ENOSPC) {
			return
		} else {
			must(w.t, err)
		}
	}
}

// A trial that fills the volume costs the image before nothing: its /etc comes back
// without a byte or inode that is free.
func TestPutBackNeedsNoRoom(t *testing.T) {
	w := inMemory(t, "size=4m,nr_inodes=500")
	w.booted(v1)
	w.shell(v1, edit)
	before := w.list(v1)
	w.trial(v2)
	w.shell(v2, "echo migrated >a")
	w.fill()
	if err := os.WriteFile(filepath.Join(w.volume, "more"), nil, 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the volume is not full: %v", err)
	}
	if r, err := w.boot(v1, Options{}); err != nil || !r.PutBack || r.From != v2 {
		t.Errorf("after the trial: %+v, %v", r, err)
	}
	must(t, os.RemoveAll(filepath.Join(w.volume, "fill"))) // the kernel's overlay needs room
	if got := w.list(v1); got != before {
		t.Errorf("after the trial:\n%s\nwant\n%s", got, before)
	}
}

// Another image that runs on the layer of a trial does not end the trial: its changes
// would go into the committed /etc, as if nobody had minded them.
func TestCommittedOfAnotherImage(t *testing.T) {
	w := inMemory(t, "")
	w.booted(v1)
	w.trial(v2)
	w.shell(v2, "echo migrated >a")
	mark := filepath.Join(w.volume, layout.EtcKept, v2, "merge-2", trialFile)
	for _, image := range []string{v1, ""} {
		must(t, Committed(w.volume, image))
		if _, err := os.Stat(mark); err != nil {
			t.Fatalf("committed is %q, and the mark of the trial is gone: %v", image, err)
		}
	}
	if r := w.booted(v1); !r.PutBack {
		t.Errorf("after the trial: %+v", r)
	}
	w.has(v1, map[string]string{"a": "a1\n"})
	w.trial(v2)
	must(t, Committed(w.volume, v2))
	if _, err := os.Stat(mark); err == nil {
		t.Error("the mark of the trial is there after its commit")
	}
}

// The power is cut before every step of a put-back: the image before has its /etc, as
// soon as a merge has run or PID 1 need not run one, and every merge after that finds
// what it would have found without the trial.
func TestPutBackCutAtEveryWrite(t *testing.T) {
	errCut := errors.New("no power")
	// story is /etc of v1 after a trial of v2, and of v2 when it is tried again.
	story := func(cut int) (back, again string, isCut bool) {
		w := inMemory(t, "")
		defer unix.Unmount(w.volume, unix.MNT_DETACH)
		w.booted(v2)
		w.shell(v2, "echo own >own")
		w.booted(v1)
		w.shell(v1, edit)
		before := w.list(v1)
		if cut >= 0 {
			w.trial(v2)
			w.shell(v2, "echo migrated >a; echo failed >own; echo more >more")
			step := 0
			_, err := w.boot(v1, Options{Step: func(string) error {
				if step++; step > cut {
					return errCut
				}
				return nil
			}})
			if isCut = errors.Is(err, errCut); err != nil && !isCut {
				t.Fatal(err)
			}
			w.booted(v1)
			if got := w.list(v1); got != before {
				t.Errorf("cut at step %d:\n%s\nwant\n%s", cut, got, before)
			}
			d, err := Compare(w.volume)
			must(t, err)
			if got, err := os.ReadFile(filepath.Join(d.PutAside, "a")); string(got) != "migrated\n" {
				t.Errorf("cut at step %d: put aside in %q: %q, %v, want what the trial wrote", cut, d.PutAside, got, err)
			}
		}
		w.shell(v1, "echo since >since")
		w.trial(v2)
		again = w.list(v2)
		w.booted(v1)
		return w.list(v1), again, isCut
	}
	back, again, _ := story(-1)
	for cut := 0; ; cut++ {
		b, a, isCut := story(cut)
		if b != back || a != again {
			t.Errorf("cut at step %d: v1 has\n%s\nand v2\n%s\nwant\n%s\nand\n%s", cut, b, a, back, again)
		}
		if !isCut {
			if cut < 3 {
				t.Errorf("only %d steps were cut", cut)
			}
			return
		}
	}
}

// A second trial of an image begins with the /etc of the image before, not with what was
// changed under the first one, which failed.
func TestSecondTrialBeginsAnew(t *testing.T) {
	w := inMemory(t, "")
	w.booted(v1)
	for try := range 2 {
		w.trial(v2)
		w.has(v2, map[string]string{"a": "a1\n", "b": "b2\n", "failed": "", "only-v2": "y\n", "under-v1": strings.Repeat("u\n", try)})
		w.shell(v2, "echo migrated >a; rm only-v2; echo f >failed")
		w.booted(v1)
		w.has(v1, map[string]string{"a": "a1\n", "failed": ""})
		w.shell(v1, "echo u >>under-v1")
	}
}

// What was changed under a trial that failed does not get into the /etc of a committed
// image that is not just the one of before: with another layer in use it is merged from
// what was committed last.
func TestFailedTrialLeaksNothing(t *testing.T) {
	for name, before := range map[string]bool{"merged_before": true, "first_merge": false} {
		t.Run(name, func(t *testing.T) {
			w := inMemory(t, "")
			w.files(v1x, map[string]string{"a": "a1\n", "b": "b1\n", "layer": "l\n"})
			w.files(v2x, map[string]string{"a": "a2\n"})
			w.files(v3, map[string]string{"a": "a3\n"})
			if before {
				w.booted(v1)
			}
			w.shell(v1, "echo mine >mine")
			w.trial(v2)
			w.shell(v2, "echo migrated >a; echo f >failed")
			w.trial(v2x)
			w.shell(v2x, "echo more >failed")
			if r := w.booted(v1x); r.PutBack || r.Failed != v2x || before && r.From != v1 {
				t.Errorf("after the trial: %+v", r)
			}
			w.has(v1x, map[string]string{"a": "a1\n", "mine": "mine\n", "layer": "l\n", "failed": ""})
			for range 2 {
				d, err := Compare(w.volume)
				must(t, err)
				if got, err := os.ReadFile(filepath.Join(d.PutAside, "failed")); string(got) != "more\n" {
					t.Errorf("put aside in %q: %q, %v, want what the trial wrote", d.PutAside, got, err)
				}
				w.trial(v3)
			}
			must(t, Committed(w.volume, v3))
			w.booted(v1)
			if d, err := Compare(w.volume); err != nil || d.PutAside != "" {
				t.Errorf("put aside for ever: %q, %v", d.PutAside, err)
			}
		})
	}
}

// An image whose own layer is left out as damaged is not merged, and has its /etc of before
// the trial all the same, on a full volume too. Where it is another list's, that is
// put back, and merged when there is an image's /etc to merge it with.
func TestPutBackWithoutAMerge(t *testing.T) {
	w := inMemory(t, "size=4m,nr_inodes=500")
	w.files(v1x, map[string]string{"a": "a1\n", "b": "b1\n", "layer": "l\n"})
	w.booted(v1)
	w.shell(v1, edit)
	before := w.list(v1)
	if r, err := w.boot(v2, Options{PutBackOnly: true}); err != nil || !r.Waits || r.PutBack || r.Failed != "" {
		t.Errorf("without a trial: %+v, %v", r, err)
	}
	for _, image := range []string{v1, v1x} {
		w.trial(v2)
		w.shell(v2, "echo migrated >a; echo f >failed")
		if _, err := os.Stat(filepath.Join(w.volume, layout.EtcTrial(v2, "2"))); err != nil {
			t.Fatalf("PID 1 sees no trial: %v", err)
		}
		w.fill()
		r, err := w.boot(image, Options{PutBackOnly: true})
		if own := image == v1; err != nil || r.Failed != v2 || r.PutBack != own || r.Waits == own {
			t.Errorf("after the trial: %+v, %v", r, err)
		}
		must(t, os.RemoveAll(filepath.Join(w.volume, "fill")))
		if got := w.list(v1); got != before {
			t.Errorf("after the trial:\n%s\nwant\n%s", got, before)
		}
	}
	w.shell(v1, "echo n >acknowledged")
	w.booted(v1x)
	w.has(v1x, map[string]string{"acknowledged": "n\n", "layer": "l\n", "failed": ""})
}

// An image whose layers are on trial right after the trial of another one has what it had
// before that, and loses what this trial changes when it fails too.
func TestLayersOnTrialAfterATrial(t *testing.T) {
	for name, commit := range map[string]bool{"committed": true, "failed": false} {
		t.Run(name, func(t *testing.T) {
			w := inMemory(t, "")
			w.files(v1x, map[string]string{"a": "a1\n", "b": "b1\n", "layer": "l\n"})
			w.booted(v1)
			w.shell(v1, "echo mine >mine")
			w.trial(v2)
			w.shell(v2, "echo migrated >a; echo f >failed")
			if r := w.trial(v1x); r.PutBack || r.Failed != v2 || r.From != v1 {
				t.Errorf("after the trial: %+v", r)
			}
			w.has(v1x, map[string]string{"a": "a1\n", "mine": "mine\n", "layer": "l\n", "failed": ""})
			w.shell(v1x, "echo more >more")
			more := ""
			if commit {
				must(t, Committed(w.volume, v1x))
				more = "more\n"
			}
			w.booted(v1)
			w.has(v1, map[string]string{"a": "a1\n", "mine": "mine\n", "layer": "", "failed": "", "more": more})
		})
	}
}
