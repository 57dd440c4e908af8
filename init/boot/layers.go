package boot

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/mount/blockdev"
	"sealroot/mount/dm"
	"sealroot/mount/loop"
	"sealroot/slots"
	"sealroot/slots/gpt"
	"sealroot/state/layout"
	"sealroot/verity"
	"sealroot/verity/osrelease"
)

// Layers are trees over the verified root, or /usr. Which ones, and which content each has, is
// the configuration's word: it names the root hash of every image, and is itself part
// of what the boot path vouches for. So each slot has the layers it was made with. Over
// them come those that the running system added, see addedlayers.go.

// In the initramfs: where layers are mounted until the overlay has them, and where the
// overlay is until it takes the root's place.
const (
	layersDir  = "/layers"
	layersRoot = "/layered"
	// the tmpfs that has the changes of a root in memory, and is reached through it alone then
	changesDir = "/changes"
)

// errLayer: what is there is no layer for this root and kernel. errNoImage: nor is it
// the image of any.
var (
	errLayer   = errors.New("not a layer for this root")
	errNoImage = errors.New("not the image of this layer")
)

// errUnsigned: an image that was added has no signature.
var errUnsigned = errors.New("nobody has signed it")

// stackLayers puts the layers over the root, and the overlay in its place. One that
// cannot be used is left out or stops the boot, as configured.
func (b *boot) stackLayers(ctx context.Context) error {
	var lower []mount.Place // the topmost first
	if b.layers == nil {
		b.layers = b.layersOfBoot()
	}
	for i, l := range b.layers {
		note := &b.report.Layers[i]
		if note.LeftOut != "" {
			continue
		}
		place, err := b.openLayer(ctx, i, l)
		if err == nil {
			note.Version, err = b.fits(l, place)
		}
		if err == nil {
			place, err = b.overImage(place)
		}
		if err != nil {
			err = fmt.Errorf("cannot use layer %s: %w", l.Name, b.blameLayer(l, err))
			b.dropLayer(i, l)
			// a degraded boot does without what it cannot have of the state
			if l.OnFailure == config.LayerStop && (l.From == config.LayerFromPartition || b.report.State.Unlocked != report.UnlockedDegraded) {
				return b.layerError(l, err)
			}
			b.failed("layers", b.report.Slot.Name, err)
			note.LeftOut = err.Error()
			note.Absent = errors.Is(err, errLayer) || l.From == config.LayerFromVolume && errors.Is(err, unix.ENOENT)
			b.layerFailed = b.layerFailed || l.From != config.LayerFromVolume && !note.Absent
		} else {
			lower = append([]mount.Place{place}, lower...)
			b.unsigned = b.unsigned || l.From == config.LayerFromVolume
		}
	}
	if len(lower) == 0 && !b.cfg.RootInMemory() {
		return nil
	}
	if len(lower) == 0 && b.ofVolume() && b.volume.outer == nil { // it could not be mounted again, see takeDown
		return stateError(slots.StateDamaged, "cannot stack the layers: the state partition is gone")
	}
	b.layered = true
	err := b.replaceImage(append(lower, mount.Place{Root: b.imageDir(), Path: "."}))
	var known *stageError
	if err != nil && !errors.As(err, &known) {
		return imageError(slots.Mount, "cannot stack the layers: %w", err)
	}
	return err
}

// layerError says whom a layer that stops the boot is held against.
func (b *boot) layerError(l config.Layer, err error) error {
	var known *stageError
	switch {
	case errors.As(err, &known):
		return &stageError{known.class, known.reason, err}
	case errors.Is(err, dm.ErrExists), errors.Is(err, unix.EBUSY): // whatever the layer is
		return environmentError(slots.IOError, "%w", err)
	case l.From == config.LayerFromPartition:
	case b.volume.outer == nil || l.From == config.LayerFromVolume || b.report.Degraded || isDamage(err): // no slot is to blame
		return stateError(slots.StateDamaged, "%w", err)
	}
	return imageError(slots.Mount, "%w", err)
}

// overImage is what of a layer's tree lies over the image: over a /usr its /usr alone,
// as the root around that is made in memory.
func (b *boot) overImage(tree mount.Place) (mount.Place, error) {
	if !b.cfg.Root.Usr() {
		return tree, nil
	}
	tree.Path = filepath.Join(tree.Path, "usr")
	dir, err := openIn(tree)
	if err != nil {
		return tree, fmt.Errorf("it has no /usr: %w", err)
	}
	return tree, dir.Close()
}

