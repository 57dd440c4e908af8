// Package over tells what a layer does to the root that it lies over. Of a directory that
// both have, overlayfs takes owner and mode from the topmost; of anything else the topmost
// hides the other (Documentation/filesystems/overlayfs.rst of the kernel).
package over

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
)

// Entry is what stands at a name itself: no link is followed.
type Entry struct {
	Mode     fs.FileMode
	UID, GID int
	Link     string // target of a symbolic link
}

// Tree is a root or a layer. Names are clean and relative, "." for the top.
type Tree interface {
	// Entry returns fs.ErrNotExist where nothing is.
	Entry(name string) (Entry, error)
	// Children are the names in a directory, without its own.
	Children(dir string) ([]string, error)
}

// Clash is a place where a layer changes more than a file.
type Clash struct {
	Name        string
	Root, Layer Entry
}

// Compare lists the clashes of a layer at a directory and below it, a directory before what
// it holds. Only directories that both have are looked into. Errors are those of the trees.
func Compare(root, layer Tree, dir string) ([]Clash, error) {
	return compare(nil, root, layer, dir)
}

func compare(found []Clash, root, layer Tree, name string) ([]Clash, error) {
	at, err := root.Entry(name)
	if errors.Is(err, fs.ErrNotExist) {
		return found, nil
	}
	if err != nil {
		return nil, err
	}
	on, err := layer.Entry(name)
	if errors.Is(err, fs.ErrNotExist) {
		return found, nil
	}
	if err != nil {
		return nil, err
	}
	switch c := (Clash{name, at, on}); {
	case on.Mode&fs.ModeCharDevice != 0: // a whiteout, which nobody makes by mistake
		return found, nil
	case c.Hides():
		return append(found, c), nil
	case !on.Mode.IsDir():
		return found, nil
	case at.UID != on.UID || at.GID != on.GID || bits(at.Mode) != bits(on.Mode):
		found = append(found, c)
	}
	children, err := layer.Children(name)
	for _, child := range children {
		if err == nil {
			found, err = compare(found, root, layer, path.Join(name, child))
		}
	}
	return found, err
}

// Hides tells whether one of the two is a directory and the other is not.
func (c Clash) Hides() bool { return c.Root.Mode.IsDir() != c.Layer.Mode.IsDir() }

// Opens tells whether the layer lets others than root into a directory to write, who
// cannot in the root.
func (c Clash) Opens() bool {
	root, layer := c.Root.Mode.Perm(), c.Layer.Mode.Perm()
	switch {
	case c.Hides():
		return false
	case c.Layer.UID != 0 && c.Layer.UID != c.Root.UID:
		return true
	// Group root is root: the mode of all that is made under umask 002.
	case layer&0o020 != 0 && c.Layer.GID != 0 && (root&0o020 == 0 || c.Layer.GID != c.Root.GID):
		return true
	}
	// Where everybody writes, the sticky bit keeps the files of each.
	return layer&0o002 != 0 && (root&0o002 == 0 || c.Root.Mode&fs.ModeSticky != 0 && c.Layer.Mode&fs.ModeSticky == 0)
}

// Bad tells whether no machine should run with it.
func (c Clash) Bad() bool { return c.Hides() || c.Opens() }

// Path is the place, for people.
func (c Clash) Path() string { return path.Join("/", c.Name) }

// What says what the layer does, for people.
func (c Clash) What() string {
	if c.Hides() {
		return fmt.Sprintf("has %s over %s of the root, which is gone then, with all that is reached through it", c.Layer.Kind(), c.Root.Kind())
	}
	text := fmt.Sprintf("gives the root's directory of owner %s another owner or mode, %s", attributes(c.Root), attributes(c.Layer))
	if c.Opens() {
		text += ", and lets others than root write there"
	}
	return text
}

// Remedy says what to do about it.
func (c Clash) Remedy() string {
	switch {
	case !c.Hides():
		return fmt.Sprintf("chown %d:%d and chmod %04o it in the layer's tree (a folder's owners are all 0:0)", c.Root.UID, c.Root.GID, bits(c.Root.Mode))
	case c.Root.Mode.Type() == fs.ModeSymlink:
		to := c.Root.Link
		if !path.IsAbs(to) {
			to = path.Join(path.Dir(c.Path()), to)
		}
		return fmt.Sprintf("move what the layer has there below %s", path.Clean(to))
	case c.Root.Mode.IsDir():
		return "leave it out of the layer, or make a directory of it"
	}
	return "give the layer's directory another name"
}

// Kind says in words what it is.
func (e Entry) Kind() string {
	switch {
	case e.Mode.IsDir():
		return "a directory"
	case e.Mode.IsRegular():
		return "a file"
	case e.Mode.Type() == fs.ModeSymlink:
		return fmt.Sprintf("a link to %q", e.Link)
	}
	return "a special file"
}

func attributes(e Entry) string {
	return fmt.Sprintf("%d:%d, mode %04o", e.UID, e.GID, bits(e.Mode))
}

// bits are the permissions as chmod(1) has them.
func bits(m fs.FileMode) uint32 {
	b := uint32(m.Perm())
	for i, special := range []fs.FileMode{fs.ModeSticky, fs.ModeSetgid, fs.ModeSetuid} {
		if m&special != 0 {
			b |= 0o1000 << i
		}
	}
	return b
}
