package etc

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state/layout"
)

// varWorld is a machine with a /var of an older image, on which a new user of the image
// has another number, and the new image's /var.
func varWorld(t *testing.T) (w *world, content *os.File) {
	w = newWorld(t)
	must(t, unix.Mount("tmpfs", w.dir, "tmpfs", 0, ""))
	t.Cleanup(func() { unix.Unmount(w.dir, unix.MNT_DETACH) })
	must(t, os.Mkdir(w.volume, 0o755))
	const root = "root:x:0:0::/root:/bin/sh\n"
	w.files(v1, map[string]string{"passwd": root, "group": "root:x:0:\n"})
	w.files(v2, map[string]string{"passwd": root + "new:x:103:103::/:\n", "group": "root:x:0:\nnew:x:103:\n"})
	w.booted(v1)
	w.shell(v1, "echo collector:x:103:103::/: >>passwd; echo collector:x:103: >>group")
	put(t, filepath.Join(w.volume, "var"), map[string]string{"lib/old/mine": "mine", "lib/link": "->/etc", "lib/file": "file", "log/": ""})
	image := filepath.Join(w.dir, "var")
	put(t, image, map[string]string{
		"lib/old/image": "not copied", "lib/old/deep/er/file": "deep", "lib/link/x": "x", "lib/file/y": "y",
		"lib/new/schema": "schema", "lib/new/sub/link": "->../schema", "spool/": "",
	})
	for name, number := range map[string]int{"lib/new": 103, "lib/new/schema": 103, "lib/new/sub/link": 103} {
		must(t, os.Lchown(filepath.Join(image, name), number, number))
	}
	must(t, unix.Chmod(filepath.Join(image, "lib/new"), 0o2750))
	content, err := os.Open(image)
	must(t, err)
	t.Cleanup(func() { content.Close() })
	return w, content
}

const varWant = `755 0:0 lib
644 0:0 lib/file
777 0:0 lib/link
2750 999:999 lib/new
644 999:999 lib/new/schema
755 0:0 lib/new/sub
777 999:999 lib/new/sub/link
755 0:0 lib/old
755 0:0 lib/old/deep
755 0:0 lib/old/deep/er
644 0:0 lib/old/deep/er/file
644 0:0 lib/old/mine
755 0:0 log
755 0:0 spool
`

