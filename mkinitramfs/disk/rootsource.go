package disk

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

// openRoot returns the root file system as a tar stream: source is a directory
// or a tar file (plain, gzip, xz or zstd).
func openRoot(source string) (io.ReadCloser, error) {
	info, err := os.Stat(source)
	if err != nil {
		return nil, fmt.Errorf("cannot open root: %w", err)
	}
	if info.IsDir() {
		r, w := io.Pipe()
		go func() { w.CloseWithError(dirToTar(source, w)) }()
		return r, nil
	}
	f, err := os.Open(source)
	if err != nil {
		return nil, fmt.Errorf("cannot open root: %w", err)
	}
	return decompressTar(f)
}

// spool keeps a stream in a file.
func spool(r io.Reader, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("cannot keep root tar: %w", err)
	}
	_, err = io.Copy(f, r)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("cannot keep root tar: %w", err)
	}
	return nil
}

// newest returns the time of the newest file of a root, in seconds.
func newest(source string) (int64, error) {
	r, err := openRoot(source)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	stamp := int64(0)
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return stamp, nil
		}
		if err != nil {
			return 0, fmt.Errorf("cannot read root tar: %w", err)
		}
		stamp = max(stamp, h.ModTime.Unix())
	}
}

// stream is a reader and what has to be closed with it.
type stream struct {
	io.Reader
	close func() error
}

func (s stream) Close() error { return s.close() }

// decompressTar recognises a compressed tar by its first bytes.
func decompressTar(in io.ReadCloser) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(in, 1<<20)
	magic, err := b.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.Join(fmt.Errorf("cannot read root tar: %w", err), in.Close())
	}
	var r io.Reader = b
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(b)
	case bytes.HasPrefix(magic, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		r, err = xz.NewReader(b)
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(b); err == nil {
			return stream{d, func() error { d.Close(); return in.Close() }}, nil
		}
	default:
		err = nil
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot decompress root tar: %w", err), in.Close())
	}
	return stream{r, in.Close}, nil
}

// dirToTar writes a directory as a tar stream, with numeric owners, extended
// attributes, devices and hard links. It stays on the directory's file system.
func dirToTar(root string, w io.Writer) error {
	out := tar.NewWriter(w)
	var top unix.Stat_t
	if err := unix.Lstat(root, &top); err != nil {
		return fmt.Errorf("cannot read root: %w", err)
	}
	first := map[[2]uint64]string{} // device and inode of files with several links
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("cannot read root: %w", err)
		}
		rel, err := filepath.Rel(root, p)
		if err != nil || rel == "." {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return fmt.Errorf("cannot read %s: %w", p, err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			return nil // belongs to a process that does not run in the image
		}
		h, err := header(p, d, &st)
		if err != nil {
			return err
		}
		h.Name = filepath.ToSlash(rel)
		if h.Typeflag == tar.TypeReg && st.Nlink > 1 {
			id := [2]uint64{st.Dev, st.Ino}
			if name, ok := first[id]; ok {
				h.Typeflag, h.Linkname, h.Size = tar.TypeLink, name, 0
			} else {
				first[id] = h.Name
			}
		}
		if err := tarOne(out, h, p); err != nil {
			return err
		}
		if d.IsDir() && st.Dev != top.Dev {
			return filepath.SkipDir // a mount point, whose content is not the root's
		}
		return nil
	})
	if err != nil {
		return err
	}
	return out.Close()
}

// header describes one file.
func header(p string, d fs.DirEntry, st *unix.Stat_t) (*tar.Header, error) {
	info, err := d.Info()
	if err != nil {
		return nil, fmt.Errorf("cannot read root: %w", err)
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(p); err != nil {
			return nil, fmt.Errorf("cannot read root: %w", err)
		}
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return nil, fmt.Errorf("cannot describe %s: %w", p, err)
	}
	h.Uid, h.Gid, h.Uname, h.Gname = int(st.Uid), int(st.Gid), "", ""
	h.PAXRecords, err = xattrs(p)
	return h, err
}

func tarOne(out *tar.Writer, h *tar.Header, p string) error {
	if err := out.WriteHeader(h); err != nil {
		return fmt.Errorf("cannot pack %s: %w", p, err)
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	f, err := os.Open(p)
	if err != nil {
		return fmt.Errorf("cannot pack file: %w", err)
	}
	defer f.Close()
	if _, err := io.Copy(out, f); err != nil {
		return fmt.Errorf("cannot pack %s: %w", p, err)
	}
	return nil
}

// xattrs reads extended attributes as the PAX records that tar and sqfstar
// know. security.capability is among them: without it ping and the like break.
func xattrs(p string) (map[string]string, error) {
	buf := make([]byte, 64<<10) // XATTR_LIST_MAX and XATTR_SIZE_MAX of the kernel
	n, err := unix.Llistxattr(p, buf)
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list attributes of %s: %w", p, err)
	}
	records := map[string]string{}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		m, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			return nil, fmt.Errorf("cannot read attribute %s of %s: %w", name, p, err)
		}
		records["SCHILY.xattr."+name] = string(value[:m])
	}
	return records, nil
}
