package machine

import (
	"bytes"
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// errReadBack: the medium did not keep what was written.
var errReadBack = errors.New("what was written does not read back")

// isUKI says whether the file is a unified kernel image: a PE program with a
// kernel in a section .linux (systemd-stub(7)).
func isUKI(r io.ReaderAt) bool {
	f, err := pe.NewFile(r)
	return err == nil && f.Section(".linux") != nil
}

// sameContent compares two files from their beginning.
func sameContent(a, b *os.File) (bool, error) {
	sa, err := a.Stat()
	if err != nil {
		return false, err
	}
	sb, err := b.Stat()
	if err != nil {
		return false, err
	}
	if sa.Size() != sb.Size() {
		return false, nil
	}
	x, y := make([]byte, 256<<10), make([]byte, 256<<10)
	for at := int64(0); at < sa.Size(); at += int64(len(x)) {
		n := min(int64(len(x)), sa.Size()-at)
		if _, err := a.ReadAt(x[:n], at); err != nil {
			return false, fmt.Errorf("cannot read %s: %w", a.Name(), err)
		}
		if _, err := b.ReadAt(y[:n], at); err != nil {
			return false, fmt.Errorf("cannot read %s: %w", b.Name(), err)
		}
		if !bytes.Equal(x[:n], y[:n]) {
			return false, nil
		}
	}
	return true, nil
}

// copyVerified copies a file, syncs the copy and reads it back from the medium.
func copyVerified(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if _, err := io.Copy(dst, src); err != nil {
		return fmt.Errorf("cannot copy %s: %w", from, err)
	}
	if err := dst.Sync(); err != nil {
		return err
	}
	// With the copy in the page cache, the comparison would only see memory.
	if err := unix.Fadvise(int(dst.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("cannot drop %s from the page cache: %w", to, err)
	}
	same, err := sameContent(src, dst)
	if err == nil && !same {
		err = fmt.Errorf("cannot copy %s: %w", from, errReadBack)
	}
	return err
}

// syncFS makes everything on the file system of dir durable.
func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("cannot sync %s: %w", dir, err)
	}
	return nil
}
