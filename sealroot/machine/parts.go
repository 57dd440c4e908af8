package machine

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/mount/blockdev"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/install"
	"sealroot/slots/esp"
	"sealroot/slots/gpt"
	"sealroot/slots/live"
	"sealroot/slots/manifest"
	"sealroot/state"
	"sealroot/state/layout"
)

// Install is what install, replicate, repair and verify act on. changed is told
// of each place whose default was changed. The certificates are the caller's.
func (m *Machine) Install(changed func(place, slot string)) (install.Machine, error) {
	b, err := m.BootSet(changed)
	if err != nil {
		return install.Machine{}, err
	}
	return install.Machine{Machine: b, Disk: m, ESP: bootESP{m.esp, m.choice}, Layers: layerFiles{layout.State}, FECRoots: m.root.Verity.FECRoots,
		State: stateType(layout.State), Own: m.own,
		Layout: manifest.Layout{
			Loader: m.choice.Loader, Store: m.choice.Store, Source: m.root.Source,
			Partitions: cmp.Or(m.root.Partitions, config.PartitionsLabels), PartUUIDs: m.root.PartUUIDs.Line(), TreeAtMiB: m.root.Verity.TreeAtMiB,
		}}, nil
}

// stateType is the type of the file system at dir where it is one that not every image
// mounts, else "".
func stateType(dir string) string {
	f, err := os.Open(dir)
	if err != nil {
		return ""
	}
	defer f.Close()
	if state.OuterFilesystem(f) == state.Btrfs {
		return manifest.StateBtrfs
	}
	return ""
}

// OpenPart opens a partition of a slot, or the part of one that holds image or
// hash tree where they share it.
func (m *Machine) OpenPart(slot string, part manifest.Name, write bool) (install.Partition, error) {
	of, ok := part.Partition()
	if !ok {
		return nil, fmt.Errorf("cannot open %s: %w", part, errNoPartition)
	}
	at := m.root.Verity.TreeAt()
	if of == gpt.Tree && at != 0 {
		of = gpt.Data
	}
	p, err := m.disk.InSlot(slot, of)
	if err != nil {
		return nil, err
	}
	if at == 0 || part == manifest.Signature {
		return openNode(p.Node, write)
	}
	if part == manifest.Root {
		d, err := openNode(p.Node, write)
		if err != nil {
			return nil, err
		}
		return newWindow(d, 0, at)
	}
	// The claim is that of the image: a second one would be refused.
	d, err := blockdev.Open(p.Node, write)
	if err != nil {
		return nil, err
	}
	return newWindow(d, at, d.Size())
}

// errNoPartition: a part that is a file on the ESP.
var errNoPartition = errors.New("no partition is for it")

// OpenLayer opens a partition of a layer that lies in partitions of the slot.
func (m *Machine) OpenLayer(slot, layer string, part manifest.Name, write bool) (install.Partition, error) {
	of, ok := part.Partition()
	if !ok {
		return nil, fmt.Errorf("cannot open %s of layer %s: %w", part, layer, errNoPartition)
	}
	p, err := m.disk.Partition(gpt.LayerLabel(layer, slot, of))
	if errors.Is(err, gpt.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", install.ErrNoPartition, err)
	}
	if err != nil {
		return nil, err
	}
	return openNode(p.Node, write)
}

func openNode(node string, write bool) (install.Partition, error) {
	if !write {
		d, err := blockdev.Open(node, false)
		if err != nil {
			return nil, err // not a nil *blockdev.Device inside an interface
		}
		return d, nil
	}
	return claim(node)
}

// claimed is a device that nothing else has in use while it is open: whatever a
// boot report says, partitions under a running root cannot be written.
type claimed struct {
	*blockdev.Device
	claim *os.File
}

// claim opens a device for writing. O_EXCL fails with EBUSY on one that is
// mounted or under device-mapper (open(2), block/bdev.c).
func claim(node string) (install.Partition, error) {
	f, err := os.OpenFile(node, os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("cannot write %s, it is in use: %w: %w", node, err, bootset.ErrRefused)
	}
	if err != nil {
		return nil, err
	}
	d, err := blockdev.Open(node, true)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return claimed{d, f}, nil
}

// Close gives the device free.
func (c claimed) Close() error { return errors.Join(c.Device.Close(), c.claim.Close()) }

// bootESP is the EFI system partition with the boot files of the slots.
type bootESP struct {
	esp    live.ESP
	choice live.Choice
}

// Needs are the files that this machine's loader starts a slot from.
func (e bootESP) Needs() []install.BootFile {
	switch {
	case !e.choice.OwnKernels():
		return nil
	case e.choice.Loader == live.LoaderGRUB:
		return []install.BootFile{install.Kernel, install.Initrd}
	}
	return []install.BootFile{install.UKI}
}

// With mounts the partition for the time of use.
func (e bootESP) With(write bool, use func(install.Folder) error) error {
	return e.esp.With(write, func(dir string) error {
		return use(bootFolder{dir, e.choice.Store == live.StoreBLS})
	})
}

// bootFolder is the mounted partition.
type bootFolder struct {
	dir     string
	counted bool // the store keeps the slots in the names of the images
}

