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

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/mount/blockdev"
	"sealroot/mount/dm"
	"sealroot/mount/kmod"
	"sealroot/slots"
	"sealroot/slots/gpt"
	"sealroot/verity"
	"sealroot/verity/osrelease"
	"sealroot/verity/signature"
)

// openRoot decides which slot runs and mounts its verified root. A slot whose
// image fails is given up and the next one decided on, in the same boot where
// the running kernel fits it.
func (b *boot) openRoot(ctx context.Context) error {
	if err := b.loader.LoadGroup(ctx, kmod.GroupRoot); err != nil {
		b.warn("%v", err)
	}
	// One that cannot be read is no fault of any slot.
	if _, err := certificatesOf(config.CertificatesDir, b.cfg.RootRoles()); err != nil {
		return fmt.Errorf("cannot read the certificates: %w", err)
	}
	if err := b.discover(); err != nil {
		return err
	}
	b.honourCommandLine()
	b.readFloor(ctx)
	for {
		slot, foreign, err := b.chooseSlot(ctx)
		if err != nil {
			return err
		}
		err = b.mountSlot(ctx, slot, foreign)
		if err == nil {
			return nil
		}
		err = b.blameInitramfs(ctx, slot, foreign, b.blame(err))
		failure := b.failed("root", slot, err)
		b.dropRoot()
		if failure.Reason == slots.WrongKernel {
			err = b.rebootInto(ctx, slot)
		} else {
			err = b.giveUp(ctx, failure)
		}
		if err != nil {
			return err
		}
	}
}

// mountSlot verifies one slot and mounts its root. foreign means that the
// running kernel was not loaded for this slot.
func (b *boot) mountSlot(ctx context.Context, slot string, foreign bool) error {
	r := report.Root{Role: string(b.cfg.Root.ImageRole()), Filesystem: b.cfg.Root.Filesystem, KernelRelease: b.kernelRelease}
	root, err := b.rootHash(ctx, slot, foreign)
	if err != nil {
		return err
	}
	r.RootHash, r.HashSource, r.Certificate = hex.EncodeToString(root.hash), root.source, root.signer
	device, err := b.openVerity(slot, root.hash)
	if err != nil {
		return err
	}
	b.imageDevNo = device.DevNo()
	fs := mount.Filesystem{Type: r.Filesystem, Source: device.Path, Attr: mount.ReadOnly | mount.NoDev}
	b.imageFS = fs
	if err := b.mountImage(slot, fs); err != nil {
		return err
	}
	if err := b.checkRoot(ctx, slot, foreign, &r); err != nil {
		return err
	}
	b.report.Root = r
	b.sys.Log.Info("slot %s: %s %s, root hash %.16s…, %s", slot, r.ImageID, r.ImageVersion, r.RootHash, root.by())
	return nil
}

// blame finds out whose fault an input/output error below dm-verity is: the
// device knows whether it met a block that does not match its hash.
func (b *boot) blame(err error) error {
	if class, reason := classOf(err); class == slots.ImageFailure && b.layersTried {
		// the next boot leaves those out, and knows more
		return &stageError{slots.EnvironmentFailure, reason, err}
	} else if errors.Is(err, unix.EIO) && !b.layersTried && !b.corrupted() && b.forgetLayers() {
		// dm-verity says nothing of what cannot be read
		return &stageError{slots.EnvironmentFailure, reason, err}
	} else if class != slots.ImageFailure || !errors.Is(err, unix.EIO) {
		return err
	} else if b.corrupted() {
		return &stageError{class, reason, fmt.Errorf("%w (a block does not match the hash tree)", err)}
	}
	return &stageError{slots.EnvironmentFailure, slots.IOError, err}
}

