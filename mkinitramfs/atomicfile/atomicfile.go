// Package atomicfile writes a file that is either complete or not there: a
// half-written initramfs or disk image must never take the place of a good one.
package atomicfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// File is an output that is not at its place yet.
type File struct {
	*os.File
	path string
	mode os.FileMode
	done bool
}

// Create opens a temporary file beside path; Commit gives it the name path and
// the permissions mode.
func Create(path string, mode os.FileMode) (*File, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return nil, fmt.Errorf("cannot create output: %w", err)
	}
	return &File{File: f, path: path, mode: mode}, nil
}

// Commit syncs the content and renames the file to its final name.
func (f *File) Commit() error {
	err := f.Chmod(f.mode)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(f.Name(), f.path)
	}
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", f.path, err)
	}
	f.done = true
	return f.Close()
}

// Discard removes the temporary file. It does nothing after Commit, so that it
// can always be deferred.
func (f *File) Discard() error {
	if f.done {
		return nil
	}
	f.done = true
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// Write writes data to path in one go.
func Write(path string, data []byte, mode os.FileMode) error {
	f, err := Create(path, mode)
	if err != nil {
		return err
	}
	defer func() { _ = f.Discard() }()
	if _, err := f.File.Write(data); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return f.Commit()
}