func (w *world) listVar() string {
	out, err := exec.Command("sh", "-ec", "cd $0; find . -mindepth 1 -printf '%m %U:%G %P\n' | sort -k3", filepath.Join(w.volume, "var")).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// What the new image has in /var and the machine has not is there, with the owner of
// that name; what the machine has stays.
func TestVarDirs(t *testing.T) {
	w, content := varWorld(t)
	r, err := w.boot(v2, Options{Var: content})
	if err != nil || r.VarError != nil || r.VarDirs != 3 {
		t.Fatalf("%d directories, %v, %v; want 3", r.VarDirs, r.VarError, err)
	}
	if got := w.listVar(); got != varWant {
		t.Errorf("/var is\n%swant\n%s", got, varWant)
	}
	if got := entries(t, filepath.Join(w.volume, layout.EtcKept)); strings.Contains(fmt.Sprint(got), newDirTmp) {
		t.Errorf("left behind: %v", got)
	}
	// The machine removes one: it is back with the next image, not with the next boot.
	must(t, os.RemoveAll(filepath.Join(w.volume, "var/spool")))
	if r, err := w.boot(v2, Options{Var: content}); err != nil || !r.Done || strings.Contains(w.listVar(), "spool") {
		t.Errorf("the next boot: %+v, %v\n%s", r, err, w.listVar())
	}
}

// The power is cut before every write; the next boot makes good what is missing.
func TestVarDirsCutAtEveryWrite(t *testing.T) {
	for cut := 0; ; cut++ {
		w, content := varWorld(t)
		errCut := errors.New("no power")
		step := 0
		_, err := w.boot(v2, Options{Var: content, Step: func(string) error {
			if step++; step > cut {
				return errCut
			}
			return nil
		}})
		if err == nil {
			if cut < 8 {
				t.Errorf("a merge has %d steps", cut)
			}
			return
		}
		if !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		if _, err := w.boot(v2, Options{Var: content}); err != nil {
			t.Fatal(err)
		}
		if got := w.listVar(); got != varWant {
			t.Errorf("cut at step %d: /var is\n%swant\n%s", cut, got, varWant)
		}
	}
}

// A /var that cannot take a directory costs that, and no merge.
func TestVarDirsProblem(t *testing.T) {
	w, content := varWorld(t)
	for _, in := range []string{w.dir, w.volume} {
		put(t, in, map[string]string{"var/" + strings.Repeat("d/", maxDepth+2): ""})
	}
	r, err := w.boot(v2, Options{Var: content})
	if err != nil || r.VarError == nil {
		t.Fatalf("%+v, %v; want a problem and a merge", r, err)
	}
	if _, err := os.Stat(filepath.Join(w.volume, layout.EtcKept, v2, addedFile)); err != nil {
		t.Errorf("it would not come to an end later either: %v", err)
	}
	if got := w.list(v2); !strings.Contains(got, "passwd") {
		t.Errorf("/etc is not merged:\n%s", got)
	}
}

// A directory that takes too long, or for which there is no room, costs no merge: /etc is
// the image's by then, and the next boots go on, a few times.
func TestVarDirsAreTriedAgain(t *testing.T) {
	w, content := varWorld(t)
	errCut := errors.New("killed")
	for try := range maxVarTries + 2 {
		if try > 0 && try <= maxVarTries {
			must(t, os.MkdirAll(filepath.Join(w.volume, layout.EtcKept, newDirTmp), 0o755)) // as a kill leaves it
		}
		r, err := w.boot(v2, Options{Var: content, Step: func(name string) error {
			if name == "copy a directory of /var" {
				return errCut
			}
			return nil
		}})
		switch {
		case try < maxVarTries && !errors.Is(err, errCut):
			t.Errorf("try %d: %+v, %v", try, r, err)
		case try == maxVarTries && (err != nil || !errors.Is(r.VarError, errGivenUp) || !r.Done):
			t.Errorf("after the last try: %+v, %v", r, err)
		case try > maxVarTries && (err != nil || r.VarError != nil || !r.Done):
			t.Errorf("for ever: %+v, %v", r, err)
		}
		upper, err := os.Open(filepath.Join(w.volume, layout.Etc))
		must(t, err)
		owner, err := readOwner(upper)
		must(t, err)
		upper.Close()
		if owner.image != v2 {
			t.Errorf("try %d: /etc is that of %v", try, owner)
		}
		must(t, err)
		mark := filepath.Join(w.volume, layout.EtcPending(v2))
		if _, err := os.Stat(mark); (err == nil) != (try < maxVarTries) {
			t.Errorf("try %d: the mark: %v", try, err)
		}
		if _, err := os.Stat(filepath.Join(w.volume, layout.EtcKept, newDirTmp)); err == nil && try >= maxVarTries {
			t.Error("an unfinished copy is there for ever")
		}
	}
	// There is room by now, and the image comes back: it begins anew. Then it has added them.
	w.booted(v1)
	if r, err := w.boot(v2, Options{Var: content}); err != nil || r.VarError != nil || r.VarDirs != 3 {
		t.Errorf("given up before: %+v, %v", r, err)
	}
	if got := w.listVar(); got != varWant {
		t.Errorf("given up before: /var is\n%swant\n%s", got, varWant)
	}
	w.booted(v1)
	must(t, os.RemoveAll(filepath.Join(w.volume, "var/spool")))
	if r, err := w.boot(v2, Options{Var: content}); err != nil || r.VarDirs != 0 {
		t.Errorf("added before: %+v, %v", r, err)
	}
	w, content = varWorld(t)
	_, err := w.boot(v2, Options{Var: content, Step: func(name string) error {
		if name == "name a directory of /var" {
			return errCut
		}
		return nil
	}})
	if !errors.Is(err, errCut) {
		t.Error(err)
	}
	if r, err := w.boot(v2, Options{Var: content}); err != nil || r.VarError != nil || !r.Done || r.VarDirs != 3 {
		t.Errorf("the next boot: %+v, %v", r, err)
	}
	if got := w.listVar(); got != varWant {
		t.Errorf("/var is\n%swant\n%s", got, varWant)
	}
	if _, err := os.Stat(filepath.Join(w.volume, layout.EtcPending(v2))); err == nil {
		t.Error("the mark is there with nothing to do")
	}
}
