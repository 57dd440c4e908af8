package over

import (
	"errors"
	"io/fs"
	"path"
	"strings"
	"testing"
)

// tree is one in memory, by names.
type tree map[string]Entry

func (t tree) Entry(name string) (Entry, error) {
	if e, ok := t[name]; ok {
		return e, nil
	}
	return Entry{}, fs.ErrNotExist
}

func (t tree) Children(dir string) (names []string, err error) {
	for name := range t {
		if name != "." && path.Dir(name) == dir {
			names = append(names, path.Base(name))
		}
	}
	return names, nil
}

func TestCompare(t *testing.T) {
	dir := func(mode fs.FileMode, uid, gid int) Entry {
		return Entry{Mode: fs.ModeDir | mode, UID: uid, GID: gid}
	}
	plain, file, link := dir(0o755, 0, 0), Entry{Mode: 0o644}, Entry{Mode: fs.ModeSymlink | 0o777, Link: "usr/lib"}
	for _, tt := range []struct {
		name        string
		root, layer Entry
		bad         bool
		says        string // of what and remedy; "" for no clash
	}{
		{"same", plain, plain, false, ""},
		{"user's", plain, dir(0o755, 1000, 0), true, "0:0, mode 0755 another owner or mode, 1000:0, mode 0755, and lets others than root write there; chown 0:0 and chmod 0755"},
		{"user's_in_both", dir(0o755, 1000, 0), dir(0o750, 1000, 0), false, "mode 0750; chown 1000:0"},
		{"root's_for_a_user's", dir(0o755, 1000, 0), plain, false, "0:0, mode 0755; "},
		{"another_group", plain, dir(0o755, 0, 50), false, "0:50"},
		{"for_a_group", dir(0o2775, 0, 50), plain, false, "0:50, mode 0775"}, // fs.FileMode has the bit elsewhere
		{"for_another_group", dir(0o775, 0, 50), dir(0o775, 0, 1000), true, "0:1000"},
		{"of_umask_002", plain, dir(0o775, 0, 0), false, "mode 0775"},
		{"for_the_group_too", dir(0o755, 0, 50), dir(0o775, 0, 50), true, "mode 0775, and lets"},
		{"for_all_too", plain, dir(0o757, 0, 0), true, "mode 0757, and lets"},
		{"shut", plain, dir(0o700, 0, 0), false, "mode 0700; "},
		{"without_sticky", dir(fs.ModeSticky|0o777, 0, 0), dir(0o777, 0, 0), true, "mode 1777 another owner or mode, 0:0, mode 0777, and lets"},
		{"with_sticky_and_setgid", dir(fs.ModeSticky|0o777, 0, 0), dir(fs.ModeSetgid|fs.ModeSticky|0o777, 0, 0), false, "mode 3777; "},
		{"over_a_link", link, plain, true, `has a directory over a link to "usr/lib" of the root, which is gone then, with all that is reached through it; move what the layer has there below /a/usr/lib`},
		{"over_a_file", file, plain, true, "over a file of the root"},
		{"link_over_a_directory", plain, link, true, `has a link to "usr/lib" over a directory`},
		{"file_over_a_directory", plain, file, true, "has a file over a directory"},
		{"fifo_over_a_directory", plain, Entry{Mode: fs.ModeNamedPipe}, true, "a special file over"},
		{"file_over_a_link", link, file, false, ""},
		{"whiteout", plain, Entry{Mode: fs.ModeDevice | fs.ModeCharDevice}, false, ""},
		{"only_the_layer's", Entry{Mode: fs.ModeIrregular}, plain, false, ""},
	} {
		root := tree{".": plain, "a": plain, "a/b": tt.root, "a/b/below": plain, "a/only": dir(0o700, 0, 0)}
		layer := tree{".": plain, "a": plain, "a/b": tt.layer, "a/b/new": dir(0o777, 1000, 1000), "c": dir(0o777, 1000, 1000), "c/d": dir(0o777, 1000, 1000)}
		if tt.root.Mode == fs.ModeIrregular {
			delete(root, "a/b")
		}
		found, err := Compare(root, layer, ".")
		if tt.says == "" {
			if err != nil || len(found) > 0 {
				t.Errorf("%s: %+v, %v, want nothing", tt.name, found, err)
			}
			continue
		}
		if err != nil || len(found) != 1 || found[0].Path() != "/a/b" || found[0].Bad() != tt.bad || !strings.Contains(found[0].What()+"; "+found[0].Remedy(), tt.says) {
			t.Errorf("%s: %+v, %v, want it bad %v, %q", tt.name, found, err, tt.bad, tt.says)
			for _, c := range found {
				t.Log(c.What(), "; ", c.Remedy())
			}
		}
	}
}

// The directory that it begins at counts too.
func TestCompareFromATop(t *testing.T) {
	user := Entry{Mode: fs.ModeDir | 0o755, UID: 7}
	root := tree{".": {Mode: fs.ModeDir | 0o755}, "usr": {Mode: fs.ModeDir | 0o755}, "usr/lib": {Mode: fs.ModeDir | 0o755}}
	layer := tree{".": user, "usr": user, "usr/lib": user}
	for top, want := range map[string]int{".": 3, "usr": 2, "usr/lib": 1, "etc": 0} {
		if found, err := Compare(root, layer, top); err != nil || len(found) != want {
			t.Errorf("%s: %+v, %v; want %d", top, found, err, want)
		}
	}
	if _, err := Compare(root, broken{layer}, "."); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a layer that cannot be read: %v", err)
	}
}

type broken struct{ tree }

func (broken) Children(string) ([]string, error) { return nil, fs.ErrPermission }
