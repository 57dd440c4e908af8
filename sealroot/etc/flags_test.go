package etc

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state/layout"
)

// flags are what lsattr(1) shows of /etc, by name: i, a, or both.
func (w *world) flags(id string) map[string]string {
	w.t.Helper()
	found := map[string]string{}
	w.inEtc(id, func(etc string) {
		cmd := exec.Command("sh", "-ec", "find . -mindepth 1 ! -type l -exec lsattr -d {} +")
		cmd.Dir = etc
		out, err := cmd.CombinedOutput()
		if err != nil {
			w.t.Fatalf("lsattr: %v\n%s", err, out)
		}
		for line := range strings.Lines(string(out)) {
			flags, name, _ := strings.Cut(strings.TrimSpace(line), " ./")
			flags = strings.Map(func(r rune) rune {
				if r == 'a' || r == 'i' {
					return r
				}
				return -1
			}, flags)
			if flags != "" {
				found[name] = flags
			}
		}
	})
	return found
}

func (w *world) hasFlags(id string, want map[string]string) {
	w.t.Helper()
	if got := w.flags(id); !maps.Equal(got, want) {
		w.t.Errorf("lsattr shows %v, want %v", got, want)
	}
}

// alike is a world with all on one file system, for chattr(1) sets what it read before, in
// the image, and no other one may take that.
func alike(t *testing.T) *world {
	w := newWorld(t)
	must(t, unix.Mount("tmpfs", w.dir, "tmpfs", 0, ""))
	t.Cleanup(func() { unix.Unmount(w.dir, unix.MNT_DETACH) })
	must(t, os.Mkdir(w.volume, 0o755))
	w.two()
	return w
}

// What somebody made immutable or append-only is that under the next image too, and when
// the one before is back, with what was changed of it since. It is a change, whatever the
// file holds.
func TestFlags(t *testing.T) {
	w := alike(t)
	w.booted(v1)
	w.shell(v1, `echo mine >mine; chattr +i mine; chattr +i a b touched passwd shadow; echo added >>c; chattr +a c; chattr +ai dir
echo human:x:1000: >>group; chattr +i group`)
	want := map[string]string{"mine": "i", "a": "i", "b": "i", "touched": "i", "passwd": "i", "shadow": "i", "c": "a", "dir": "ia", "group": "i"}
	w.hasFlags(v1, want)
	changed := "a b c dir group passwd shadow touched"
	if d, err := Compare(w.volume); err != nil || strings.Join(d.Changed, " ") != changed || strings.Join(d.Added, " ") != "mine" {
		t.Errorf("diff: %+v, %v; want changed %s", d, err, changed)
	}
	r := w.booted(v2)
	w.hasFlags(v2, want)
	w.has(v2, map[string]string{
		"a": "a1\n", "touched": "same\n", "mine": "mine\n", "c": "c1\nadded\n", "dir/three": "3\n",
		"b":      "b1\n", // what nobody was to change
		"passwd": "root:x:0:0::/root:/bin/sh\ndaemon2:x:997:997::/:/bin/false\n",
		"group":  "root:x:0:\nhuman:x:1000:\ndaemon2:x:997:\n",
	})
	conflicts := []string{}
	for _, c := range r.Conflicts {
		conflicts = append(conflicts, c.Path)
	}
	if !slices.Equal(conflicts, []string{"b", "c"}) {
		t.Errorf("conflicts about %v, want b and c", conflicts)
	}
	w.shell(v2, "chattr -i a mine; chattr +a mine; chattr -i link 2>/dev/null || :; chattr +i only-v2")
	if d, err := Compare(w.volume); err != nil || slices.Contains(d.Changed, "a") || !slices.Contains(d.Changed, "only-v2") {
		t.Errorf("diff: %+v, %v; want only-v2 and not a", d, err)
	}
	delete(want, "a")
	want["mine"] = "a"
	w.booted(v1)
	kept := maps.Clone(want)
	kept["only-v2"] = "i"
	w.hasFlags(v1, kept)
	// A trial that fails changes nothing; one that is committed does.
	w.trial(v2)
	w.shell(v2, "chattr -i touched; chattr +i dir/one")
	w.booted(v1)
	w.hasFlags(v1, kept)
	w.trial(v2)
	w.shell(v2, "chattr -i touched; chattr +i dir/one; chattr -i shadow")
	must(t, Committed(w.volume, v2))
	w.booted(v1)
	delete(kept, "touched")
	delete(kept, "shadow")
	kept["dir/one"] = "i"
	w.hasFlags(v1, kept)
}

// A conflict about a file whose flags were changed since was looked at.
func TestFlagsEndAConflict(t *testing.T) {
	w := alike(t)
	w.files(v3, map[string]string{"b": "b2\n", "c": "c2\n"})
	w.booted(v1)
	w.shell(v1, "echo mine >b; echo mine >c; chattr +i b c")
	if r := w.booted(v2); len(r.Conflicts) != 2 {
		t.Errorf("%+v, want conflicts about b and c", r)
	}
	w.shell(v2, "chattr -i b")
	if r := w.booted(v3); len(r.Conflicts) != 1 || r.Conflicts[0].Path != "c" {
		t.Errorf("%+v, want the conflict about c alone", r)
	}
	w.hasFlags(v3, map[string]string{"c": "i"})
}

// What the kernel does not take for flags is none, and is in no later layer; neither is what
// an image has by the name of the attribute.
func TestFlagsThatAreNone(t *testing.T) {
	w := alike(t)
	set := func(path, value string) {
		t.Helper()
		must(t, unix.Setxattr(path, flagsAttribute, []byte(value), 0))
	}
	for _, id := range []string{v1, v2} {
		set(filepath.Join(w.image(id), "dir/two"), "i")
		set(filepath.Join(w.image(id), "touched"), "a")
	}
	w.booted(v1)
	w.shell(v1, "touch a b removed; echo mine >mine; echo changed >touched")
	for name, value := range map[string]string{"a": "x", "b": "ix", "removed": strings.Repeat("i", maxFlags+1), "mine": "i\x00"} {
		set(filepath.Join(w.volume, layout.Etc, name), value)
	}
	w.hasFlags(v1, map[string]string{})
	if r := w.booted(v2); len(r.Conflicts) != 0 || r.Files != 2 {
		t.Errorf("%+v, want mine and touched", r)
	}
	w.hasFlags(v2, map[string]string{})
	must(t, filepath.WalkDir(filepath.Join(w.volume, layout.Etc), func(path string, _ os.DirEntry, err error) error {
		if value := make([]byte, 64); err == nil {
			if n, err := unix.Lgetxattr(path, flagsAttribute, value); err == nil {
				t.Errorf("%s has %q", path, value[:n])
			}
		}
		return err
	}))
}

func TestParseFlags(t *testing.T) {
	for value, want := range map[string]string{
		"": "", "a": "a", "i": "i", "ai": "ai", "ia": "ai", "iia": "ai", "ix": "", "xi": "", "I": "", "i\x00": "", " i": "",
		strings.Repeat("a", maxFlags): "a", strings.Repeat("a", maxFlags+1): "",
	} {
		if got := parseFlags([]byte(value)); got != want {
			t.Errorf("%q: %q, want %q", value, got, want)
		}
	}
}
