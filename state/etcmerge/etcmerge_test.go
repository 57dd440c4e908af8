package etcmerge

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"
)

// treeOf reads "dir/ file=content:modeflags link>target" into a tree; directories that
// lead to a file are added.
func treeOf(text string) Tree {
	t := Tree{}
	put := func(name string, e Entry) {
		t[name] = e
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, ok := t[dir]; !ok {
				t[dir] = Entry{Kind: Dir, Mode: 0o755}
			}
		}
	}
	for word := range strings.FieldsSeq(text) {
		e := Entry{Kind: Regular, Mode: 0o644}
		name, content, _ := strings.Cut(word, "=")
		switch link, to, isLink := strings.Cut(word, ">"); {
		case strings.HasSuffix(word, "/"):
			name, e.Kind, e.Mode = strings.TrimSuffix(word, "/"), Dir, 0o755
		case isLink:
			name, content, e.Kind = link, to, Symlink
		}
		content, mode, ok := strings.Cut(content, ":")
		if ok {
			fmt.Sscanf(mode, "%o", &e.Mode)
			e.Flags = strings.TrimLeft(mode, "01234567")
		}
		copy(e.Sum[:], content)
		if slices.Contains(AccountFiles(), name) {
			e.Text = []byte(strings.ReplaceAll(content, ",", ":") + "\n")
		}
		put(name, e)
	}
	return t
}

// apply is the tree that a plan makes.
func apply(plan Plan, image, machine Tree) Tree {
	t := Tree{}
	for _, s := range plan {
		side := map[Source]Tree{FromImage: image, FromMachine: machine, FromBoth: machine}
		if s.Content == Nowhere {
			continue
		}
		e, meta := side[s.Content][s.Path], side[s.Meta][s.Path]
		e.Mode, e.UID, e.GID, e.Flags = meta.Mode, meta.UID, meta.GID, meta.Flags
		if s.Content == FromBoth {
			e.Text, e.Sum = s.Text, [32]byte{}
			copy(e.Sum[:], strings.ReplaceAll(strings.TrimSuffix(string(s.Text), "\n"), ":", ","))
		}
		t[s.Path] = e
	}
	return t
}

func (t Tree) String() string {
	var words []string
	for name, e := range t {
		words = append(words, fmt.Sprintf("%s %d %s %o%s\n", name, e.Kind, strings.TrimRight(string(e.Sum[:]), "\x00"), e.Mode, e.Flags))
	}
	slices.Sort(words)
	return strings.Join(words, "")
}

