package rootcheck

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	// maxEntries bounds a tree; a large desktop has half a million.
	maxEntries = 4 << 20
	// maxText bounds a file that rules read, maxIndex that of modules; longer ones are cut.
	maxText  = 64 << 10
	maxIndex = 16 << 20
)

// ErrTooLarge means that a root has more files than a tree holds.
var ErrTooLarge = errors.New("too many files")

const archiveRule = "archive"

// textLimit is how many bytes rules read of a file, 0 for most.
func textLimit(name string) int64 {
	switch name {
	case "etc/fstab", "etc/machine-id", "etc/os-release", "etc/resolv.conf", "usr/lib/os-release",
		"etc/iscsi/initiatorname.iscsi", "var/lib/dbus/machine-id":
		return maxText
	}
	dir, base := path.Split(name)
	if (dir == "usr/lib/tmpfiles.d/" || dir == "etc/tmpfiles.d/") && strings.HasSuffix(base, ".conf") {
		return maxText
	}
	if isIndex(name) {
		return maxIndex
	}
	return 0
}

// note adds a finding about the way the root is packed.
func (t *Tree) note(s Severity, name, remedy, format string, args ...any) {
	t.met = append(t.met, finding(s, archiveRule, name, remedy, format, args...))
}

// ReadTar reads a tree from a tar stream. rename gives the name in the root that
// stands for one in the tar, nil for the same. What no image can be made of
// becomes findings of the tree. Errors are those of the stream, and ErrTooLarge;
// the tree then is nil.
func ReadTar(r io.Reader, rename func(string) string) (*Tree, error) {
	if rename == nil {
		rename = func(name string) string { return name }
	}
	t := &Tree{files: map[string]File{}}
	absolute := 0
	explicit := map[string]bool{}
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read root tar: %w", err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if t.count++; t.count > maxEntries {
			return nil, fmt.Errorf("cannot read root tar of more than %d entries: %w", maxEntries, ErrTooLarge)
		}
		if strings.HasPrefix(h.Name, "/") {
			absolute++
		}
		name, ok := cleanName(h.Name)
		if !ok {
			t.note(Error, "/", "pack the root with `tar -C ROOT -c .`", "the entry %.200q leads out of the root", h.Name)
			continue
		}
		if name == "." {
			continue
		}
		name = rename(name)
		f, ok := t.tarFile(name, h, rename)
		if !ok {
			continue
		}
		if limit := textLimit(name); limit > 0 && h.Typeflag == tar.TypeReg {
			if f.Text, err = io.ReadAll(io.LimitReader(in, limit)); err != nil {
				return nil, fmt.Errorf("cannot read %s of root tar: %w", name, err)
			}
		}
		t.entry(name, f, explicit)
	}
	if absolute > 0 {
		t.note(Warning, "/", "pack the root with `tar -C ROOT -c .`", "%d entries of the tar have absolute names, which other programs refuse or unpack over the running system", absolute)
	}
	t.complete().belowLinks()
	return t, nil
}

// cleanName makes the name of an entry relative to the root; ok is false when it
// leads out of it.
func cleanName(name string) (clean string, ok bool) {
	clean = path.Clean(strings.TrimLeft(name, "/"))
	return clean, clean == "." || filepath.IsLocal(clean)
}

// tarFile describes one entry; ok is false when it gives no file.
func (t *Tree) tarFile(name string, h *tar.Header, rename func(string) string) (File, bool) {
	if h.Typeflag != tar.TypeLink {
		f := File{Mode: h.FileInfo().Mode(), UID: h.Uid, GID: h.Gid, Size: h.Size}
		if h.Typeflag == tar.TypeSymlink {
			f.Link = h.Linkname
		}
		return f, true
	}
	target, ok := cleanName(h.Linkname)
	var f File
	if ok {
		f, ok = t.files[rename(target)]
	}
	if !ok || f.Mode.IsDir() {
		t.note(Error, name, "pack the whole root, in one tar, with `tar -C ROOT -c .`", "a hard link to %.200q, which is no file that comes before it in the tar", h.Linkname)
		return File{}, false
	}
	f.same = true
	return f, true
}

// entry adds one that may have been there already: what makes a squashfs takes
// the first, or gives up.
func (t *Tree) entry(name string, f File, explicit map[string]bool) {
	old, there := t.files[name]
	switch {
	case there && old.Mode.IsDir() != f.Mode.IsDir():
		t.note(Error, name, "remove one of the two, or unpack the tar and pack the result", "the tar has it as a directory and as something else")
	case explicit[name] && !f.Mode.IsDir():
		t.note(Warning, name, "unpack the tar and pack the result", "the tar has it twice: the first counts in a squashfs, the last in an erofs")
	default:
		t.put(name, f)
	}
	explicit[name] = true
}

// belowLinks finds entries that lie below something that is no directory.
func (t *Tree) belowLinks() {
	said := map[string]bool{}
	for _, name := range t.order {
		dir := path.Dir(name)
		if dir == "." || t.isDir(dir) || said[dir] {
			continue
		}
		said[dir] = true
		t.note(Error, dir, "unpack the tar and pack the result, or name the files by the directory's own path",
			"it is %s, and the tar has files below it", t.kind(dir))
	}
}

// ReadDir reads a tree from a directory, without what is mounted below it. No
// link is followed. What cannot be read becomes findings of the tree; the error
// is about the directory itself, or ErrTooLarge.
func ReadDir(dir string) (*Tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open root: %w", err)
	}
	defer root.Close()
	top, err := root.Lstat(".")
	if err != nil {
		return nil, fmt.Errorf("cannot read root: %w", err)
	}
	t := &Tree{files: map[string]File{}}
	inodes := map[[2]uint64]bool{}
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return t.unreadable(name, d, err)
		}
		if name == "." {
			return nil
		}
		if t.count++; t.count > maxEntries {
			return fmt.Errorf("cannot read root of more than %d files: %w", maxEntries, ErrTooLarge)
		}
		info, err := d.Info()
		if err != nil {
			return t.unreadable(name, d, err)
		}
		f := File{Mode: info.Mode(), Size: info.Size()}
		st, _ := info.Sys().(*syscall.Stat_t)
		if st != nil {
			f.UID, f.GID = int(st.Uid), int(st.Gid)
			id := [2]uint64{st.Dev, st.Ino}
			f.same = st.Nlink > 1 && inodes[id]
			inodes[id] = inodes[id] || st.Nlink > 1
		}
		switch {
		case f.Mode.Type() == fs.ModeSymlink:
			f.Link, err = root.Readlink(name)
		case f.Mode.IsRegular() && textLimit(name) > 0:
			f.Text, err = readText(root, name)
		}
		if err != nil {
			return t.unreadable(name, d, err)
		}
		t.put(name, f)
		if here, _ := top.Sys().(*syscall.Stat_t); d.IsDir() && st != nil && here != nil && st.Dev != here.Dev {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return t.complete(), nil
}

// unreadable notes a file that an image builder could not read either.
func (t *Tree) unreadable(name string, d fs.DirEntry, err error) error {
	if name == "." {
		return fmt.Errorf("cannot read root: %w", err)
	}
	var cause *fs.PathError
	if errors.As(err, &cause) {
		err = cause.Err
	}
	t.note(Error, name, "read it as its owner (root), or use a tar", "it cannot be read: %v", err)
	if d != nil {
		if _, ok := t.files[name]; !ok {
			t.put(name, File{Mode: d.Type()})
		}
		if d.IsDir() {
			return fs.SkipDir
		}
	}
	return nil
}

func readText(root *os.Root, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, textLimit(name)))
}
