// Package durable replaces small files of root's whole: a power cut leaves the old
// file or the new one.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile makes or replaces the file at path, readable by its owner alone, and is
// done when it is on stable storage.
func WriteFile(path string, content []byte) error {
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := create(temp, content); err != nil {
		return err
	}
	return Rename(temp, path)
}

// Create makes the file at path, which must not be there, readable by its owner
// alone, and is done when it is on stable storage. Errors: fs.ErrExist.
func Create(path string, content []byte) error {
	if err := create(path, content); err != nil {
		return err
	}
	return syncDir(path)
}

func create(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

// Rename gives the file at old, which is on stable storage, the name path in the same
// folder for good, in place of what has it.
func Rename(old, path string) error {
	if err := os.Rename(old, path); err != nil {
		return err
	}
	return syncDir(path)
}

// Remove removes the file at path for good. Errors: fs.ErrNotExist.
func Remove(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return syncDir(path)
}

func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