func TestMerge3(t *testing.T) {
	for _, tt := range []struct {
		name                       string
		base, image, machine, want string
		conflicts                  string // "path: beginning of the text | …"
	}{
		{"nothing", "a=1", "a=1", "a=1", "a=1", ""},
		{"machine_changed", "a=1", "a=1", "a=2", "a=2", ""},
		{"image_changed", "a=1", "a=2", "a=1", "a=2", ""},
		{"both_changed", "a=1", "a=2", "a=3", "a=3", "a: both changed it"},
		{"both_changed_alike", "a=1", "a=2", "a=2", "a=2", ""},
		{"machine_added", "a=1", "a=1", "a=1 d/b=1", "a=1 d/b=1", ""},
		{"image_added", "a=1", "a=1 d/b=1", "a=1", "a=1 d/b=1", ""},
		{"both_added", "", "a=1", "a=2", "a=2", "a: both added it"},
		{"machine_removed", "a=1 d/b=1", "a=1 d/b=1", "a=1", "a=1", ""},
		{"image_removed", "a=1 d/b=1", "a=1", "a=1 d/b=1", "a=1", ""},
		{"both_removed", "a=1 b=1", "a=1", "a=1", "a=1", ""},
		{"machine_removed_what_the_image_changed", "a=1", "a=2", "", "", "a: the machine removed what the image changed"},
		{"image_removed_what_the_machine_changed", "a=1", "", "a=2", "a=2", "a: the image removed what the machine changed"},
		{"kinds", "a=1", "a=1", "a>/dev/null", "a>/dev/null", ""},
		{"kinds_of_both", "a=1", "a>x", "a/b=1", "a/b=1", "a: both changed it"},

		{"mode_and_content", "a=1:640", "a=2:640", "a=1:600", "a=2:600", ""},
		{"content_and_mode", "a=1:640", "a=1:600", "a=2:640", "a=2:600", ""},
		{"two_modes", "a=1:640", "a=1:600", "a=1:644", "a=1:644", "a: both changed its mode"},
		{"mode_of_what_the_image_removed", "a=1:640", "", "a=1:600", "", "a: the image removed it, and it is gone"},
		{"new_kind_has_its_own_mode", "a=1:640", "a>x", "a=1:640", "a>x", ""},

		{"file_in_a_directory_that_the_image_removed", "d/a=1 d/b=1", "", "d/a=2 d/b=1", "d/a=2", "d: the image has no such directory any more | d/a: the image removed what"},
		{"new_file_in_a_directory_that_the_image_made_a_link", "d/a=1", "d>e e/a=1", "d/a=1 d/b=1", "d/b=1 e/a=1", "d: the image has no such directory"},
		{"new_file_in_a_directory_that_the_machine_removed", "d/a=1", "d/a=1 d/b=1", "", "d/b=1", "d: the machine removed it; it is there again for d/b"},
		{"new_file_below_what_the_machine_made_a_link", "d/a=1", "d/a=1 d/b=1 d/e/c=1", "d>/var/d", "d>/var/d", "d/b: left out | d/e: left out | d/e/c: left out"},
		{"directory_that_both_made_something_else", "d/a=1", "d=1", "d>x", "d>x", "d: both changed it"},

		{"accounts", "passwd=r,0,0", "passwd=r,0,0:600 b=1", "passwd=r,0,0 a=1", "passwd=r,0,0:600 a=1 b=1", ""},
		{"accounts_of_the_image", "passwd=r,p,0,0,x", "passwd=r,p,0,0,y", "passwd=r,p,0,0,x", "passwd=r,p,0,0,y", ""},
		{"accounts_with_another_number", "passwd=r,p,5,5,x", "passwd=r,p,6,5,y", "passwd=r,p,5,5,x", "passwd=r,p,5,5,y", "passwd: r: the image has number 6"},
		{"accounts_of_both", "passwd=r,p,0,0,x", "passwd=r,p,0,0,y", "passwd=r,q,0,0,x", "passwd=r,q,0,0,y", ""},
		{"accounts_in_conflict", "passwd=r,p,0,0,x", "passwd=r,p,0,0,y", "passwd=r,p,0,0,z", "passwd=r,p,0,0,z", "passwd: r: both changed field 5"},
		{"accounts_that_are_a_link", "passwd=r,p,0,0", "passwd=r,p,0,1", "passwd>x", "passwd>x", "passwd: both changed it"},
		{"accounts_with_flags", "passwd=r,p,0,0,x", "passwd=r,p,0,0,y", "passwd=r,p,0,0,x:644i", "passwd=r,p,0,0,y:644i", ""},
		{"flags", "a=1", "a=1", "a=1:644ai", "a=1:644ai", ""},
		{"flags_that_are_gone", "a=1:644i", "a=1:644i", "a=1", "a=1", ""},
		{"flags_of_what_the_image_changed", "a=1", "a=2", "a=1:644i", "a=1:644i", "a: both changed it"},
		{"flags_of_what_the_image_removed", "a=1", "", "a=1:644i", "a=1:644i", "a: the image removed what the machine changed"},
		{"flags_of_the_image", "a=1", "a=1:644i", "a=2", "a=2:644i", "a: both changed it"}, // one that comes back
		{"flags_and_mode", "a=1", "a=1:600", "a=1:644i", "a=1:644i", "a: both changed its mode, owner or flags"},
		{"accounts_that_the_machine_removed", "passwd=r,p,0,0", "passwd=r,p,0,0 a=1", "", "a=1", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			base, image, machine := treeOf(tt.base), treeOf(tt.image), treeOf(tt.machine)
			plan, conflicts := Merge3(base, image, machine)
			if got, want := apply(plan, image, machine), treeOf(tt.want); got.String() != want.String() {
				t.Errorf("got\n%vwant\n%v", got, want)
			}
			var want []string
			if tt.conflicts != "" {
				want = strings.Split(tt.conflicts, " | ")
			}
			if !slices.EqualFunc(conflicts, want, func(c Conflict, w string) bool { return strings.HasPrefix(c.Path+": "+c.What, w) }) {
				t.Errorf("conflicts %v, want %q", conflicts, want)
			}
		})
	}
}

