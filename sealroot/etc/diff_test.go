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
