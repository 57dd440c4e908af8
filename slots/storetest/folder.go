package storetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sealroot/slots"
	"sealroot/slots/bls"
	"sealroot/slots/esp"
	"sealroot/slots/grubenv"
)

// Folder is the store on a real file system, FAT in a guest: dir is its root,
// below which the test makes and removes its own files.
func Folder(dir string, kind string) (Subject, error) {
	s := Subject{Slots: []string{"a", "b"}, States: 200}
	var make func() (Medium, error)
	switch kind {
	case "grubenv-darch":
		make = func() (Medium, error) { return newBlockFile(dir, grubenv.Darch) }
	case "grubenv-rauc":
		make = func() (Medium, error) { return newBlockFile(dir, grubenv.RAUC) }
	case "bls":
		make = func() (Medium, error) { return newImages(dir) }
	default:
		return Subject{}, fmt.Errorf("cannot test the store %q in a folder: %w", kind, errors.ErrUnsupported)
	}
	if _, err := make(); err != nil {
		return Subject{}, err
	}
	s.New = func() Medium {
		m, err := make()
		if err != nil {
			return broken{err}
		}
		return m
	}
	return s, nil
}

// broken is a medium that could not be made: every test of it fails and says so.
type broken struct{ err error }

func (b broken) Open() slots.Store           { return b }
func (b broken) Writes() int                 { return 0 }
func (b broken) Foreign() string             { return b.err.Error() }
func (b broken) Load() ([]slots.Slot, error) { return nil, b.err }
func (b broken) Save(_ []slots.Slot) error   { return b.err }

// blockFile is an environment block in a file.
type blockFile struct {
	path   string
	scheme grubenv.Scheme
	writes *int
}

func newBlockFile(dir string, scheme grubenv.Scheme) (Medium, error) {
	path := filepath.Join(dir, esp.Grubenv)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return blockFile{path, scheme, new(int)}, os.WriteFile(path, othersBlock(), 0o644)
}

func (m blockFile) Writes() int { return *m.writes }

func (m blockFile) Foreign() string {
	b, err := os.ReadFile(m.path)
	if err != nil {
		return err.Error()
	}
	return others(b)
}

// Open opens the file for each operation, as the running system does.
func (m blockFile) Open() slots.Store { return m }

func (m blockFile) with(use func(grubenv.Store) error) error {
	f, err := os.OpenFile(m.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	s := grubenv.Store{File: countedFile{f, m.writes}, Scheme: m.scheme, Names: []string{"a", "b"}}
	return errors.Join(use(s), f.Close())
}

func (m blockFile) Load() (list []slots.Slot, err error) {
	err = m.with(func(s grubenv.Store) (err error) {
		list, err = s.Load()
		return err
	})
	return list, err
}

func (m blockFile) Save(want []slots.Slot) error {
	return m.with(func(s grubenv.Store) error { return s.Save(want) })
}

type countedFile struct {
	*os.File
	writes *int
}

func (f countedFile) WriteAt(b []byte, off int64) (int, error) {
	*f.writes++
	return f.File.WriteAt(b, off)
}

// images are kernel images whose names count.
type images struct {
	bls.Dir
	root   string
	writes *int
}

func newImages(root string) (Medium, error) {
	dir := filepath.Join(root, esp.LinuxDir)
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return nil, err
	}
	if err := os.Remove(filepath.Join(root, esp.Slots)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, name := range []string{"sealroot-a.efi", "sealroot-b+0-0.efi", "debian-6.1+3.efi", "Memtest.EFI"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			return nil, err
		}
	}
	return images{bls.Tree(root), root, new(int)}, nil
}

func (m images) Open() slots.Store { return bls.Store{Dir: m, Slots: []string{"a", "b"}} }
func (m images) Writes() int       { return *m.writes }

func (m images) Rename(from, to string) error {
	*m.writes++
	return m.Dir.Rename(from, to)
}

func (m images) WriteState(b []byte) error {
	*m.writes++
	return m.Dir.WriteState(b)
}

// Foreign is the files of others by name, and the content of the slots' images,
// which no rename may change.
func (m images) Foreign() string {
	names, err := m.Names()
	if err != nil {
		return err.Error()
	}
	var lines []string
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(m.root, esp.LinuxDir, name))
		if slot, _, ok := esp.ParseUKIName(name); ok {
			name = "slot " + slot
		}
		lines = append(lines, fmt.Sprintf("%s %s %v", name, b, err))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