// checkMerge holds a merge to what must be true of every one.
func checkMerge(t *testing.T, base, image, machine Tree) {
	t.Helper()
	plan, conflicts := Merge3(base, image, machine)
	got := apply(plan, image, machine)
	said := map[string]bool{}
	for _, c := range conflicts {
		said[c.Path] = true
	}
	for i, s := range plan {
		if i > 0 && plan[i-1].Path >= s.Path {
			t.Errorf("steps %q, %q", plan[i-1].Path, s.Path)
		}
		if dir := path.Dir(s.Path); s.Content != Nowhere && dir != "." && got[dir].Kind != Dir {
			t.Errorf("%q has no directory", s.Path)
		}
		if e := got[s.Path]; s.Content != Nowhere && (e.Kind == Missing || s.Meta == Nowhere) {
			t.Errorf("%+v takes what is not there", s)
		}
	}
	for name, mine := range machine {
		account := slices.Contains(AccountFiles(), name)
		switch here := got[name]; {
		case !mine.sameContent(base[name]) && (here.Kind != mine.Kind || here.Sum != mine.Sum) && !account: // flags may be the image's
			t.Errorf("%q is not the machine's: %+v", name, here)
		case mine.sameContent(base[name]) && !here.sameContent(image[name]) && !said[name] && !account:
			t.Errorf("%q is not the image's: %+v, and nobody was told", name, here)
		}
	}
	for name, theirs := range image {
		if _, ok := base[name]; !ok && machine[name].Kind == Missing && !got[name].same(theirs) && !said[name] {
			t.Errorf("%q of the image is lost, and nobody was told", name)
		}
	}
	// Where one side changed nothing the result is the other, but for numbers.
	for _, same := range []struct{ base, image, machine, want Tree }{{base, image, base, image}, {base, base, machine, machine}, {base, image, image, image}} {
		if renumbers(same.machine.Accounts(), same.image.Accounts()) {
			continue
		}
		plan, conflicts := Merge3(same.base, same.image, same.machine)
		if got := apply(plan, same.image, same.machine); got.String() != same.want.String() || len(conflicts) > 0 {
			t.Errorf("got\n%vwant\n%v\nconflicts %v", got, same.want, conflicts)
		}
	}
}

// fuzzTree makes a tree of few names out of bytes.
func fuzzTree(data []byte) Tree {
	names := []string{"a", "a/b", "a/b/c", "a-b", "d", "d/e", "passwd", "group"}
	var words []string
	isDir := map[string]bool{} // each name is a directory, or something else
	for _, c := range data[:min(len(data), 32)] {
		name := names[int(c)%len(names)]
		kind := []string{"=1", "=2:600", ">x", "=1:600i", "=u,x,5,5", "=u,y,6,5", "=v,x,5,5", "/"}[int(c)/len(names)%8]
		_, free := isDir[name]
		free = !free
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			d, known := isDir[dir]
			free = free && (d || !known)
		}
		if !free {
			continue
		}
		isDir[name] = kind == "/"
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			isDir[dir] = true
		}
		words = append(words, name+kind)
	}
	return treeOf(strings.Join(words, " "))
}

func FuzzMerge3(f *testing.F) {
	f.Add([]byte{0, 4}, []byte{1, 5}, []byte{2, 9})
	f.Add([]byte{38, 7}, []byte{46}, []byte{54, 0, 17})
	f.Fuzz(func(t *testing.T, base, image, machine []byte) {
		checkMerge(t, fuzzTree(base), fuzzTree(image), fuzzTree(machine))
	})
}
