package rootcheck

import (
	"errors"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"sealroot/mkinitramfs/layer/over"
)

// File is one file of a root.
type File struct {
	Mode fs.FileMode
	UID  int
	GID  int
	Size int64  // bytes
	Link string // target of a symbolic link
	Text []byte // content, of the few files that rules read
	same bool   // another name of a file that is counted already
}

// Tree is a root file system without its content: names, kinds, modes, owners,
// links. Names are clean, relative to the root and slash-separated.
type Tree struct {
	files map[string]File
	order []string  // all names, sorted
	met   []Finding // what was wrong while it was read
	count int       // entries
}

// complete makes a tree ready for questions, after its last file.
func (t *Tree) complete() *Tree {
	t.order = slices.Sorted(maps.Keys(t.files))
	return t
}

// NewTree makes a tree of files; directories that lead to them are added.
func NewTree(files map[string]File) *Tree {
	t := &Tree{files: map[string]File{}}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		t.put(name, files[name])
	}
	return t.complete()
}

// put adds a file and the directories that lead to it.
func (t *Tree) put(name string, f File) {
	t.files[name] = f
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if _, ok := t.files[dir]; ok {
			return
		}
		t.files[dir] = File{Mode: fs.ModeDir | 0o755}
	}
}

// names lists the files at and below a directory, sorted.
func (t *Tree) names(below string) []string {
	var list []string
	for _, name := range t.order {
		if name == below || strings.HasPrefix(name, below+"/") {
			list = append(list, name)
		}
	}
	return list
}

// glob lists the files whose names match one pattern of path.Match, sorted.
func (t *Tree) glob(pattern string) []string {
	var list []string
	for _, name := range t.order {
		if ok, err := path.Match(pattern, name); ok && err == nil {
			list = append(list, name)
		}
	}
	return list
}

// maxLinks is how many symbolic links the kernel follows (path_resolution(7)).
const maxLinks = 40

var errLinks = errors.New("too many symbolic links")

// resolve follows symbolic links as the kernel does once the tree is the root
// directory: an absolute target begins at the root, ".." at the root stays there.
// at is the place where the way ended, also with an error: fs.ErrNotExist, or
// errLinks.
func (t *Tree) resolve(name string) (at string, err error) {
	rest := strings.Split(name, "/")
	links := 0
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = strings.TrimPrefix(path.Dir("/"+at), "/")
			continue
		}
		at = path.Join(at, part)
		f, ok := t.files[at]
		if !ok {
			return at, fs.ErrNotExist
		}
		if f.Mode.Type() == fs.ModeSymlink {
			if links++; links > maxLinks {
				return at, errLinks
			}
			rest = append(strings.Split(f.Link, "/"), rest...)
			if at = strings.TrimPrefix(path.Dir("/"+at), "/"); strings.HasPrefix(f.Link, "/") {
				at = ""
			}
		}
	}
	return at, nil
}

// file is the file that a name leads to.
func (t *Tree) file(name string) (at string, f File, err error) {
	if at, err = t.resolve(name); err != nil {
		return at, File{}, err
	}
	return at, t.files[at], nil
}

func (t *Tree) has(name string) bool { _, err := t.resolve(name); return err == nil }

// isDir tells whether name is a directory, and no link to one.
func (t *Tree) isDir(name string) bool { return t.files[name].Mode.IsDir() }

// Entry and Children make it an over.Tree. What the tree does not say of its top is as the
// builder makes it.
func (t *Tree) Entry(name string) (over.Entry, error) {
	f, ok := t.files[name]
	switch {
	case ok:
	case name == ".":
		f.Mode = fs.ModeDir | 0o755
	default:
		return over.Entry{}, fs.ErrNotExist
	}
	return f.entry(), nil
}

func (f File) entry() over.Entry {
	return over.Entry{Mode: f.Mode, UID: f.UID, GID: f.GID, Link: f.Link}
}

func (t *Tree) Children(dir string) (names []string, err error) {
	prefix := dir + "/"
	if dir == "." {
		prefix = ""
	}
	for i, _ := slices.BinarySearch(t.order, prefix); i < len(t.order); i++ {
		name, below := strings.CutPrefix(t.order[i], prefix)
		if !below {
			break
		}
		if name != "." && !strings.Contains(name, "/") {
			names = append(names, name)
		}
	}
	return names, nil
}

// kind says in words what stands at a name itself.
func (t *Tree) kind(name string) string {
	f, ok := t.files[name]
	if !ok {
		return "missing"
	}
	return f.entry().Kind()
}

// asUsr is the root that PID 1 makes around the /usr of this one, with what the
// builder puts into the factory (root.source usr-verity).
func (t *Tree) asUsr() *Tree {
	u := &Tree{files: map[string]File{}, met: t.met, count: t.count}
	for name, f := range t.files {
		switch top, _, _ := strings.Cut(name, "/"); top {
		case "usr", "etc", "home", "var":
			u.files[name] = f
		}
	}
	for _, dir := range strings.Fields("boot dev efi etc home media mnt opt proc root run srv state sys tmp var") {
		if _, ok := u.files[dir]; !ok {
			u.files[dir] = File{Mode: fs.ModeDir | 0o755}
		}
	}
	for _, link := range strings.Fields("bin lib lib32 lib64 libx32 sbin") {
		if _, ok := u.files["usr/"+link]; ok {
			u.files[link] = File{Mode: fs.ModeSymlink | 0o777, Link: "usr/" + link}
		}
	}
	return u.complete()
}
