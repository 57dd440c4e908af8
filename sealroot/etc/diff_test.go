package etc

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/state/layout"
)

// What differs is what diff(1) finds, and a conflict names both versions.
func TestCompare(t *testing.T) {
	w := two(t)
	w.booted(v1)
	w.shell(v1, edit)
	w.booted(v2)
	w.shell(v2, "rm dir/three; mkdir -p sub/sub; echo z >sub/sub/z; chmod 600 b")
	var d Diff
	var theirs []string
	w.inEtc(v2, func(etc string) {
		var err error
		d, err = Compare(w.volume)
		must(t, err)
		out, _ := exec.Command("diff", "-rq", "--no-dereference", w.image(v2), etc).Output()
		theirs = judged(string(out), w.image(v2), etc)
	})
	// diff(1) compares content only, and stops at what one side has alone.
	var ours []string
	for word, list := range map[string][]string{"+": d.Added, "-": d.Removed, "!": d.Changed} {
		for _, name := range list {
			if slices.Contains(d.Added, filepath.Dir(name)) {
				continue
			}
			if slices.Contains([]string{"b", "dir", "dir/two"}, name) { // modes and owners
				continue
			}
			ours = append(ours, word+name)
		}
	}
	slices.Sort(ours)
	if !slices.Equal(ours, theirs) {
		t.Errorf("Compare: %q, diff(1): %q", ours, theirs)
	}
	for _, name := range []string{"b", "dir", "dir/two"} {
		if !slices.Contains(d.Changed, name) {
			t.Errorf("%s is not among the changed: %q", name, d.Changed)
		}
	}
	if !slices.Contains(d.Added, "sub/sub/z") || !slices.Contains(d.Removed, "dir/three") {
		t.Errorf("added %q, removed %q", d.Added, d.Removed)
	}
	if d.Image != v2 || d.Before != v1 || len(d.Conflicts) != 2 {
		t.Fatalf("%+v, want two conflicts between %s and %s", d, v1, v2)
	}
	for path, want := range map[string]string{d.Conflicts[0].ImageHas: "c2\n", d.Conflicts[0].OldImageHas: "c1\n"} {
		if got, err := os.ReadFile(path); string(got) != want {
			t.Errorf("%s: %q, %v, want %q", path, got, err, want)
		}
	}
	if kept := filepath.Join(w.volume, layout.EtcKept); d.Conflicts[1].ImageHas != "" || !strings.HasPrefix(d.Conflicts[1].OldImageHas, kept) {
		t.Errorf("%+v: only the old image has this directory", d.Conflicts[1])
	}
}

// judged are the lines of diff -rq, in our words.
func judged(out, image, etc string) []string {
	var list []string
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if only, ok := strings.CutPrefix(line, "Only in "); ok {
			dir, name, _ := strings.Cut(only, ": ")
			word := "+"
			sub, ok := strings.CutPrefix(dir, etc)
			if !ok {
				sub, word = strings.TrimPrefix(dir, image), "-"
			}
			list = append(list, word+strings.TrimPrefix(sub+"/"+name, "/"))
			continue
		}
		_, rest, _ := strings.Cut(line, image+"/")
		name, _, _ := strings.Cut(rest, " ")
		list = append(list, "!"+name)
	}
	slices.Sort(list)
	return list
}

// A conflict is listed until somebody has looked at the file: through updates that do not
// touch it, back and forth, and through a trial that failed.
func TestConflictsAreCarriedOver(t *testing.T) {
	v4 := strings.Repeat("4", 64)
	paths := func(w *world) string {
		d, err := Compare(w.volume)
		must(t, err)
		var list []string
		for _, c := range d.Conflicts {
			list = append(list, c.Path)
		}
		return strings.Join(list, " ")
	}
	const root = "root:x:0:0::/:/bin/sh\n"
	w := newWorld(t)
	w.files(v1, map[string]string{"a": "a1\n", "b": "b1\n", "gone": "g1\n", "same": "s1\n", "passwd": root})
	w.files(v2, map[string]string{"a": "a2\n", "b": "b2\n", "gone": "g2\n", "same": "s2\n", "passwd": root + "new:x:103:103::/:\n"})
	for _, id := range []string{v3, v4} {
		w.files(id, map[string]string{"a": "a2\n", "b": "b2\n", "gone": "g2\n", "same": "mine\n", "passwd": root + "new:x:103:103::/:\n"})
	}
	w.booted(v1)
	w.shell(v1, "for f in a b same; do echo mine >$f; done; rm gone; echo collector:x:103:103::/: >>passwd")
	r := w.booted(v2)
	const all = "a b gone passwd same"
	if got := paths(w); got != all || len(r.Conflicts) != 5 {
		t.Fatalf("conflicts %q, %q, want %q", got, r.Conflicts, all)
	}
	// The image before has none: back there nothing of it is hidden.
	w.booted(v1)
	if got := paths(w); got != "" {
		t.Errorf("back in the image before: %q", got)
	}
	w.booted(v2)
	if got := paths(w); got != all {
		t.Errorf("once more in that with the conflicts: %q", got)
	}
	w.trial(v3)
	if got, want := paths(w), "a b gone passwd"; got != want { // of the other the image has the same now
		t.Errorf("an image that changes none of them: %q, want %q", got, want)
	}
	w.booted(v2)
	if got := paths(w); got != all {
		t.Errorf("after the trial: %q", got)
	}
	w.files(v2x, map[string]string{"a": "a2\n", "b": "b2\n", "gone": "g2\n", "same": "s2\n", "passwd": root + "new:x:103:103::/:\n"})
	w.booted(v2x)
	if got := paths(w); got != all {
		t.Errorf("with another list of layers: %q", got)
	}
	w.booted(v3)
	w.shell(v3, "echo looked >a; cp -p b x; mv x b; echo back >gone; useradd() { echo y:x:1000:1000::/: >>passwd; }; useradd")
	w.booted(v4)
	if got, want := paths(w), "b"; got != want {
		t.Errorf("once the machine has looked: %q, want %q", got, want)
	}
}