// name is where a slot's file is. An image that is not there yet must not count
// as committed under a name without a counter, where names count.
func (f bootFolder) name(slot string, file install.BootFile) (string, error) {
	switch file {
	case install.Kernel:
		return esp.Kernel(slot), nil
	case install.Initrd:
		return esp.Initrd(slot), nil
	case install.Manifest:
		return esp.Manifest(slot), nil
	case install.ManifestSignature:
		return esp.ManifestSignature(slot), nil
	case install.UKI:
		name, err := imageOf(f.dir, slot)
		if err != nil || !f.counted {
			return name, err
		}
		if _, err := os.Lstat(filepath.Join(f.dir, name)); errors.Is(err, fs.ErrNotExist) {
			name = esp.LinuxDir + "/" + esp.UKIName(slot, esp.Counting(0, 0))
		}
		return name, nil
	}
	return "", fmt.Errorf("cannot place boot file %q: %w", file, errors.ErrUnsupported)
}

// temp is where a new file is written: in the same directory, under a name that
// no loader takes for its own.
func (f bootFolder) temp(slot string, file install.BootFile) (string, error) {
	if file == install.UKI {
		return filepath.Join(f.dir, esp.LinuxDir, "sealroot-"+slot+".new"), nil
	}
	name, err := f.name(slot, file)
	return filepath.Join(f.dir, name+".new"), err
}

func (f bootFolder) paths(slot string, file install.BootFile) (path, temp string, err error) {
	name, err := f.name(slot, file)
	if err == nil {
		temp, err = f.temp(slot, file)
	}
	return filepath.Join(f.dir, name), temp, err
}

// Room counts what is free, and what a cut write left.
func (f bootFolder) Room(slot string) (install.Room, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(f.dir, &st); err != nil {
		return install.Room{}, fmt.Errorf("cannot tell the room on the EFI system partition: %w", err)
	}
	room := install.Room{Free: int64(st.Bavail) * st.Bsize, Old: sizeOf(filepath.Join(f.dir, esp.FallbackTemp))}
	for _, file := range install.BootFiles() {
		path, temp, err := f.paths(slot, file)
		if err != nil {
			return install.Room{}, err
		}
		room.Free += sizeOf(temp)
		room.Old += sizeOf(path)
	}
	fallback, err := os.Open(filepath.Join(f.dir, esp.Fallback))
	if errors.Is(err, fs.ErrNotExist) {
		room.Fallback = true // a commit makes one
		return room, nil
	}
	if err != nil {
		return install.Room{}, err
	}
	defer fallback.Close()
	room.Fallback = isUKI(fallback)
	return room, nil
}

// sizeOf is 0 for a file that is not there.
func sizeOf(path string) int64 {
	info, err := os.Lstat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// Open opens a slot's file.
func (f bootFolder) Open(slot string, file install.BootFile) (io.ReadCloser, error) {
	name, err := f.name(slot, file)
	if err != nil {
		return nil, err
	}
	return openDropped(filepath.Join(f.dir, name))
}

// Written opens what Write wrote.
func (f bootFolder) Written(slot string, file install.BootFile) (io.ReadCloser, error) {
	temp, err := f.temp(slot, file)
	if err != nil {
		return nil, err
	}
	return openDropped(temp)
}

// openDropped opens a file that is read from the medium, not from memory.
func openDropped(path string) (io.ReadCloser, error) {
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Fadvise(int(r.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot drop %s from the page cache: %w", path, err), r.Close())
	}
	return r, nil
}

// Write writes a slot's file beside the one it has.
func (f bootFolder) Write(slot string, file install.BootFile, content io.Reader) (err error) {
	path, temp, err := f.paths(slot, file)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := dropLeftover(temp, path); err != nil {
		return err
	}
	to, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, to.Close()); err != nil {
			// crash point: a part of a new file, which the next Write deletes
			err = errors.Join(err, os.Remove(temp))
		}
	}()
	if _, err := io.Copy(to, content); err != nil {
		return err
	}
	return to.Sync()
}

// Publish exchanges each new file with the one that the slot has, and deletes
// the old ones once that is durable. A cut
//
//	between the exchanges: leaves a slot of files that do not belong together; it
//	                       is unbootable, and the next install writes all
//	before the deletes:    leaves old files, which the next Write deletes
func (f bootFolder) Publish(slot string, files []install.BootFile) error {
	for _, file := range files {
		path, temp, err := f.paths(slot, file)
		if err != nil {
			return err
		}
		if err := exchange(temp, path); err != nil {
			return err
		}
	}
	if err := syncFS(f.dir); err != nil {
		return err
	}
	for _, file := range install.BootFiles() {
		path, temp, err := f.paths(slot, file)
		if err != nil {
			return err
		}
		old := []string{temp}
		if !slices.Contains(files, file) {
			old = append(old, path)
		}
		for _, name := range old {
			if err := removeIfThere(name); err != nil {
				return err
			}
		}
	}
	return syncFS(f.dir)
}

// Replicates says whether boot.replicate of the configuration names an occasion,
// such as config.ReplicateCommit.
func (m *Machine) Replicates(after string) bool { return slices.Contains(m.replicate, after) }

// Tries is how often a new slot is booted without a commit: boot.tries.
func (m *Machine) Tries() int { return m.tries }
