package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"sealroot/sealroot/bootset"
	"sealroot/slots/manifest"
	"sealroot/verity"
	"sealroot/verity/signature"
)

// A layer in partitions belongs to its slot as the root does: it is written while the
// slot is unbootable, read back and proved, and a rollback has the one of before. What it
// should hold is the signed manifest's word, or the configuration's that runs: whoever
// signed the root hash in its own signature partition does not count here.

// slotLayer is such a layer with its partitions open.
type slotLayer struct {
	manifest.Layer
	parts slotParts
}

// slotLayers are those of a slot.
type slotLayers []slotLayer

// openLayers opens the partitions of these layers in a slot.
func (m Machine) openLayers(slot string, list []manifest.Layer, write bool) (open slotLayers, err error) {
	for _, l := range list {
		p, err := openParts(func(part manifest.Name) (Partition, error) { return m.Disk.OpenLayer(slot, l.Name, part, write) })
		if errors.Is(err, ErrNoPartition) {
			err = fmt.Errorf("%w; build the parts with the layer from: state, or make the disk anew: %w", err, bootset.ErrRefused)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("layer %s, slot %s: %w", l.Name, slot, err), open.close())
		}
		open = append(open, slotLayer{l, p})
	}
	return open, nil
}

func (s slotLayers) close() error {
	var errs []error
	for _, l := range s {
		errs = append(errs, l.parts.close())
	}
	return errors.Join(errs...)
}

// room says whether the parts of a set fit into the partitions.
func (s slotLayers) room() error {
	for _, l := range s {
		for _, c := range []struct {
			name  manifest.Name
			room  int64
			where string
		}{
			{manifest.Root, l.parts.root.Size(), "image"}, {manifest.Verity, l.parts.verity.Size(), "hash tree"},
			{manifest.Signature, min(l.parts.signature.Size(), signature.MaxSize), "signature"},
		} {
			if size := l.Part(c.name).Size; size > c.room {
				return fmt.Errorf("the %s of layer %s has %d bytes, its partition %d: %w", c.where, l.Name, size, c.room, ErrRoom)
			}
		}
	}
	return nil
}

// writeLayers writes the layers of a set, and makes them durable.
func (m Machine) writeLayers(ctx context.Context, w work) error {
	defer m.Progress.Done()
	for _, l := range w.layers {
		for _, c := range []struct {
			part manifest.Name
			to   Partition
		}{{manifest.Signature, l.parts.signature}, {manifest.Verity, l.parts.verity}, {manifest.Root, l.parts.root}} {
			if err := m.writeLayerPart(ctx, w.set, l.Part(c.part), c.to); err != nil {
				return fmt.Errorf("layer %s: %w", l.Name, err)
			}
		}
		// crash point: a layer is whole, the slot is not bootable
		if err := l.parts.reread(); err != nil {
			return fmt.Errorf("layer %s: %w", l.Name, err)
		}
	}
	return nil
}

func (m Machine) writeLayerPart(ctx context.Context, s set, part manifest.Part, to Partition) error {
	from, err := s.openPart(part)
	if err != nil {
		return err
	}
	defer from.Close()
	if part.Name == manifest.Signature {
		text, err := io.ReadAll(from)
		if err != nil {
			return err
		}
		return writeSignature(to, text)
	}
	m.Progress.Step("write "+part.File, part.Size)
	return m.stream(ctx, to, from)
}

// verifyLayers reads the layers of a slot as a whole. Its error is ErrBad, or that of the
// disk.
func (m Machine) verifyLayers(ctx context.Context, slot string, list slotLayers) error {
	for _, l := range list {
		if _, err := m.verifyLayer(ctx, slot, l); err != nil {
			return fmt.Errorf("layer %s: %w", l.Name, err)
		}
	}
	return nil
}

func (m Machine) verifyLayer(ctx context.Context, slot string, l slotLayer) (verity.Params, error) {
	params, err := readParams(l.parts, l.RootHash)
	if err != nil {
		return verity.Params{}, err
	}
	return params, m.verifyTree(ctx, "verify layer "+l.Name+" of slot "+slot, l.parts.root, l.parts.verity, params, l.RootHash)
}

