package boot

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/slots"
)

// assemble puts the layers over the verified root, and the writable parts over them.
// What the state spoils there costs the state and no slot: it goes down the ladder of
// state.on_failure as one that does not open.
func (b *boot) assemble(ctx context.Context) error {
	err := b.putTogether(ctx)
	class, reason := classOf(err)
	if class == slots.ImageFailure && b.layerOfVolume() {
		err = stateError(reason, "%w", err) // the image alone was looked at before
	} else if class != slots.StateFailure {
		return err
	}
	if !b.ofVolume() {
		return err
	}
	b.failed("layers", "", err)
	if err = b.withoutState(errors.Join(err, b.takeDown())); err == nil {
		err = b.putTogether(ctx)
	}
	return err
}

func (b *boot) putTogether(ctx context.Context) error {
	if err := b.stackLayers(ctx); err != nil {
		return err
	}
	if err := b.writable(ctx); err != nil || !b.ofVolume() {
		return err
	}
	// It passed on the image alone.
	root, err := mount.OpenRoot(newRoot)
	if err == nil {
		err = mount.CheckInit(root, b.initPath())
		root.Close()
	}
	if err != nil {
		return stateError(slots.StateDamaged, "cannot start %s with what the state has over the image: %w", b.initPath(), err)
	}
	return nil
}

// ofVolume tells whether this boot has a state that outlives it.
func (b *boot) ofVolume() bool {
	return b.report.State.Unlocked != report.UnlockedDegraded && b.report.State.Unlocked != report.UnlockedNone
}

// layerOfVolume tells whether a layer is in use that lies in the volume.
func (b *boot) layerOfVolume() bool {
	for i, l := range b.cfg.Layers {
		if l.From == config.LayerFromVolume && i < len(b.report.Layers) && b.report.Layers[i].LeftOut == "" {
			return true
		}
	}
	return false
}

// takeDown takes the root apart and closes the volume, and mounts the image and the state
// partition anew. Errors: state.ErrMapped.
func (b *boot) takeDown() error {
	v := b.volume.volume
	b.volume.volume = nil
	if b.volume.outer != nil {
		b.volume.outer.Close()
		b.volume.outer = nil
	}
	places := []string{newRoot, layersRoot}
	for _, o := range b.cfg.Overlays {
		places = append(places, aside(o.Path).Path)
	}
	for _, e := range b.cfg.Binds.Extra {
		places = append(places, aside(e.To).Path)
	}
	for _, where := range places {
		if err := b.sys.Mounter.Detach(where); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, os.ErrNotExist) {
			b.sys.Log.Warn("%v", err)
		}
	}
	for i, l := range b.report.Layers {
		if l.RootHash != "" && l.LeftOut == "" {
			b.dropLayer(i, config.Layer{Name: l.Name, From: config.LayerFromState})
		}
	}
	b.layered, b.layersTried, b.report.LayerList, b.report.LayerTrial = false, false, "", false
	var closed error
	if v != nil {
		closed = v.Close()
	}
	if err := b.mountImage(b.report.Slot.Name, b.imageFS); err != nil || b.volume.fs.Type == "" {
		return errors.Join(closed, err)
	}
	err := b.mountIn(b.volume.fs, mount.Place{Root: newRoot, Path: "state"})
	if err == nil {
		b.volume.outer, err = openDir(stateDir)
	}
	if err != nil {
		b.warn("the state partition cannot be had any more: %v", err)
	}
	return closed
}
