package layers

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/slots/manifest"
	"sealroot/verity/osrelease"
)

// Errors below are bootset.ErrRefused.
func refused(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, bootset.ErrRefused)...)
}

// Ready tells whether this boot has a list that counts: in an open encrypted volume.
func Ready(cfg config.Config, r report.Report) error {
	switch {
	case cfg.State.Create == config.CreateNone:
		return refused("this machine keeps no state (state.create: none), so it keeps no list of layers")
	case cfg.State.Plain():
		return refused("the state is not encrypted (state.unlock: plain): whoever has the disk could change a list of layers")
	case r.Degraded:
		return refused("this boot is degraded, its state was not opened (see sealroot status)")
	}
	return nil
}

// MayAdd tells whether the configuration that runs lets a layer of that name be added.
func MayAdd(cfg config.Config, name string) error {
	switch {
	case cfg.HasLayer(name):
		return refused("layer %s is one of the image's own; an image with another one brings that", name)
	case len(cfg.LayersAllowed) == 0:
		return refused("the image that runs allows no further layers (layers_allowed of its configuration)")
	case !cfg.AllowsLayer(name):
		return refused("the image that runs does not allow a layer %s, but %q (layers_allowed of its configuration)", name, cfg.LayersAllowed)
	}
	return nil
}

// Fits tells whether a layer is for the system that runs.
func Fits(layer, root osrelease.Release, kernel string) error {
	if layer.Extends(root, kernel) {
		return nil
	}
	of, this := layer.Versus(root, kernel)
	return refused("the layer is for %s, this is %s", of, this)
}

// FitsSet tells whether a layer that was added will be used with a set of parts, as far
// as its manifest tells. Its error is for people.
func FitsSet(name string, layer osrelease.Release, m manifest.Manifest) error {
	if slices.ContainsFunc(m.Layers, func(l manifest.Layer) bool { return l.Name == name }) {
		return errors.New("the image has one of its own")
	}
	if m.System == nil {
		if layer.Kernel != "" && layer.Kernel != m.KernelRelease {
			return fmt.Errorf("it is for kernel %s, the image has %s", layer.Kernel, m.KernelRelease)
		}
		return nil
	}
	next := config.Config{LayersAllowed: strings.Fields(m.System.LayersAllowed)}
	if !next.AllowsLayer(name) {
		return errors.New("layers_allowed of the image does not name it")
	}
	root := osrelease.Release{ID: m.System.ID, VersionID: m.System.VersionID, SysextLevel: m.System.SysextLevel}
	if !layer.Extends(root, m.KernelRelease) {
		of, image := layer.Versus(root, m.KernelRelease)
		return fmt.Errorf("it is for %s, the image is %s", of, image)
	}
	return nil
}

// MayTurnOff tells whether a layer is one that this machine can do without: one that was
// added, or one of the image with on_failure skip.
func MayTurnOff(cfg config.Config, added bool, name string) error {
	for _, l := range cfg.Layers {
		if l.Name != name {
			continue
		}
		if l.OnFailure != config.LayerSkip {
			return refused("the image needs layer %s (its on_failure is %s)", name, l.OnFailure)
		}
		return nil
	}
	if !added {
		return refused("there is no layer %s (see sealroot layer list)", name)
	}
	return nil
}

// Room refuses what would leave less than keep bytes free of the state partition.
func Room(size, free, keep int64) error {
	if size <= free-keep {
		return nil
	}
	return refused("the layer has %d MiB, and of the %d MiB free on the state partition %d stay free; a smaller volume leaves it more, as sealroot state resize -%dM makes it", size>>20, free>>20, keep>>20, (size-free+keep+1<<20-1)>>20)
}
