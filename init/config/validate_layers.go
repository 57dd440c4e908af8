package config

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"sealroot/verity"
)

// MaxLayers is how many layers a configuration may have: each one with an image takes
// three devices, and the kernel stacks 500 directories.
const MaxLayers = 400

func (v *validator) layers(c *Config) {
	if len(c.Layers) > MaxLayers {
		v.add("layers", "", "%d layers, at most %d", len(c.Layers), MaxLayers)
		return
	}
	if len(c.Layers) > 0 && c.Root.Usr() {
		v.add("layers", "use root.source verity, or leave it out", "a /usr has no layers in this version")
	}
	if len(c.Layers) > 0 && c.State.Create == CreateNone {
		v.add("layers", "leave it out, or give the machine a state", "state.create none has nowhere to keep them")
	}
	for i, l := range c.Layers {
		at := fmt.Sprintf("layers[%d].", i)
		v.layerWords(at, l)
		if slices.ContainsFunc(c.Layers[:i], func(o Layer) bool { return o.Name == l.Name }) {
			v.add(at+"name", "", "%.40q is given twice", l.Name)
		}
		v.oneOf(at+"from", l.From, []string{LayerFromState, LayerFromVolume}, []string{"partition"})
		v.oneOf(at+"verity", l.Verity, []string{LayerVerified, LayerUnverified}, nil)
		v.oneOf(at+"on_failure", l.OnFailure, []string{LayerStop, LayerSkip}, nil)
		v.layerTrust(c, at, l)
	}
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

// FromState are the layers that are images on the state partition.
func (c *Config) FromState() []Layer {
	return slices.DeleteFunc(c.WithDefaults().Layers, func(l Layer) bool { return l.From != LayerFromState })
}

// Check says whether name and file system of a layer are ones that a configuration may
// have.
func (l Layer) Check() error {
	var v validator
	v.layerWords("", l)
	return errors.Join(v.problems...)
}

func (v *validator) layerWords(at string, l Layer) {
	if !wordOf(l.Name, 32, "abcdefghijklmnopqrstuvwxyz0123456789-") {
		v.add(at+"name", "use lower-case letters, digits and '-'", "%.80q is not a name of a layer", l.Name)
	}
	v.oneOf(at+"filesystem", l.Filesystem, []string{"squashfs", "erofs"}, nil)
}

// layerTrust: nothing that anybody can write becomes part of the root.
func (v *validator) layerTrust(c *Config, at string, l Layer) {
	inVolume := l.From == LayerFromVolume
	switch {
	case l.Verity == LayerUnverified && l.From == LayerFromState:
		v.add(at+"verity", "use required, or from: encrypted", "anybody who has the disk could change a layer from the unencrypted side")
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
		v.add(at+"hash", "give image: FILE, or the root hash in lower-case hex", "%.140q is no root hash", l.Hash)
	}
}

// embeddedLayers: in an initramfs each image is named by its root hash.
func (v *validator) embeddedLayers(c *Config) {
	for i, l := range c.Layers {
		if l.Image != "" {
			v.add(fmt.Sprintf("layers[%d].image", i), "", "the root hash is not filled in")
		}
	}
}