// openLayer makes a layer's tree visible and returns where.
func (b *boot) openLayer(ctx context.Context, i int, l config.Layer) (mount.Place, error) {
	if l.From == config.LayerFromVolume {
		if b.spoilt != nil {
			return mount.Place{}, b.spoilt
		}
		place := mount.Place{Root: encryptedDir, Path: layout.LayerDir(l.Name)}
		volume, err := openDir(place.Root)
		if err != nil {
			return mount.Place{}, err
		}
		defer volume.Close()
		dir, err := mount.OpenBeneath(volume, place.Path, unix.O_PATH|unix.O_DIRECTORY, mount.Strict)
		if err != nil {
			return mount.Place{}, err
		}
		return place, dir.Close()
	}
	var device dm.Device
	var err error
	if l.From == config.LayerFromPartition {
		device, err = b.openLayerPartitions(l)
	} else {
		device, err = b.openLayerImage(ctx, i, l)
	}
	if err != nil {
		return mount.Place{}, err
	}
	at := layerDir(i)
	if err := os.MkdirAll(at, 0o755); err != nil {
		return mount.Place{}, err
	}
	fs := mount.Filesystem{Type: l.Filesystem, Source: device.Path, Attr: mount.ReadOnly | mount.NoDev}
	return mount.Place{Root: at, Path: "."}, b.sys.Mounter.MountIn(fs, mount.Place{Root: "/", Path: at})
}

// blameLayer finds out what an input/output error was, as blame does it for the root.
func (b *boot) blameLayer(l config.Layer, err error) error {
	if !errors.Is(err, unix.EIO) {
		return err
	}
	if met, _ := b.metCorruption(layerName(l)); met {
		return fmt.Errorf("%v (a block does not match the hash tree)", err) // not the disk's EIO
	}
	return &rawReadError{err}
}

// dropLayer takes what there is of a layer away again.
func (b *boot) dropLayer(i int, l config.Layer) {
	if l.From == config.LayerFromVolume {
		return
	}
	for _, err := range []error{b.sys.Mounter.Unmount(layerDir(i)), b.sys.Verity.Remove(layerName(l))} {
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENXIO) {
			b.sys.Log.Warn("%v", err)
		}
	}
}

func layerDir(i int) string { return filepath.Join(layersDir, strconv.Itoa(i)) }

func layerName(l config.Layer) string { return layout.LayerDevice(l.Name) }