// corrupted tells whether dm-verity found a block that does not match: of the image, or of
// a layer in use that the configuration names, which is the slot's as well.
func (b *boot) corrupted() bool {
	for i, l := range b.layers {
		if note := b.report.Layers[i]; note.Source == "" && note.LeftOut == "" && l.From != config.LayerFromVolume {
			if met, _ := b.metCorruption(layerName(l)); met { // no answer: it is not open
				return true
			}
		}
	}
	met, err := b.metCorruption(b.dmName())
	return met || err != nil // without an answer the image is the likelier cause
}

// metCorruption asks a dm-verity device for that.
func (b *boot) metCorruption(name string) (bool, error) {
	status, err := b.sys.Verity.Status(name)
	return slices.ContainsFunc(status, func(s dm.Status) bool { return s.Text == "C" }), err
}

// blameInitramfs takes the blame from an image that the initramfs of another slot
// could not open: that has a configuration of its own, where the hash tree lies,
// which file system it is, what is its init. Only the slot's own one may say that
// the image is bad, unless dm-verity has seen it.
func (b *boot) blameInitramfs(ctx context.Context, slot string, foreign bool, err error) error {
	class, reason := classOf(err)
	switch {
	case class != slots.ImageFailure || reason != slots.Mount && reason != slots.Verity:
	case errors.Is(err, unix.EIO), reason == slots.Mount && b.corrupted():
	case b.underForeignInitramfs(ctx, slot, foreign):
		return environmentError(slots.WrongKernel, "cannot use slot %s under the initramfs of another: %w", slot, err)
	}
	return err
}

// underForeignInitramfs says that the running initramfs is known to be another
// slot's.
func (b *boot) underForeignInitramfs(ctx context.Context, slot string, foreign bool) bool {
	b.compareFallback(ctx)
	loaded := b.slots.observed.Loaded
	return foreign || loaded != "" && loaded != slot
}

// rootHash is the slot's root hash, when it is trusted.
func (b *boot) rootHash(ctx context.Context, slot string, foreign bool) (vouched, error) {
	part, err := b.slotPartition(slot, gpt.Sig)
	if err != nil {
		return vouched{}, err
	}
	text, err := readHead(part, signature.MaxSize)
	if err != nil {
		return vouched{}, imageError(slots.Signature, "cannot read the signature of slot %s: %w", slot, err)
	}
	root, err := trustedHash(b.cfg, b.cmd.RootHash, text, config.CertificatesDir)
	if err == nil && !root.confirmed && b.underForeignInitramfs(ctx, slot, foreign) {
		// dm-verity would find blocks that do not match, and could not tell why
		err = fmt.Errorf("%w: the slot's signature partition does not say which", errOtherRoot)
	}
	if err != nil {
		return vouched{}, b.notVouched(ctx, slot, foreign, err)
	}
	return root, nil
}

// slotPartition finds a partition of a slot. One that the table does not have
// is the slot's fault, one that is ambiguous or not shown the machine's.
func (b *boot) slotPartition(slot string, of gpt.Part) (blockdev.Partition, error) {
	part, err := b.disk.InSlot(slot, of)
	return part, blamePartition(err)
}

func blamePartition(err error) error {
	switch {
	case errors.Is(err, gpt.ErrNotFound):
		return imageError(slots.Verity, "%w", err)
	case err != nil:
		return environmentError(slots.DeviceMissing, "%w", err)
	}
	return nil
}

