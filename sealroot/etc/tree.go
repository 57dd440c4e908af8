package etc

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/mount"
	"sealroot/state/etcmerge"
	"sealroot/state/layout"
)

// ErrTooLarge: a /etc has more than is merged.
var ErrTooLarge = errors.New("too large to be merged")

// The bounds of one merge, over all trees that it reads.
const (
	maxEntries = 200_000
	maxBytes   = 1 << 30
	maxDepth   = 64
	maxAccount = 4 << 20 // of a file that is merged by entry
)

// node is one file of a directory tree as it lies on the disk. In an overlay's upper
// layer it may be a whiteout, or a directory that hides those below it.
type node struct {
	etcmerge.Entry
	whiteout, opaque bool
}

// tree is a /etc: what the merge knows of its files, and the directory (open) that
// each lies below.
type tree struct {
	entries etcmerge.Tree
	at      map[string]*os.File
	// mixed: files that the machine made are among them. A number whose user is gone stays.
	mixed bool
}

// stack puts an upper layer over a tree, as overlayfs does without redirects and
// metacopies.
func stack(lower tree, at *os.File, layer map[string]node) tree {
	merged := tree{entries: etcmerge.Tree{}, at: map[string]*os.File{}}
	for name, e := range lower.entries {
		if !hidden(layer, name) {
			merged.entries[name], merged.at[name] = e, lower.at[name]
		}
	}
	for name, n := range layer {
		if !n.whiteout {
			merged.entries[name], merged.at[name] = n.Entry, at
		}
	}
	return merged
}

// hidden tells whether a layer hides what a lower one has of that name.
func hidden(layer map[string]node, name string) bool {
	if _, there := layer[name]; there {
		return true
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if n, there := layer[dir]; there && (n.whiteout || n.opaque || n.Kind != etcmerge.Dir) {
			return true
		}
	}
	return false
}

// reader reads trees, by one name after the other from open directories, following
// no link.
type reader struct {
	entries int
	bytes   int64
}

// read reads what lies below dir.
func (r *reader) read(dir *os.File) (map[string]node, error) {
	layer := map[string]node{}
	if err := r.readDir(dir, "", 0, layer); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", dir.Name(), err)
	}
	return layer, nil
}

func (r *reader) readDir(dir *os.File, prefix string, depth int, layer map[string]node) error {
	if depth > maxDepth {
		return fmt.Errorf("%q: nested deeper than %d: %w", prefix, maxDepth, ErrTooLarge)
	}
	// A descriptor of our own: reading a directory moves its offset.
	again, err := openIn(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("%q: %w", prefix, err)
	}
	defer again.Close()
	for {
		names, err := again.Readdirnames(1024)
		for _, name := range names {
			if err := r.readNode(again, name, prefix+name, depth, layer); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%q: %w", prefix, err)
		}
	}
}

func (r *reader) readNode(dir *os.File, name, full string, depth int, layer map[string]node) error {
	if r.entries++; r.entries > maxEntries {
		return fmt.Errorf("more than %d files: %w", maxEntries, ErrTooLarge)
	}
	// O_PATH opens no device and waits for no FIFO's writer.
	f, err := openIn(dir, name, unix.O_PATH)
	if err != nil {
		return fmt.Errorf("%q: %w", full, err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("%q: %w", full, err)
	}
	n := node{Entry: etcmerge.Entry{Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}}
	sum := sha256.New()
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		n.Kind = etcmerge.Dir
		sub, err := openIn(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return fmt.Errorf("%q: %w", full, err)
		}
		err = r.readDir(sub, full+"/", depth+1, layer)
		sub.Close()
		if err != nil {
			return err
		}
	case unix.S_IFREG:
		n.Kind = etcmerge.Regular
		if n.Text, err = r.readFile(dir, name, full, st.Size, sum); err != nil {
			return fmt.Errorf("%q: %w", full, err)
		}
	case unix.S_IFLNK:
		n.Kind = etcmerge.Symlink
		n.Mode = 0o777 // what a file system has there means nothing
		target := make([]byte, unix.PathMax)
		k, err := unix.Readlinkat(int(f.Fd()), "", target)
		if err != nil {
			return fmt.Errorf("%q: %w", full, err)
		}
		sum.Write(target[:k])
	default:
		n.Kind = etcmerge.Other
		n.whiteout = st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
		binary.Write(sum, binary.LittleEndian, []uint64{uint64(st.Mode & unix.S_IFMT), st.Rdev})
	}
	var flags string
	if n.opaque, flags, err = readAttributes(f, sum); err != nil {
		return fmt.Errorf("%q: %w", full, err)
	}
	if n.Kind == etcmerge.Dir || n.Kind == etcmerge.Regular { // chattr(1) opens no others
		n.Flags = flags
	}
	sum.Sum(n.Sum[:0])
	layer[full] = n
	return nil
}

// readFile puts a file's content into sum; it returns that of account files.
func (r *reader) readFile(dir *os.File, name, full string, size int64, sum hash.Hash) ([]byte, error) {
	if r.bytes += size; r.bytes > maxBytes {
		return nil, fmt.Errorf("more than %d MiB in all: %w", maxBytes>>20, ErrTooLarge)
	}
	f, err := openIn(dir, name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > maxAccount || !slices.Contains(etcmerge.AccountFiles(), full) {
		_, err := io.Copy(sum, io.LimitReader(f, size))
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, size))
	if err != nil {
		return nil, err
	}
	sum.Write(text)
	return append([]byte{}, text...), nil
}

// readAttributes puts extended attributes into sum, but for those of an overlay and
// ours, and tells whether a directory hides what is below it, and the flags of a file.
func readAttributes(f *os.File, sum hash.Hash) (opaque bool, flags string, err error) {
	// The magic link leads to the file itself, a symlink included.
	at := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	buf := make([]byte, 64<<10) // XATTR_LIST_MAX and XATTR_SIZE_MAX
	n, err := unix.Listxattr(at, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return false, "", nil
	}
	if err != nil {
		return false, "", fmt.Errorf("cannot list extended attributes: %w", err)
	}
	names := strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
	sort.Strings(names)
	for _, name := range names {
		n, err := unix.Getxattr(at, name, buf)
		if err != nil {
			return false, "", fmt.Errorf("cannot read extended attribute %q: %w", name, err)
		}
		switch {
		case name == "trusted.overlay.opaque":
			opaque = bytes.Equal(buf[:n], []byte("y"))
		case name == flagsAttribute:
			flags = parseFlags(buf[:n])
		case strings.HasPrefix(name, "trusted.overlay."), name == layout.EtcOwner:
		default:
			binary.Write(sum, binary.LittleEndian, []uint32{0xffffffff, uint32(len(name)), uint32(n)})
			io.WriteString(sum, name)
			sum.Write(buf[:n])
		}
	}
	return opaque, flags, nil
}

// openIn opens what lies below a directory, following no link and crossing no mount.
func openIn(dir *os.File, name string, flags int) (*os.File, error) {
	return mount.OpenBeneath(dir, name, flags|unix.O_NOFOLLOW, mount.Strict)
}