// checkSlotLayers verifies the layers in partitions that the signed manifest of a slot
// names; names and errors as of VerifyLayers.
func (m Machine) checkSlotLayers(ctx context.Context, slot string, mf manifest.Manifest) (names []string, err error) {
	var errs []error
	for _, l := range mf.InPartitions() {
		err := m.checkSlotLayer(ctx, slot, l)
		if ctx.Err() != nil {
			return names, err
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		names = append(names, l.Name)
	}
	return names, errors.Join(errs...)
}

func (m Machine) checkSlotLayer(ctx context.Context, slot string, l manifest.Layer) error {
	list, err := m.openLayers(slot, []manifest.Layer{l}, false)
	if errors.Is(err, ErrNoPartition) {
		return fmt.Errorf("%w: %w", ErrBad, err)
	}
	if err != nil {
		return err
	}
	defer list.close()
	for _, one := range list[0].parts.all() {
		if err := one.Forget(); err != nil {
			return err
		}
	}
	return m.verifyLayers(ctx, slot, list)
}

// layerCopy is a layer that is copied from slot to slot.
type layerCopy struct {
	from, to slotLayer
	params   verity.Params
}

// layerCopies are those of a copy of the running slot.
type layerCopies []layerCopy

// openCopies opens the layers of the running system in both slots, and verifies them in
// its own, unless quick.
func (m Machine) openCopies(ctx context.Context, running, target string, quick bool) (list layerCopies, err error) {
	from, err := m.openLayers(running, m.Own, false)
	if err != nil {
		return nil, err
	}
	to, err := m.openLayers(target, m.Own, true)
	if err != nil {
		return nil, errors.Join(err, from.close())
	}
	for i := range from {
		list = append(list, layerCopy{from: from[i], to: to[i]})
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, list.close())
			list = nil
		}
	}()
	for i := range list {
		c := &list[i]
		if c.params, err = readParams(c.from.parts, c.from.RootHash); err == nil {
			err = fits(c.params, c.to.parts.root.Size(), c.to.parts.verity.Size())
		}
		if err != nil {
			return list, fmt.Errorf("layer %s cannot be copied: %w", c.from.Name, err)
		}
	}
	if quick {
		return list, nil
	}
	return list, list.verify(ctx, m, running, original)
}

func (c layerCopies) close() error {
	var errs []error
	for _, l := range c {
		errs = append(errs, l.from.parts.close(), l.to.parts.close())
	}
	return errors.Join(errs...)
}

// verify reads one side of the copies as a whole.
func (c layerCopies) verify(ctx context.Context, m Machine, slot string, side func(layerCopy) slotLayer) error {
	var list slotLayers
	for _, l := range c {
		list = append(list, side(l))
	}
	return m.verifyLayers(ctx, slot, list)
}

// original is the side that is read, copied the one that is written.
func original(c layerCopy) slotLayer { return c.from }

func copied(c layerCopy) slotLayer { return c.to }

// alike tells whether both sides look the same, without reading them as a whole.
func (c layerCopies) alike() bool {
	for _, l := range c {
		var b [2][verity.SuperblockSize]byte
		for i, p := range []Partition{l.from.parts.verity, l.to.parts.verity} {
			if _, err := p.ReadAt(b[i][:], 0); err != nil {
				return false
			}
		}
		one, errA := signatureText(l.from.parts.signature)
		other, errB := signatureText(l.to.parts.signature)
		if b[0] != b[1] || errA != nil || errB != nil || !bytes.Equal(one, other) {
			return false
		}
	}
	return true
}

// write copies what the layers take of their partitions, and makes that durable.
func (c layerCopies) write(ctx context.Context, m Machine) error {
	for _, l := range c {
		if err := m.copyParts(ctx, "layer "+l.from.Name, l.from.parts, l.to.parts, l.params.HashSize(), l.params.DataSize()); err != nil {
			return fmt.Errorf("layer %s: %w", l.from.Name, err)
		}
	}
	return nil
}
