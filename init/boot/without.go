package boot

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/slots"
	"sealroot/state"
)

// assemble puts the layers over the verified root, and the writable parts over them.
// What spoils that and is of the volume costs no slot: first go its layers, and then the
// volume, down the ladder of state.on_failure as one that does not open.
func (b *boot) assemble(ctx context.Context) error {
	for {
		err := b.notImage(b.putTogether(ctx))
		if class, _ := classOf(err); class != slots.StateFailure || !b.ofVolume() {
			return err
		}
		if errors.Is(err, unix.EIO) && b.corrupted() { // what was copied was not to be read
			return imageError(slots.Mount, "%w", err)
		}
		b.failed("layers", "", err)
		if b.unsigned {
			b.spoilt = errors.New(err.Error()) // what it wraps says nothing of each layer
			err = b.takeDown(true)
		} else {
			err = b.withoutState(errors.Join(err, b.takeDown(false)))
		}
		if err != nil {
			return err
		}
	}
}

func (b *boot) putTogether(ctx context.Context) error {
	if err := b.stackLayers(ctx); err != nil {
		return err
	}
	// It passed on the image alone.
	if b.layered {
		if err := b.checkInit(); err != nil {
			return imageError(slots.Mount, "cannot start %s with the layers over the image: %w", b.initPath(), err)
		}
	}
	if err := b.writable(ctx); err != nil || !b.ofVolume() {
		return err
	}
	if err := b.checkInit(); err != nil {
		return stateError(slots.StateDamaged, "cannot start %s with what the state has over the image: %w", b.initPath(), err)
	}
	return nil
}

func (b *boot) checkInit() error {
	root, err := mount.OpenRoot(newRoot)
	if err == nil {
		err = mount.CheckInit(root, b.initPath())
		root.Close()
	}
	return err
}

// notImage takes the blame from an image that passed alone, and has layers over it which
// nobody has signed.
func (b *boot) notImage(err error) error {
	if class, reason := classOf(err); class == slots.ImageFailure && b.unsigned {
		return stateError(reason, "%w", err)
	}
	return err
}

// ofVolume tells whether this boot has a state that outlives it.
func (b *boot) ofVolume() bool {
	return b.report.State.Unlocked != report.UnlockedDegraded && b.report.State.Unlocked != report.UnlockedNone
}

// takeDown takes the root apart, and mounts the image and the state partition anew. The
// volume is kept, or closed. Errors: state.ErrMapped.
func (b *boot) takeDown(keep bool) (err error) {
	_ = b.volume.outer.Close()
	b.volume.outer = nil
	_ = b.sys.Mounter.Detach(newRoot)    // one that stays keeps the volume open
	_ = b.sys.Mounter.Detach(layersRoot) // and this the layers: it did not get to the root's place
	_ = b.sys.Mounter.Detach(changesDir)
	names, _ := listDir(asideDir)
	for _, name := range names {
		_ = b.sys.Mounter.Detach(asideDir + "/" + name)
	}
	for i := range b.layers {
		b.dropLayer(i, b.layers[i])
	}
	b.layered, b.unsigned = false, false
	if v := b.volume.volume; !keep {
		if v != nil {
			err = v.Close()
		}
		b.volume.volume, b.layers, b.layersTried, b.report.LayerList, b.report.LayerTrial = nil, nil, false, "", false
		b.report.EtcImage, b.report.EtcInMemory, b.report.EtcConflicts = "", false, nil
	}
	// What cannot be mounted the next step finds out.
	if b.mountImage(b.report.Slot.Name, b.imageFS) == nil && b.outerFS.Type != "" && b.mountIn(b.outerFS, mount.Place{Root: newRoot, Path: "state"}) == nil {
		b.volume.outer, _ = openDir(stateDir)
		if keep {
			err = b.mountIn(b.volumeFS, mount.Place{Root: stateDir, Path: state.MountDir})
		}
	}
	return err
}
