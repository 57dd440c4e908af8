package etc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state/layout"
)

// two is a world with two versions of an image.
func two(t *testing.T) *world {
	w := newWorld(t)
	w.two()
	return w
}

func (w *world) two() {
	w.files(v1, map[string]string{
		"a": "a1\n", "b": "b1\n", "c": "c1\n", "only-v1": "x\n", "removed": "r\n", "touched": "same\n",
		"dir/one": "1\n", "dir/two": "2\n", "link": "->a", "gone/deep/file": "g\n",
		"passwd": "root:x:0:0::/root:/bin/sh\nold:x:998:998::/:/bin/false\n", "group": "root:x:0:\nold:x:998:\n", "shadow": "root:*:1::::::\nold:!:1::::::\n",
	})
	w.files(v2, map[string]string{
		"a": "a1\n", "b": "b2\n", "c": "c2\n", "only-v2": "y\n", "removed": "r\n", "touched": "same\n",
		"dir/one": "1\n", "dir/two": "2\n", "dir/three": "3\n", "link": "->b",
		"passwd": "root:x:0:0::/root:/bin/sh\ndaemon2:x:997:997::/:/bin/false\n", "group": "root:x:0:\ndaemon2:x:997:\n", "shadow": "root:*:1::::::\ndaemon2:!:1::::::\n",
	})
}

// edit is what the administrator does under v1.
const edit = `echo a-machine >a; echo c-machine >c; rm removed; touch touched; chmod 600 dir/two; chown 5:6 dir
echo new >dir/new; rm -r gone; mkdir gone; echo g >gone/mine; ln -s dir/new mine
echo human:x:1000:1000::/home/human:/bin/sh >>passwd; echo human:x:1000: >>group; echo 'human:$y$secret:1::::::' >>shadow`