// openLayerImage opens the data of a layer's image behind its hash tree.
func (b *boot) openLayerImage(ctx context.Context, i int, l config.Layer) (dm.Device, error) {
	if b.volume.outer == nil {
		return dm.Device{}, errors.New("there is no state partition")
	}
	// Anybody may have put anything there: a link, or a FIFO that never opens.
	f, err := mount.OpenBeneath(b.volume.outer, layout.LayerImage(l.Name, l.Hash), unix.O_RDONLY|unix.O_NONBLOCK, mount.Strict)
	if err != nil {
		return dm.Device{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return dm.Device{}, err
	}
	if !info.Mode().IsRegular() {
		return dm.Device{}, fmt.Errorf("%w: %s is no plain file", errNoImage, f.Name())
	}
	table, err := gpt.Read(f, info.Size(), 512)
	if err != nil {
		return dm.Device{}, err
	}
	data, tree, sig, err := table.Image()
	if err == nil && b.report.Layers[i].Source != "" {
		err = errUnsigned
		if sig != nil {
			err = b.vouch(l, io.NewSectionReader(f, table.Offset(*sig), table.Size(*sig)))
		}
		if note := &b.report.Layers[i]; err == nil && !note.Measured && b.tpm.dev != nil {
			b.measureLayer(ctx, l)
			err = b.tpm.broken
			note.Measured = err == nil
		}
	}
	if err != nil {
		return dm.Device{}, err
	}
	superblock := make([]byte, verity.SuperblockSize)
	if _, err := f.ReadAt(superblock, table.Offset(tree)); err != nil {
		return dm.Device{}, err
	}
	params, err := layerParams(superblock, 512, table.Size(data), table.Size(tree))
	if err != nil {
		return dm.Device{}, err
	}
	return b.mapLayer(l, f, table, [2]gpt.Partition{data, tree}, params)
}

// openLayerPartitions does that for a layer in partitions of the slot that runs, which
// are found as the root's are: by label, on the boot disk.
func (b *boot) openLayerPartitions(l config.Layer) (dm.Device, error) {
	var part [2]blockdev.Partition
	for i, of := range []gpt.Part{gpt.Data, gpt.Tree} {
		var err error
		if part[i], err = b.disk.Partition(gpt.LayerLabel(l.Name, b.report.Slot.Name, of)); err != nil {
			return dm.Device{}, blamePartition(err)
		}
	}
	superblock, err := readHead(part[1], verity.SuperblockSize)
	if err != nil {
		return dm.Device{}, err
	}
	params, err := layerParams(superblock, b.disk.Block.SectorSize, part[0].Size, part[1].Size)
	if err != nil {
		return dm.Device{}, err
	}
	return b.layerDevice(l, params, part[0].DevNo(), part[1].DevNo())
}

// layerParams checks what a superblock claims against the devices, in bytes.
func layerParams(superblock []byte, sector int, data, tree int64) (verity.Params, error) {
	params, err := verity.ParseSuperblock(superblock)
	if err == nil {
		err = params.Blocks(sector, os.Getpagesize())
	}
	if err == nil {
		err = params.Fits(data, tree)
	}
	return params, err
}

// mapLayer puts data and hash tree behind loop devices, and dm-verity over them.
func (b *boot) mapLayer(l config.Layer, f *os.File, table *gpt.Table, parts [2]gpt.Partition, params verity.Params) (dm.Device, error) {
	var number [2]string
	for i, p := range parts {
		// The device goes with its last user, which is dm-verity.
		d, err := b.sys.AttachLoop(f, loop.Options{
			ReadOnly: true, Autoclear: true, Offset: uint64(table.Offset(p)), SizeLimit: uint64(table.Size(p)),
		})
		if err != nil {
			return dm.Device{}, err
		}
		defer d.Release()
		number[i] = d.DevNo()
	}
	return b.layerDevice(l, params, number[0], number[1])
}

// layerDevice opens dm-verity over data and hash tree, by the root hash of the
// configuration.
func (b *boot) layerDevice(l config.Layer, params verity.Params, data, tree string) (dm.Device, error) {
	hash, err := hex.DecodeString(l.Hash)
	if err != nil {
		return dm.Device{}, err
	}
	target, err := params.Table(data, tree, hash)
	if err != nil {
		return dm.Device{}, err
	}
	uuid := fmt.Sprintf("CRYPT-VERITY-%x-%s", params.UUID, layerName(l))
	mapped := b.verityTarget(target)
	if l.OnFailure == config.LayerSkip { // a restart would not leave it out
		mapped.OnCorruption = dm.CorruptionEIO
	}
	return b.sys.Verity.Verity(layerName(l), uuid, mapped)
}

// fits reads a layer's extension-release and tells its version, when it is made for
// this root and kernel. A directory in the volume need not have one.
func (b *boot) fits(l config.Layer, at mount.Place) (version string, err error) {
	dir, err := openDir(at.Root)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	layer, err := readIn(dir, filepath.Join(at.Path, osrelease.ExtensionPath(l.Name)), osrelease.MaxSize)
	if errors.Is(err, unix.ENOENT) && l.Verity == config.LayerUnverified {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	extension, err := osrelease.Parse(layer)
	if err == nil && !extension.Extends(b.rootRelease, b.kernelRelease) {
		of, this := extension.Versus(b.rootRelease, b.kernelRelease)
		err = fmt.Errorf("%w: it is for %s, this is %s", errLayer, of, this)
	}
	return extension.ImageVersion, err
}

// replaceImage mounts an overlay of these trees and puts it where the image is, a root
// with the state partition in it. The kernel has copies of their mounts then, so that
// theirs go.
func (b *boot) replaceImage(lower []mount.Place) error {
	if err := os.MkdirAll(layersRoot, 0o755); err != nil {
		return err
	}
	overlay := mount.Place{Root: "/", Path: layersRoot}
	o := mount.Overlay{Lower: lower, Attr: mount.ReadOnly | mount.NoDev}
	if b.cfg.RootInMemory() {
		o.Attr = mount.NoDev
		var err error
		if o.Upper, o.Work, err = b.changesInMemory(); err != nil {
			return environmentError(slots.IOError, "cannot keep changes of the root in memory: %w", err)
		}
	}
	if err := b.sys.Mounter.Overlay(o, overlay); err != nil {
		return err
	}
	if !b.cfg.Root.Usr() {
		state := mount.Place{Root: newRoot, Path: layout.State}
		if err := b.sys.Mounter.Move(state, mount.Place{Root: layersRoot, Path: layout.State}); err != nil {
			return err
		}
	}
	if err := b.sys.Mounter.Unmount(b.imageDir()); err != nil {
		return err
	}
	image := mount.Place{Root: "/", Path: b.imageDir()}
	if err := b.sys.Mounter.Move(overlay, image); err != nil {
		return err
	}
	for _, l := range slices.Backward(lower) {
		if filepath.Dir(l.Root) != layersDir {
			continue
		}
		if err := b.sys.Mounter.Unmount(l.Root); err != nil {
			return err
		}
	}
	if b.cfg.RootInMemory() {
		if err := b.sys.Mounter.Unmount(changesDir); err != nil {
			return err
		}
	}
	b.noteMount(report.Mount{What: "overlay", Where: b.image(), Type: "overlay", Options: o.Attr.Names()})
	if !b.cfg.Root.Usr() {
		return nil
	}
	names, err := listDir(b.imageDir())
	if err != nil {
		return err
	}
	return makeLinks(newRoot, names)
}

// changesInMemory mounts a tmpfs for the changes to a root that is as the image's is.
func (b *boot) changesInMemory() (upper, work mount.Place, err error) {
	upper, work = mount.Place{Root: changesDir, Path: "upper"}, mount.Place{Root: changesDir, Path: "work"}
	if err := os.MkdirAll(changesDir, 0o700); err != nil {
		return upper, work, err
	}
	fs := mount.Filesystem{Type: "tmpfs", Source: "changes", Options: memoryLimits[:], Attr: mount.NoDev}
	if err := b.sys.Mounter.MountIn(fs, mount.Place{Root: "/", Path: changesDir}); err != nil {
		return upper, work, err
	}
	image := mount.Place{Root: b.imageDir(), Path: "."}
	_, err = makeMostOfUpper(mount.Overlay{Lower: []mount.Place{image}, Upper: upper, Work: work})
	return upper, work, err
}
