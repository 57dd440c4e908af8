package machine

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/mkinitramfs/layer"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/durable"
	"sealroot/sealroot/install"
	"sealroot/slots/manifest"
	"sealroot/state/layout"
)

// layerFiles are the images of layers on the state partition, which is mounted at
// state. Whoever has the disk may have put anything there.
type layerFiles struct{ state string }

var _ install.Layers = layerFiles{}

// ownLayers are the layers of a configuration that lie in partitions of the slot.
func ownLayers(c config.Config) ([]manifest.Layer, error) {
	var list []manifest.Layer
	for _, l := range c.FromPartitions() {
		hash, err := hex.DecodeString(l.Hash)
		if err != nil {
			return nil, fmt.Errorf("cannot use the root hash of layer %s: %w", l.Name, err)
		}
		list = append(list, manifest.Layer{Name: l.Name, RootHash: hash})
	}
	return list, nil
}

func (d layerFiles) path(l manifest.Layer) string {
	return filepath.Join(d.state, layout.LayerImage(l.Name, hex.EncodeToString(l.RootHash)))
}

// Holds implements install.Layers.
func (d layerFiles) Holds(l manifest.Layer) (bool, error) {
	// no link is followed, and no FIFO waited for
	f, err := os.OpenFile(d.path(l), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	return holds(f, l)
}

// holds tells whether a file is the image of a layer on the medium.
func holds(f *os.File, l manifest.Layer) (bool, error) {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() != l.Size {
		return false, err
	}
	// what is in memory only says nothing about the medium
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return false, err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, l.Size)); err != nil {
		return false, err
	}
	return [32]byte(sum.Sum(nil)) == l.SHA256, nil
}

// Open implements install.Layers.
func (d layerFiles) Open(l manifest.Layer) (im install.LayerImage, err error) {
	if err := d.mounted(); err != nil {
		return im, err
	}
	return d.open(l)
}

func (d layerFiles) open(l manifest.Layer) (install.LayerImage, error) {
	f, err := os.OpenFile(d.path(l), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) {
		return install.LayerImage{}, fmt.Errorf("%w: it is not on the state partition: %w", install.ErrBad, err)
	}
	if err != nil {
		return install.LayerImage{}, err
	}
	in, err := findImage(f)
	if err != nil {
		return install.LayerImage{}, errors.Join(err, f.Close())
	}
	return install.LayerImage{Data: in.Data, Tree: in.Tree, Closer: f}, nil
}

// findImage finds data and hash tree in the image of a layer, as the medium has it.
func findImage(f *os.File) (layer.Image, error) {
	info, err := f.Stat()
	if err != nil {
		return layer.Image{}, err
	}
	if !info.Mode().IsRegular() {
		return layer.Image{}, fmt.Errorf("%w: %s is no plain file", install.ErrBad, f.Name())
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return layer.Image{}, err
	}
	in, err := layer.Find(f, info.Size())
	if errors.Is(err, layer.ErrImage) && !errors.Is(err, unix.EIO) {
		err = fmt.Errorf("%w: %w", install.ErrBad, err)
	}
	return in, err
}

// Write implements install.Layers. A power cut leaves a file of another name, which
// the next Write, or the commit after it, takes away.
func (d layerFiles) Write(l manifest.Layer, content io.Reader) error {
	if err := d.mounted(); err != nil {
		return err
	}
	return d.write(l, content)
}

func (d layerFiles) write(l manifest.Layer, content io.Reader) error {
	path := d.path(l)
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	temp := path + ".new"
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w on the state partition: %w", install.ErrRoom, err)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	// crash point: whole, under another name
	return durable.Rename(temp, path)
}

// Draft is an empty file on the state partition that has no name: nobody else can open it,
// and it is gone with the last who has it.
func (d layerFiles) Draft() (*os.File, error) {
	if err := d.mounted(); err != nil {
		return nil, err
	}
	return d.draft()
}

func (d layerFiles) draft() (*os.File, error) {
	dir := filepath.Join(d.state, layout.Layers)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o644)
}

// Settle writes a draft out and tells whether it is the image of a layer on the medium.
func (d layerFiles) Settle(draft *os.File, l manifest.Layer) (bool, error) {
	if err := draft.Sync(); err != nil {
		return false, err
	}
	return holds(draft, l)
}

// Keep gives a draft the name of a layer, once that is settled. A power cut leaves it
// without, or, as with Write, under another one.
func (d layerFiles) Keep(draft *os.File, l manifest.Layer) error {
	path := d.path(l)
	temp := path + ".new"
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", draft.Fd()), unix.AT_FDCWD, temp, unix.AT_SYMLINK_FOLLOW); err != nil {
		return &os.LinkError{Op: "link", Old: "a copy", New: temp, Err: err}
	}
	// crash point: whole, under another name
	return durable.Rename(temp, path)
}

// mounted: in a degraded boot the place may be in memory.
func (d layerFiles) mounted() error {
	var st unix.Statfs_t
	if err := unix.Statfs(d.state, &st); err != nil {
		return err
	}
	if st.Type == unix.TMPFS_MAGIC {
		return fmt.Errorf("the state partition is not mounted in this boot: %w", bootset.ErrRefused)
	}
	return nil
}

// Layers is where they are written.
func (m *Machine) Layers() install.Layers { return layerFiles{layout.State} }

// HeldLayers are the images of layers on the state partition, as layout.LayerImage has
// them, and what a copy that was cut short has left there.
func (m *Machine) HeldLayers() ([]string, error) { return layerFiles{layout.State}.held() }

// RemoveLayer removes one of them for good.
func (m *Machine) RemoveLayer(name string) error {
	return durable.Remove(filepath.Join(layout.State, name))
}

func (d layerFiles) held() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(d.state, layout.Layers))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, layout.Layers+"/"+e.Name())
		}
	}
	return names, nil
}