// openVerity opens the slot's data behind its hash tree. Everything in the
// superblock is a claim; the root hash decides whether it was true.
func (b *boot) openVerity(slot string, rootHash []byte) (dm.Device, error) {
	data, err := b.slotPartition(slot, gpt.Data)
	if err != nil {
		return dm.Device{}, err
	}
	// Where the tree lies is the configuration's to say, never the disk's.
	tree, at := data, b.cfg.Root.Verity.TreeAt()
	room := min(at, data.Size)
	if at == 0 {
		room = data.Size
		if tree, err = b.slotPartition(slot, gpt.Tree); err != nil {
			return dm.Device{}, err
		}
	}
	head, err := readPart(tree, at, verity.SuperblockSize)
	if err != nil {
		return dm.Device{}, imageError(slots.Verity, "cannot read the superblock of slot %s: %w", slot, err)
	}
	params, err := b.verityParams(slot, head, at, room, tree.Size)
	if err != nil {
		return dm.Device{}, imageError(slots.Verity, "cannot use the superblock of slot %s: %w", slot, err)
	}
	target, err := params.Table(data.DevNo(), tree.DevNo(), rootHash)
	if err != nil {
		return dm.Device{}, imageError(slots.Verity, "cannot use the superblock of slot %s: %w", slot, err)
	}
	uuid := fmt.Sprintf("CRYPT-VERITY-%x-%s", params.UUID, b.dmName())
	device, err := b.sys.Verity.Verity(b.dmName(), uuid, b.verityTarget(target))
	if err != nil {
		if errors.Is(err, dm.ErrTarget) || errors.Is(err, unix.EINVAL) {
			return dm.Device{}, imageError(slots.Verity, "cannot open slot %s: %w", slot, err)
		}
		return dm.Device{}, environmentError(slots.IOError, "cannot open slot %s: %w", slot, err)
	}
	if params.FECRoots > 0 && !device.Repairs {
		b.warn("slot %s is not repaired: root.verity.fec_roots needs a kernel with DM_VERITY_FEC", slot)
	}
	if policy := b.cfg.Root.OnCorruption; policy != string(dm.CorruptionEIO) && !device.ErrorsToo {
		b.sys.Log.Info("root: %s on a block that does not match; this kernel does not know it for one that cannot be read", policy)
	}
	return device, nil
}

// verityParams checks what a superblock at byte at of the tree's device claims
// against that device's size and the room for data. Parity is used where the
// device has room for it; an image that was made without is only not repaired.
func (b *boot) verityParams(slot string, superblock []byte, at, room, size int64) (verity.Params, error) {
	params, err := verity.ParseSuperblock(superblock)
	if err == nil {
		params, err = params.Behind(at)
	}
	if err == nil {
		err = params.Blocks(b.disk.Block.SectorSize, os.Getpagesize())
	}
	if err == nil {
		err = params.Fits(room, size)
	}
	if err != nil {
		return verity.Params{}, err
	}
	repaired := params
	repaired.FECRoots = b.cfg.Root.Verity.FECRoots
	if err := repaired.Fits(room, size); err != nil {
		b.sys.Log.Warn("slot %s is not repaired: %v", slot, err)
		return params, nil
	}
	return repaired, nil
}

func (b *boot) verityTarget(t verity.Target) dm.VerityTarget {
	return dm.VerityTarget{
		DataDevice: t.DataDev, HashDevice: t.HashDev,
		DataBlockSize: uint32(t.DataBlockSize), HashBlockSize: uint32(t.HashBlockSize),
		DataBlocks: t.DataBlocks, HashStart: t.HashStart, Algorithm: string(t.Algorithm),
		RootHash: t.RootHash, Salt: t.Salt, OnCorruption: dm.OnCorruption(b.cfg.Root.OnCorruption),
		FEC: dm.VerityFEC(t.FEC),
	}
}

