package main

import (
	"encoding/hex"
	"fmt"
	"slices"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/layers"
	"sealroot/sealroot/uppers"
	"sealroot/slots"
	"sealroot/slots/manifest"
	"sealroot/state/layout"
)

// layerKeeper is a machine with images of layers on its state partition.
type layerKeeper interface {
	// HeldLayers are the files that are there, as layout.LayerImage has them.
	HeldLayers() ([]string, error)
	RemoveLayer(file string) error
	// Manifest goes by the certificates in the folder trust.
	Manifest(slot, trust string) (manifest.Manifest, error)
}

// dropLayers removes the layers that no slot needs any more. What is not known to be
// unused stays: it takes room only.
func (c *command) dropLayers(t target) {
	m, ok := t.machine.(layerKeeper)
	if !ok {
		return
	}
	held, err := m.HeldLayers()
	if err == nil && len(held) == 0 {
		return
	}
	var needed []string
	if err == nil {
		needed, err = c.neededLayers(t, m)
	}
	if err != nil {
		c.say("layers that no slot needs stay on the state partition: %v", err)
		return
	}
	for _, file := range held {
		if slices.Contains(needed, file) {
			continue
		}
		if err := m.RemoveLayer(file); err != nil {
			c.say("layer %s is not removed: %v", file, err)
			continue
		}
		c.say("layer %s is removed: no slot needs it", file)
	}
}

// neededLayers are those of the configuration that runs, those that were added, and those that the signed
// manifest of each other slot names. An unbootable one may have none; with one it can
// be tried again, and be the last resort, until an install replaces it.
func (c *command) neededLayers(t target, m layerKeeper) ([]string, error) {
	cfg, err := c.env.configuration()
	if err != nil {
		return nil, err
	}
	files, images := layerFiles(cfg), []string{t.report.Root.RootHash}
	list, err := t.Store.Load()
	if err != nil {
		return nil, fmt.Errorf("cannot read the slots: %w", err)
	}
	for _, s := range list {
		if s.Name == t.boot.Running {
			continue
		}
		mf, err := m.Manifest(s.Name, report.RootCertificates)
		if err != nil && s.State() == slots.Unbootable {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("nobody says which slot %s needs: %w", s.Name, err)
		}
		images = append(images, hex.EncodeToString(mf.RootHash))
		for _, l := range mf.OnState() {
			files = append(files, layout.LayerImage(l.Name, hex.EncodeToString(l.RootHash)))
		}
	}
	if err := layers.Forget(c.env.volume(), images); err != nil {
		return nil, fmt.Errorf("cannot forget the layers of images that are gone: %w", err)
	}
	added, err := c.addedFiles(images)
	return append(files, added...), err
}

// dropWritten removes the upper layers that a slot has which was just written: also those
// of the same image, for it begins anew.
func (c *command) dropWritten(r report.Report, slot string) {
	if slot != r.Slot.Name {
		c.collectUppers(r, slot, "")
	}
}

// dropUppers removes the upper layers that a slot had with other images than this one,
// in the boot that the report is of.
func (c *command) dropUppers(r report.Report, slot, rootHash string) {
	if rootHash != "" {
		c.collectUppers(r, slot, rootHash)
	}
}

func (c *command) collectUppers(r report.Report, slot, rootHash string) {
	if r.Degraded || slot == "" {
		return
	}
	n, err := uppers.Collect(c.env.volume(), slot, rootHash)
	if n > 0 {
		c.say("slot %s: %s removed that no image uses now", slot, count(n, "upper layer", "upper layers"))
	}
	if err != nil {
		c.say("%v", err)
	}
}

func layerFiles(cfg config.Config) []string {
	var files []string
	for _, l := range cfg.FromState() {
		files = append(files, layout.LayerImage(l.Name, l.Hash))
	}
	return files
}
