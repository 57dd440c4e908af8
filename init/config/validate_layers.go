package config

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sealroot/slots/gpt"
	"sealroot/verity"
)

// MaxLayers is how many layers a configuration may have: each one with an image takes
// three devices, and the kernel stacks 500 directories.
const MaxLayers = 400

// MaxPartitionLayers is how many layers may have partitions of their own: six each, of
// the 128 that a table has at least.
const MaxPartitionLayers = 16

func (v *validator) layers(c *Config) {
	if len(c.Layers) > MaxLayers {
		v.add("layers", "", "%d layers, at most %d", len(c.Layers), MaxLayers)
		return
	}
	inPartitions := len(c.FromPartitions())
	if len(c.Layers) > inPartitions && c.State.Create == CreateNone {
		v.add("layers", "use from: partition, leave it out, or give the machine a state", "state.create none has nowhere to keep them")
	}
	if inPartitions > MaxPartitionLayers {
		v.add("layers", "use from: state for some", "%d layers have partitions, at most %d", inPartitions, MaxPartitionLayers)
	}
	v.layersAllowed(c)
	for i, l := range c.Layers {
		at := fmt.Sprintf("layers[%d].", i)
		v.layerWords(at, l)
		if slices.ContainsFunc(c.Layers[:i], func(o Layer) bool { return o.Name == l.Name }) {
			v.add(at+"name", "", "%.40q is given twice", l.Name)
		}
		v.oneOf(at+"from", l.From, []string{LayerFromState, LayerFromPartition, LayerFromVolume}, nil)
		v.oneOf(at+"verity", l.Verity, []string{LayerVerified, LayerUnverified}, nil)
		v.oneOf(at+"on_failure", l.OnFailure, []string{LayerStop, LayerSkip}, nil)
		if l.Build != "" {
			v.oneOf(at+"build", string(l.Build), []string{string(Development)}, nil)
		}
		v.layerTrust(c, at, l)
	}
}

// layersAllowed: what may be added must be signed, and listed where nobody from outside
// writes.
func (v *validator) layersAllowed(c *Config) {
	const at = "layers_allowed"
	if len(c.LayersAllowed) == 0 {
		return
	}
	switch {
	case len(c.LayersAllowed) > MaxLayers:
		v.add(at, "", "%d names, at most %d", len(c.LayersAllowed), MaxLayers)
		return
	case c.State.Create == CreateNone || c.State.Plain():
		v.add(at, "leave it out, or give the machine an encrypted volume", "the list of what was added must lie where nobody from outside can change it")
	case len(c.LayerRoles()) == 0:
		v.add(at, "name the certificate of those who may sign layers in trust.layer", "no certificate: no layer could ever be added")
	}
	// What is added is measured after the state is unsealed: no enrolment could seal to that.
	if slices.Contains(c.State.TPM2.PCRs, c.WithDefaults().Trust.MeasurePCR) {
		v.add(at, "leave it out, or that PCR out of state.tpm2.pcrs", "state.tpm2.pcrs holds trust.measure_pcr, which added layers change after the state was unlocked")
	}
	for i, p := range c.LayersAllowed {
		if p == "" || !wordOf(strings.TrimSuffix(p, "*")+"-", 33, layerName) {
			v.add(fmt.Sprintf("%s[%d]", at, i), "use lower-case letters, digits and '-', and '*' as the last one", "%.80q is neither a name of a layer nor the beginning of one", p)
		}
	}
}

// AllowsLayer tells whether the running system may add a layer of that name.
func (c *Config) AllowsLayer(name string) bool {
	allowed := false
	for _, p := range c.LayersAllowed {
		begins, ok := strings.CutSuffix(p, "*")
		allowed = allowed || p == name || ok && strings.HasPrefix(name, begins)
	}
	return allowed && !c.HasLayer(name)
}

// HasLayer tells whether the configuration names a layer so.
func (c *Config) HasLayer(name string) bool {
	for _, l := range c.Layers {
		if l.Name == name {
			return true
		}
	}
	return false
}

// LayerSet tells which layers come over the root, in one word; "" for none. The root's
// os-release has it, so that no initramfs puts its own layers over another slot's root.
func (c *Config) LayerSet() string {
	if len(c.Layers) == 0 {
		return ""
	}
	sum := sha256.New()
	for _, l := range c.WithDefaults().Layers {
		sum.Write([]byte(l.Name + " " + l.From + " " + l.Hash + "\n"))
	}
	return hex.EncodeToString(sum.Sum(nil)[:16])
}