func TestMerge(t *testing.T) {
	w := two(t)
	if r := w.booted(v1); r.Files != 0 || len(r.Conflicts) != 0 {
		t.Errorf("a new volume: %+v, want nothing to differ", r)
	}
	w.shell(v1, edit)
	before := w.list(v1)
	if r := w.booted(v1); !r.Done {
		t.Errorf("the same image: %+v, want nothing to be done", r)
	}

	r := w.booted(v2)
	if r.From != v1 || len(r.Conflicts) != 2 || r.Conflicts[0].Path != "c" || r.Conflicts[1].Path != "gone" {
		t.Errorf("%+v, want conflicts about c and gone", r)
	}
	w.has(v2, map[string]string{
		"a": "a-machine\n", "b": "b2\n", "c": "c-machine\n", "removed": "", "only-v1": "", "only-v2": "y\n", "touched": "same\n",
		"dir/three": "3\n", "dir/new": "new\n", "gone/mine": "g\n", "gone/deep/file": "", "link": "b2\n", "mine": "new\n",
		"passwd": "root:x:0:0::/root:/bin/sh\nhuman:x:1000:1000::/home/human:/bin/sh\ndaemon2:x:997:997::/:/bin/false\n",
		"group":  "root:x:0:\nhuman:x:1000:\ndaemon2:x:997:\n",
		"shadow": "root:*:1::::::\nhuman:$y$secret:1::::::\ndaemon2:!:1::::::\n",
	})
	if list := w.list(v2); !strings.Contains(list, "dir/two 100600 ") || !strings.Contains(list, "dir 40755 5:6\n") {
		t.Errorf("modes and owners of the machine are lost:\n%s", list)
	}
	// Nothing that is the image's own is in the upper layer.
	for _, name := range []string{"b", "touched", "link", "dir/one", "only-v2"} {
		if _, err := os.Lstat(filepath.Join(w.volume, layout.Etc, name)); err == nil {
			t.Errorf("%s is the same in the image, and in the upper layer", name)
		}
	}

	// Back: the /etc that v1 had, and what was changed since.
	w.shell(v2, `echo a-later >a; echo since >since; rm only-v2; echo second:x:1001:1001::/:/bin/sh >>passwd`)
	if r := w.booted(v1); r.From != v2 || len(r.Conflicts) != 0 {
		t.Errorf("going back: %+v, want no conflict", r)
	}
	// New accounts come behind those that the machine has.
	want := strings.NewReplacer(
		`"a-machine\n"`, `"a-later\n"`,
		`old:x:998:998::/:/bin/false\nhuman:x:1000:1000::/home/human:/bin/sh\n`,
		`human:x:1000:1000::/home/human:/bin/sh\nsecond:x:1001:1001::/:/bin/sh\nold:x:998:998::/:/bin/false\n`,
		`old:x:998:\nhuman:x:1000:\n`, `human:x:1000:\nold:x:998:\n`,
		`old:!:1::::::\nhuman:$y$secret:1::::::\n`, `human:$y$secret:1::::::\nold:!:1::::::\n`,
		"touched ", "since 100644 0:0 \"since\\n\"\ntouched ",
	).Replace(before)
	if got := w.list(v1); got != want {
		t.Errorf("after going back:\n%s\nwant\n%s", got, want)
	}

	// Forward again: v2's own /etc, as it was left, and what was changed since.
	w.shell(v1, "echo b-machine >b")
	w.booted(v2)
	w.has(v2, map[string]string{"a": "a-later\n", "b": "b-machine\n", "since": "since\n", "only-v2": "", "dir/three": "3\n"})

	// A third image: nothing is kept of the first.
	w.files(v3, map[string]string{"a": "a3\n", "b": "b2\n", "c": "c2\n"})
	w.booted(v3)
	w.has(v3, map[string]string{"a": "a-later\n", "b": "b-machine\n", "c": "c-machine\n", "dir/one": "", "dir/new": "new\n"})
	if left := entries(t, filepath.Join(w.volume, layout.EtcKept)); !slices.Equal(left, []string{v2, v3}) {
		t.Errorf("kept for %v, want the running image and the one before", left)
	}
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	list, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// What was changed under a trial that nobody committed is put aside, and after a
// commit it is merged.
func TestMergeAfterTrial(t *testing.T) {
	for _, committed := range []bool{false, true} {
		t.Run(fmt.Sprintf("committed=%v", committed), func(t *testing.T) {
			w := two(t)
			w.booted(v1)
			w.shell(v1, edit)
			before := w.list(v1)
			_, err := w.boot(v2, Options{Trial: true})
			must(t, err)
			w.shell(v2, "echo migrated >a")
			if committed {
				must(t, Committed(w.volume, v2))
				must(t, Committed(w.volume, v2))
			}
			r := w.booted(v1)
			if r.PutBack == committed {
				t.Errorf("put back: %v", r.PutBack)
			}
			if committed {
				w.has(v1, map[string]string{"a": "migrated\n", "b": "b1\n"})
				return
			}
			if got := w.list(v1); got != before {
				t.Errorf("after the trial:\n%s\nwant\n%s", got, before)
			}
			d, err := Compare(w.volume)
			must(t, err)
			if got, err := os.ReadFile(filepath.Join(d.PutAside, "a")); string(got) != "migrated\n" {
				t.Errorf("put aside in %q: %q, %v, want what the trial wrote", d.PutAside, got, err)
			}
		})
	}
}

// A volume of a machine that has never merged: all that differs stays, and accounts
// of the image are there.
func TestMergeAdopts(t *testing.T) {
	w := two(t)
	w.shell(v1, edit)
	if r := w.booted(v2); r.From != "" {
		t.Errorf("%+v, want it merged from nothing", r)
	}
	w.has(v2, map[string]string{
		"a": "a-machine\n", "b": "b2\n", "c": "c-machine\n", "removed": "", "only-v2": "y\n",
		"passwd": "root:x:0:0::/root:/bin/sh\nold:x:998:998::/:/bin/false\nhuman:x:1000:1000::/home/human:/bin/sh\ndaemon2:x:997:997::/:/bin/false\n",
	})
	if _, err := Compare(newWorld(t).volume); !errors.Is(err, ErrNever) {
		t.Errorf("Compare of a new volume: %v, want ErrNever", err)
	}
}

// The layer of before the first merge is put back too, wherever the power was cut in
// the merge or in that which puts it back; a commit removes it, and another trial finds
// the machine's changes in the live one.
func TestMergeBeforeTheFirstIsPutBack(t *testing.T) {
	errCut := errors.New("no power")
	// story is how v1 finds /etc after a trial of v2, with one step of either merge cut.
	story := func(t *testing.T, cut, cutBack int) (w *world, before, after string, isCut bool) {
		w = newWorld(t)
		must(t, unix.Mount("tmpfs", w.dir, "tmpfs", 0, ""))
		t.Cleanup(func() { unix.Unmount(w.dir, unix.MNT_DETACH) })
		must(t, os.Mkdir(w.volume, 0o755))
		w.two()
		w.shell(v1, edit+"; mkdir merge-x; echo x >merge-x/y")
		before = w.list(v1)
		boot := func(id string, trial bool, cut int) {
			step := 0
			_, err := w.boot(id, Options{Trial: trial, Step: func(string) error {
				if step++; step > cut && cut >= 0 {
					return errCut
				}
				return nil
			}})
			if err == nil {
				return
			}
			if !errors.Is(err, errCut) {
				t.Fatal(err)
			}
			isCut = true
			_, err = w.boot(id, Options{Trial: trial})
			must(t, err)
		}
		boot(v2, true, cut)
		w.shell(v2, "echo migrated >a")
		boot(v1, false, cutBack)
		return w, before, w.list(v1), isCut
	}
	for name, cuts := range map[string]func(n int) (cut, back int){
		"none":         func(int) (int, int) { return -1, -1 },
		"merge":        func(n int) (int, int) { return n, -1 },
		"putting_back": func(n int) (int, int) { return -1, n },
	} {
		t.Run(name, func(t *testing.T) {
			for n := 0; ; n++ {
				cut, back := cuts(n)
				w, before, after, isCut := story(t, cut, back)
				if after != before {
					t.Fatalf("cut at step %d: after the trial:\n%s\nwant\n%s", n, after, before)
				}
				d, err := Compare(w.volume)
				must(t, err)
				// Cut behind the exchange the name of the old one comes with the next merge.
				if got, err := os.ReadFile(filepath.Join(d.PutAside, "a")); !isCut && string(got) != "migrated\n" {
					t.Errorf("put aside in %q: %q, %v, want what the trial wrote", d.PutAside, got, err)
				}
				must(t, unix.Unmount(w.dir, 0))
				if !isCut {
					if n < 10 && name != "none" {
						t.Errorf("only %d steps were cut", n)
					}
					return
				}
			}
		})
	}

	kept := func(w *world) []string { return entries(t, filepath.Join(w.volume, layout.EtcKept)) }
	trial := func(w *world, id string) {
		t.Helper()
		_, err := w.boot(id, Options{Trial: true})
		must(t, err)
	}
	w := two(t)
	w.files(v3, map[string]string{"a": "a3\n"})
	w.shell(v1, edit)
	trial(w, v2)
	w.shell(v2, "echo since >since") // v1 may have no merge, and go on with this layer
	trial(w, v3)
	w.has(v3, map[string]string{"since": "since\n", "a": "a-machine\n"})
	if got := kept(w); !slices.Equal(got, []string{v2, v3, beforeDir}) {
		t.Errorf("kept on trial is %v", got)
	}
	must(t, Committed(w.volume, v3))
	if got := kept(w); !slices.Equal(got, []string{v2, v3}) {
		t.Errorf("kept after the commit is %v", got)
	}
	w.booted(v2)
	w.has(v2, map[string]string{"since": "since\n"})

	// There is nothing to put back of a new volume, nor for an image that is not on trial.
	w = two(t)
	trial(w, v1)
	if got := kept(w); !slices.Equal(got, []string{v1}) {
		t.Errorf("kept of a new volume is %v", got)
	}
	w = two(t)
	w.shell(v1, edit)
	w.booted(v2)
	if got := kept(w); !slices.Equal(got, []string{v2}) {
		t.Errorf("kept without a trial is %v", got)
	}
}

// The power is cut before every write of a merge. Then /etc is the old one or the
// new one, and whichever image boots next has what it would have without the cut.
func TestMergeCutAtEveryWrite(t *testing.T) {
	// story is a merge to v2 cut at one step, the next boot, and a third one.
	story := func(t *testing.T, cut int, next string) (after, last, conflicts string, isCut bool) {
		w := newWorld(t)
		must(t, unix.Mount("tmpfs", w.dir, "tmpfs", 0, "")) // a sync of the machine's own disk takes its time
		defer unix.Unmount(w.dir, unix.MNT_DETACH)
		must(t, os.Mkdir(w.volume, 0o755))
		w.two()
		w.booted(v1)
		w.shell(v1, edit)
		w.booted(v2)
		w.shell(v2, "echo under-v2 >under")
		w.booted(v1) // so that there is a layer of v2's to replace
		w.shell(v1, "rm under; echo again >again")
		now := w.list(v1)
		errCut := errors.New("no power")
		step := 0
		_, err := w.boot(v2, Options{Step: func(string) error {
			if step++; step > cut && cut >= 0 {
				return errCut
			}
			return nil
		}})
		if isCut = errors.Is(err, errCut); err != nil && !isCut {
			t.Fatal(err)
		}
		upper, err := os.Open(filepath.Join(w.volume, layout.Etc))
		must(t, err)
		defer upper.Close()
		owner, err := readOwner(upper)
		must(t, err)
		if owner.image == v1 {
			if got := w.list(v1); got != now {
				t.Errorf("cut at step %d: the old /etc is\n%s\nwant\n%s", cut, got, now)
			}
		} else if owner.image != v2 {
			t.Errorf("cut at step %d: the layer is %v's", cut, owner)
		}
		w.booted(next)
		after = w.list(next)
		w.shell(next, "echo third >third")
		other := v1
		if next == v1 {
			other = v2
		}
		w.booted(other)
		d, err := Compare(w.volume)
		must(t, err)
		if left := entries(t, filepath.Join(w.volume, layout.EtcKept)); !slices.Equal(left, []string{v1, v2}) {
			t.Errorf("cut at step %d: kept for %v", cut, left)
		}
		return after, w.list(other), strings.ReplaceAll(fmt.Sprint(d.Conflicts), w.dir, ""), isCut
	}
	for _, next := range []string{v1, v2} {
		t.Run("then_"+next[:1], func(t *testing.T) {
			after, last, conflicts, _ := story(t, -1, next)
			for cut := 0; ; cut++ {
				a, l, c, isCut := story(t, cut, next)
				if !isCut {
					if cut < 20 {
						t.Errorf("only %d steps were cut", cut)
					}
					break
				}
				if a != after || l != last || c != conflicts {
					t.Errorf("cut at step %d: then\n%s\nand\n%s\n%s\nwant\n%s\nand\n%s\n%s", cut, a, l, c, after, last, conflicts)
				}
			}
		})
	}
}

// What users of the machine left in the volume leads nowhere, holds nothing up, and
// is no owner.
func TestMergeOfHostileLayers(t *testing.T) {
	outside := t.TempDir()
	put(t, outside, map[string]string{"secret": "s\n"})
	before := describe(t, outside)
	for name, tt := range map[string]struct {
		script string
		fails  bool
	}{
		"nodes":            {`mkfifo fifo; mknod null c 1 3; ln -s ` + outside + ` dir2; ln -s loop loop`, false},
		"owner_with_path":  {"", false},
		"kept_is_a_link":   {"", true},
		"image_is_a_link":  {"", true},
		"deep":             {`p=.; for i in $(seq 70); do p=$p/d; done; mkdir -p $p`, true},
		"next_is_a_link":   {"", true},
		"upper_is_a_link":  {"", true},
		"many_hard_links":  {`echo x >h; for i in $(seq 20); do ln h h$i; done`, false},
		"overlay_redirect": {"", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := two(t)
			w.booted(v1)
			if tt.script != "" {
				w.shell(v1, tt.script)
			}
			kept, upper := filepath.Join(w.volume, layout.EtcKept), filepath.Join(w.volume, layout.Etc)
			switch name {
			case "owner_with_path":
				must(t, unix.Setxattr(upper, layout.EtcOwner, []byte("../../../../"+outside+" 1"), 0))
			case "kept_is_a_link":
				must(t, os.RemoveAll(kept))
				must(t, os.Symlink(outside, kept))
			case "image_is_a_link":
				must(t, os.RemoveAll(filepath.Join(kept, v1, imageDir)))
				must(t, os.Symlink(outside, filepath.Join(kept, v1, imageDir)))
			case "next_is_a_link":
				must(t, os.Symlink(outside, filepath.Join(kept, nextDir)))
			case "upper_is_a_link":
				must(t, os.RemoveAll(upper))
				must(t, os.Symlink(outside, upper))
			case "overlay_redirect":
				must(t, os.Mkdir(filepath.Join(upper, "dir3"), 0o755))
				must(t, unix.Setxattr(filepath.Join(upper, "dir3"), "trusted.overlay.redirect", []byte("/dir"), 0))
			}
			if strings.HasSuffix(name, "_is_a_link") { // who follows it gets outside
				leads := map[string]string{"kept": kept, "image": filepath.Join(kept, v1, imageDir), "next": filepath.Join(kept, nextDir), "upper": upper}
				if got, err := os.ReadFile(filepath.Join(leads[strings.TrimSuffix(name, "_is_a_link")], "secret")); string(got) != "s\n" {
					t.Fatalf("the trap is not set: %q, %v", got, err)
				}
			}
			_, err := w.boot(v2, Options{})
			if (err != nil) != tt.fails {
				t.Errorf("Merge: %v, want it to fail: %v", err, tt.fails)
			}
			if got := describe(t, outside); got != before {
				t.Errorf("outside the volume:\n%s\nwant\n%s", got, before)
			}
			if tt.fails {
				return
			}
			size := make([]byte, 64)
			if _, err := unix.Getxattr(filepath.Join(upper, "dir3"), "trusted.overlay.redirect", size); err == nil {
				t.Error("an overlay's attribute was copied")
			}
			w.has(v2, map[string]string{"b": "b2\n", "only-v2": "y\n"})
		})
	}
}

func TestParseOwner(t *testing.T) {
	for text, want := range map[string]owner{
		v1 + " 3": {v1, 3}, "": {}, v1: {}, v1 + " ": {}, v1 + " 0": {}, v1 + " -1": {}, v1 + " 99999999999": {},
		"../../etc 1": {}, strings.ToUpper("abcdefabcdefabcdef") + " 1": {}, v1 + "/x 1": {}, "12 1": {}, v1 + v1 + "0 1": {},
	} {
		if got := parseOwner(text); got != want {
			t.Errorf("parseOwner(%q) = %v, want %v", text, got, want)
		}
	}
	if _, err := Merge(nil, nil, Options{Image: "../x"}); !errors.Is(err, ErrIdentity) {
		t.Errorf("Merge for ../x: %v, want ErrIdentity", err)
	}
}