// checkRoot reads, through the verified device, whether this image is meant for
// this machine and fits the running kernel.
func (b *boot) checkRoot(ctx context.Context, slot string, foreign bool, r *report.Root) error {
	root, err := mount.OpenRoot(newRoot)
	if err != nil {
		return imageError(slots.Mount, "cannot open the root of slot %s: %w", slot, err)
	}
	defer root.Close()
	text, err := readIn(root, osrelease.Path, osrelease.MaxSize)
	if err != nil {
		return imageError(slots.Mount, "cannot read %s of slot %s: %w", osrelease.Path, slot, err)
	}
	rel, err := osrelease.Parse(text)
	if err != nil {
		return imageError(slots.WrongImage, "cannot use %s of slot %s: %w", osrelease.Path, slot, err)
	}
	b.rootRelease = rel
	r.ImageID, r.ImageVersion, r.SecurityVersion = rel.ImageID, rel.ImageVersion, rel.SecurityVersion
	if rel.ImageID != b.cfg.Name {
		return imageError(slots.WrongImage, "cannot boot slot %s: it holds product %q, this machine is %q", slot, rel.ImageID, b.cfg.Name)
	}
	if rel.Layers != b.cfg.LayerSet() {
		return environmentError(slots.WrongKernel, "cannot go on with slot %s: it was built with other layers than this initramfs", slot)
	}
	if err := b.aboveFloor(slot, rel.SecurityVersion); err != nil {
		return err
	}
	if err := b.kernelAboveFloor(slot); err != nil {
		return err
	}
	// What the boot needs later is read now: a damaged image should show while
	// another slot can still be taken.
	if err := mount.CheckInit(root, b.initPath()); err != nil {
		return imageError(slots.Mount, "cannot use the root of slot %s: %w", slot, err)
	}
	if err := b.readDirs(); err != nil {
		return imageError(slots.Mount, "cannot use the image of slot %s: %w", slot, err)
	}
	if foreign || b.slots.compare {
		return b.checkModules(ctx, root, slot)
	}
	return nil
}

// checkModules: a kernel that may be another slot's must find its modules in the
// root of this one.
func (b *boot) checkModules(ctx context.Context, root *os.File, slot string) error {
	dir, err := mount.OpenBeneath(root, filepath.Join("usr/lib/modules", b.kernelRelease), unix.O_PATH|unix.O_DIRECTORY, mount.InRoot)
	if err == nil {
		return dir.Close()
	}
	if !errors.Is(err, unix.ENOENT) {
		return imageError(slots.Modules, "cannot use the modules of slot %s: %w", slot, err)
	}
	b.compareFallback(ctx)
	if b.slots.observed.Loaded == slot || b.slots.observed.Loaded == "" {
		return nil // its own kernel, which may need no module
	}
	return environmentError(slots.WrongKernel, "cannot go on with slot %s: it has no modules for the running kernel %s: %w", slot, b.kernelRelease, err)
}

// dropRoot takes a root that failed away again.
func (b *boot) dropRoot() {
	where := []string{newRoot}
	if b.cfg.Root.Usr() {
		where = []string{b.imageDir(), newRoot}
	}
	for _, w := range where {
		if err := b.sys.Mounter.Unmount(w); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			b.sys.Log.Warn("%v", err)
		}
	}
	if err := b.sys.Verity.Remove(b.dmName()); err != nil && !errors.Is(err, unix.ENXIO) {
		b.sys.Log.Warn("%v", err)
	}
	b.report.Mounts = nil
}

// readHead reads the beginning of a partition. A partition that cannot be read
// is the disk's fault, not the image's.
func readHead(p blockdev.Partition, limit int64) ([]byte, error) {
	return readPart(p, 0, min(limit, p.Size))
}

// readPart is readHead for size bytes from byte at on, or as many as there are.
func readPart(p blockdev.Partition, at, size int64) ([]byte, error) {
	f, err := os.Open(p.Node)
	if err != nil {
		return nil, &rawReadError{err}
	}
	defer f.Close()
	text := make([]byte, size)
	n, err := f.ReadAt(text, at)
	if err != nil && err != io.EOF {
		return nil, &rawReadError{err}
	}
	return text[:n], nil
}

// readIn reads a file inside a root, following no link out of it.
func readIn(root *os.File, path string, limit int64) ([]byte, error) {
	f, err := mount.OpenBeneath(root, path, unix.O_RDONLY|unix.O_NONBLOCK, mount.InRoot)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s is not a plain file", f.Name()), err)
	}
	return io.ReadAll(io.LimitReader(f, limit+1))
}
