package bls

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"sealroot/slots/esp"
)

// Tree is the EFI system partition mounted at a directory. Where a power cut
// matters it is mounted with dirsync: only then does Linux write the new name of
// a renamed file before it removes the old one, and one of them is always there.
type Tree string

var _ Dir = Tree("")

// maxNames bounds what is read of a directory.
const maxNames = 10000

// Names lists the files in EFI/Linux; none when it does not exist.
func (t Tree) Names() ([]string, error) {
	d, err := os.Open(t.path(esp.LinuxDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(maxNames)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return names, err
}

// Rename renames a file in EFI/Linux.
func (t Tree) Rename(from, to string) error {
	dir := t.path(esp.LinuxDir)
	if _, err := os.Lstat(filepath.Join(dir, to)); err == nil {
		// FAT would give the clusters of that file away
		return &fs.PathError{Op: "rename", Path: to, Err: fs.ErrExist}
	}
	if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
		return err
	}
	return syncPath(dir)
}

// ReadState reads sealroot/slots, at most one byte more than it may have.
func (t Tree) ReadState() ([]byte, error) {
	f, err := os.Open(t.path(esp.Slots))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, StateSize+1))
}

// WriteState writes sealroot/slots in place, in one sector. A file of another
// size is made anew beside it.
func (t Tree) WriteState(b []byte) error {
	path := t.path(esp.Slots)
	if info, err := os.Lstat(path); err == nil && info.Size() == StateSize {
		return writeSynced(path, os.O_WRONLY, b)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temp := path + ".new"
	if err := writeSynced(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, b); err != nil {
		return err
	}
	// crash point: no text, or an unreadable one, is the names alone
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	return syncPath(filepath.Dir(path))
}

func (t Tree) path(name string) string { return filepath.Join(string(t), filepath.FromSlash(name)) }

func writeSynced(path string, flags int, b []byte) error {
	f, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncPath(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// asideName is a free name that is no boot entry. FAT does not tell upper from
// lower case.
func asideName(slot string, taken []string) (string, bool) {
	for n := 1; n < 100; n++ {
		name := "sealroot-" + slot + "." + strconv.Itoa(n)
		free := true
		for _, t := range taken {
			free = free && !strings.EqualFold(t, name)
		}
		if free {
			return name, true
		}
	}
	return "", false
}