// OfBuild is the configuration without the layers that are for development builds only,
// unless it is one.
func (c Config) OfBuild() Config {
	if c.Build != Development {
		c.Layers = slices.DeleteFunc(slices.Clone(c.Layers), func(l Layer) bool { return l.Build == Development })
	}
	return c
}

// FromState are the layers that are images on the state partition.
func (c *Config) FromState() []Layer {
	return slices.DeleteFunc(c.WithDefaults().Layers, func(l Layer) bool { return l.From != LayerFromState })
}

// FromPartitions are the layers that are images in partitions of the slot.
func (c *Config) FromPartitions() []Layer {
	return slices.DeleteFunc(c.WithDefaults().Layers, func(l Layer) bool { return l.From != LayerFromPartition })
}

// Images are the layers that have a root hash.
func (c *Config) Images() []Layer {
	return slices.DeleteFunc(c.WithDefaults().Layers, func(l Layer) bool { return l.From == LayerFromVolume })
}

// Check says whether name and file system of a layer are ones that a configuration may
// have.
func (l Layer) Check() error {
	var v validator
	v.layerWords("", l)
	return errors.Join(v.problems...)
}

// layerName are the characters of a layer's name.
const layerName = "abcdefghijklmnopqrstuvwxyz0123456789-"

// IsLayerName tells whether a layer may have that name.
func IsLayerName(name string) bool { return wordOf(name, 32, layerName) }

func (v *validator) layerWords(at string, l Layer) {
	if !IsLayerName(l.Name) {
		v.add(at+"name", "use lower-case letters, digits and '-'", "%.80q is not a name of a layer", l.Name)
	}
	v.oneOf(at+"filesystem", l.Filesystem, []string{"squashfs", "erofs"}, nil)
}

// layerTrust: nothing that anybody can write becomes part of the root.
func (v *validator) layerTrust(c *Config, at string, l Layer) {
	inVolume := l.From == LayerFromVolume
	switch {
	case l.Verity == LayerUnverified && !inVolume:
		v.add(at+"verity", "use required, or from: encrypted", "anybody who has the disk could change a layer from the unencrypted side")
	case l.From == LayerFromPartition && c.Root.Partitions != PartitionsLabels:
		v.add(at+"from", "use state, or root.partitions labels", "its partitions are found by labels, and root.partitions is %s", c.Root.Partitions)
	case l.From == LayerFromPartition && len(l.Name) > gpt.MaxLayerName:
		v.add(at+"name", "use a shorter one, or from: state", "%.40q has more than the %d characters that fit into the label of a partition", l.Name, gpt.MaxLayerName)
	case l.Verity == LayerVerified && inVolume:
		v.add(at+"verity", "use none, or from: state", "a layer in the encrypted volume is a directory, which has no hash tree")
	case inVolume && l.OnFailure == LayerStop:
		v.add(at+"on_failure", "use skip", "a new volume has no layers, and a machine whose volume does not open could not be helped")
	case inVolume && c.State.Plain():
		v.add(at+"from", "use state, or an encrypted volume", "with state.unlock plain anybody who has the disk could change it")
	case inVolume && (l.Hash != "" || l.Image != ""):
		v.add(at+"hash", "leave it out", "a directory has no root hash")
	case !inVolume && l.Hash != "" && l.Image != "":
		v.add(at+"image", "leave one of them out", "hash and image both say which image is meant")
	case !inVolume && l.Image == "" && !verity.IsRootHash(l.Hash):
		v.add(at+"hash", "give image: FILE; only for an initramfs alone, not for `disk` or `parts`, also hash: its root hash in lower-case hex", "%.140q is no root hash", l.Hash)
	}
}

// embeddedLayers: in an initramfs each image is named by its root hash.
func (v *validator) embeddedLayers(c *Config) {
	for i, l := range c.Layers {
		if l.Image != "" {
			v.add(fmt.Sprintf("layers[%d].image", i), "", "the root hash is not filled in")
		}
		if l.Build == Development && c.Build != Development {
			v.add(fmt.Sprintf("layers[%d].build", i), "", "a %s build has no layers of development", c.Build)
		}
	}
}
