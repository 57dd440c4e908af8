package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"sealroot/init/config"
	"sealroot/mkinitramfs/layer"
	"sealroot/slots/gpt"
	"sealroot/slots/manifest"
)

// Layers in partitions of the slot (from: partition): the image of a layer is taken
// apart into the parts that a root has, and each goes into a partition of its own.

// unpackLayer writes the parts of a layer into the folder of the set.
func (p *parts) unpackLayer(described manifest.Layer, l config.Layer) (manifest.Layer, error) {
	im, image, err := openLayer(l, described.RootHash)
	if err != nil {
		return described, fmt.Errorf("cannot take layer %s apart: %w", l.Name, err)
	}
	defer image.Close()
	signed, err := io.ReadAll(im.Signed)
	if err != nil {
		return described, fmt.Errorf("cannot take layer %s apart: %w", l.Name, err)
	}
	content := map[manifest.Name]io.Reader{
		manifest.Signature: bytes.NewReader(bytes.TrimRight(signed, "\x00")), manifest.Verity: im.Tree, manifest.Root: im.Data,
	}
	for _, name := range manifest.LayerParts() {
		file := "layer-" + l.Name + "." + l.Filesystem
		if name != manifest.Root {
			file = "layer-" + l.Name + "." + string(name)
		}
		part, err := writeLayerPart(filepath.Join(p.dir, file), content[name])
		if err != nil {
			return described, fmt.Errorf("cannot take layer %s apart: %w", l.Name, err)
		}
		part.Name, part.File = name, file
		described.Parts = append(described.Parts, part)
	}
	p.inPartitions = append(p.inPartitions, partitioned{described, im.Params})
	return described, nil
}

// openLayer reads the image of a layer as a whole. It is the one that the configuration
// has the root hash of.
func openLayer(l config.Layer, rootHash []byte) (layer.Image, *os.File, error) {
	im, f, err := layer.OpenFile(l.Image, layer.Read)
	if err == nil && !bytes.Equal(im.Signature.RootHash, rootHash) {
		err = fmt.Errorf("%s has root hash %x, the configuration %x: %w", l.Image, im.Signature.RootHash, rootHash, layer.ErrImage)
		return layer.Image{}, nil, errors.Join(err, f.Close())
	}
	return im, f, err
}

func writeLayerPart(path string, content io.Reader) (manifest.Part, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return manifest.Part{}, err
	}
	_, err = io.Copy(f, content)
	if err := errors.Join(err, f.Close()); err != nil {
		return manifest.Part{}, err
	}
	return digest(path)
}

// layerNeed is what the layers of one name need in each slot, in bytes.
type layerNeed struct {
	name string
	data int64
	tree func(data int64) int64
}

// layerNeeds are those of all slots that are filled: each slot gets partitions for all.
func layerNeeds(sets []set) []layerNeed {
	var needs []layerNeed
	for _, s := range sets {
		for _, l := range s.parts.inPartitions {
			tree := func(data int64) int64 {
				p := l.params
				p.DataBlocks = uint64(data / int64(p.DataBlockSize))
				return p.AreaSize()
			}
			data := l.Part(manifest.Root).Size
			i := slices.IndexFunc(needs, func(n layerNeed) bool { return n.name == l.Name })
			if i < 0 {
				needs = append(needs, layerNeed{l.Name, data, tree})
				continue
			}
			other := needs[i].tree
			needs[i].data = max(needs[i].data, data)
			needs[i].tree = func(data int64) int64 { return max(other(data), tree(data)) }
		}
	}
	return needs
}

// layerSizes are the sizes of the data partitions, by name of the layer: those asked
// for, else half as much again as a layer needs.
func layerSizes(asked map[string]int64, needs []layerNeed) (map[string]int64, error) {
	sizes := map[string]int64{}
	for _, n := range needs {
		size := asked[n.name]
		if size == 0 {
			size = roundUp(n.data*3/2, 4*mib)
		}
		if size < n.data || size%alignment != 0 {
			return nil, fmt.Errorf("cannot give layer %s %d bytes: it needs %d, and a partition is a multiple of 1 MiB: %w", n.name, size, n.data, ErrSize)
		}
		sizes[n.name] = size
	}
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		if sizes[name] == 0 {
			return nil, fmt.Errorf("cannot give layer %s a size: no slot has it in a partition (from: partition): %w", name, ErrSize)
		}
	}
	return sizes, nil
}

// placeInPartitions copies the layers of a slot into their partitions.
func placeInPartitions(disk *os.File, at map[string]partition, s set) error {
	for _, l := range s.parts.inPartitions {
		for _, part := range l.Parts {
			of, ok := part.Name.Partition()
			if !ok {
				return fmt.Errorf("cannot place %s of layer %s: no partition is for it", part.Name, l.Name)
			}
			to := at[gpt.LayerLabel(l.Name, s.name, of)]
			if err := copyFile(disk, to, filepath.Join(s.parts.dir, part.File)); err != nil {
				return err
			}
		}
	}
	return nil
}

// readOnlyLayers gives the partitions of layers their attributes: nobody is to mount one
// for writing.
func readOnlyLayers(attr map[string]gpt.Attributes, parts []partition) {
	for _, p := range parts {
		if p.kind == gpt.TypeLayer {
			attr[p.label] |= gpt.ReadOnly
		}
	}
}
