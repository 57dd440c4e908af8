package install

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// Source is a set of parts; its files are opened one after the other, in the
// order that package manifest says.
type Source interface {
	// Open opens the next file. Its error is ErrSet when the set does not have
	// it, or not in this place.
	Open(file string) (io.ReadCloser, error)
	Close() error
}

// OpenSource opens a directory, a tar in a file or on a block device, or with
// "-" a tar on stdin.
func OpenSource(path string, stdin io.Reader) (Source, error) {
	if path == "-" {
		return newTarSource(io.NopCloser(stdin)), nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the image: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open the image: %w", err), f.Close())
	}
	if !st.IsDir() {
		return newTarSource(f), nil
	}
	return dirSource{os.DirFS(path)}, f.Close()
}

// dirSource is a directory.
type dirSource struct{ dir fs.FS }

func (d dirSource) Close() error { return nil }

func (d dirSource) Open(file string) (io.ReadCloser, error) {
	f, err := d.dir.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the directory has no %s: %w", file, ErrSet)
	}
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s is no plain file: %w", file, ErrSet), f.Close())
	}
	return f, nil
}

// tarSource is a tar that is read once, as it comes.
type tarSource struct {
	file io.Closer
	tar  *tar.Reader
}

func newTarSource(r io.ReadCloser) tarSource {
	return tarSource{r, tar.NewReader(bufio.NewReaderSize(r, 1<<20))}
}

func (s tarSource) Close() error { return s.file.Close() }

// maxFolders bounds the entries for directories, which mean nothing here.
const maxFolders = 4

func (s tarSource) Open(file string) (io.ReadCloser, error) {
	for range maxFolders + 1 {
		h, err := s.tar.Next()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil, fmt.Errorf("the tar ends before %s: %w", file, ErrSet)
		case errors.Is(err, tar.ErrHeader):
			return nil, fmt.Errorf("where %s should be, it is no tar (a compressed one is unpacked first): %w", file, ErrSet)
		case err != nil:
			return nil, fmt.Errorf("cannot read the tar: %w", err)
		case h.Typeflag == tar.TypeDir:
			continue
		case h.Typeflag != tar.TypeReg || strings.TrimPrefix(h.Name, "./") != file:
			return nil, fmt.Errorf("the tar has %.100q where %s should be: %w", h.Name, file, ErrSet)
		}
		return io.NopCloser(s.tar), nil
	}
	return nil, fmt.Errorf("the tar has directories where %s should be: %w", file, ErrSet)
}
