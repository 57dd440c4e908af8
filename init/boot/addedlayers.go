package boot

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/state/layerlist"
	"sealroot/state/layout"
	"sealroot/verity/signature"
)

// What the machine's own list changes about the layers (state/layerlist). The list is
// root's of the running system: which names may be added is the configuration's word, and
// a certificate of the initramfs vouches for each image.
//
// Crash points: that a list is tried is on stable storage before anything of it is used.
//   - a cut in front of that leaves it untried: the next boot tries it
//   - a cut behind it, at whatever time before the commit, is a boot that did not come up:
//     the next one goes by the list before, or by none
//   - what cannot be noted is not tried

// errUnproved: neither is the list good with this image, nor is this its trial.
var errUnproved = errors.New("the boot with it did not come up, or waits")

// layersOfBoot are the layers of the configuration, and those that were added. What the
// report has of each comes along; one with LeftOut is not even looked at.
func (b *boot) layersOfBoot() []config.Layer {
	all := b.cfg.Layers[:len(b.cfg.Layers):len(b.cfg.Layers)]
	list, err := b.machineLayers()
	if err != nil {
		b.warn("the list of added layers does not count: %v", err)
	}
	for _, e := range list {
		if e.Hash != "" {
			all = append(all, config.Layer{Name: e.Name, From: config.LayerFromState, Hash: e.Hash, Filesystem: b.cfg.Root.Filesystem, OnFailure: config.LayerSkip})
		}
	}
	notes := make([]report.Layer, len(all))
	for i := range all {
		l, note := &all[i], &notes[i]
		note.Name, note.RootHash = l.Name, l.Hash
		if i >= len(b.cfg.Layers) {
			note.Source = report.LayerAdded
			if !b.cfg.AllowsLayer(l.Name) {
				note.LeftOut = "layers_allowed of this image does not name it"
			}
		}
		if !list.Off(l.Name) {
			continue
		}
		if l.OnFailure == config.LayerSkip {
			note.LeftOut = report.LayerOff
		} else {
			b.warn("layer %s is not turned off: this image needs it", l.Name)
		}
	}
	b.report.Layers = notes
	return all
}

// machineLayers is the list that this boot goes by. What is wrong with one costs no boot.
func (b *boot) machineLayers() (layerlist.List, error) {
	if b.volume.volume == nil { // what is in its place is anybody's
		return nil, nil
	}
	volume, err := mount.OpenRoot(encryptedDir)
	if err != nil {
		return nil, err
	}
	defer volume.Close()
	image := b.report.Root.RootHash
	text, err := readIn(volume, layerlist.File, layerlist.MaxSize)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	good, err := readIn(volume, layerlist.GoodFile(image), layerlist.MaxSize)
	noGood := errors.Is(err, os.ErrNotExist)
	list, err := layerlist.Parse(text) // of what cannot be read: an error
	if err == nil && !bytes.Equal(text, good) {
		if b.layersTried = b.tryLayers(volume, image, layerlist.ID(text)); !b.layersTried {
			err = errUnproved
		}
	}
	if err != nil {
		b.warn("the list of added layers does not count: %v", err)
		if noGood {
			return nil, nil
		}
		if list, err = layerlist.Parse(good); err != nil {
			return nil, err
		}
		text = good
	}
	b.report.LayerList, b.report.LayerTrial = layerlist.ID(text), b.layersTried
	return list, nil
}

// tryLayers tells whether this boot tries a list that the image was never good with, and
// has noted that then.
func (b *boot) tryLayers(volume *os.File, image, list string) bool {
	// Without them nothing was asked for.
	text, _ := readIn(volume, layerlist.ProofsFile, layerlist.MaxProofsSize)
	// The last try of a slot shows whether it comes up by itself, and a boot after a
	// fallback is to save the machine.
	slot := &b.report.Slot
	hold := b.volume.readOnly() || b.report.FellBack != nil || slot.Trial && slot.TriesAfter == 0
	use, next := layerlist.Proofs(text).Use(image, list, slot.Trial, hold)
	if use {
		if err := saveProofs(volume, string(next)); err != nil {
			b.warn("cannot note a trial of layers: %v", err)
			return false
		}
		b.giveBack() // with boot.recount: the next boot shows what a committed slot is worth
	}
	return use
}

// forgetLayers takes the image's list from it, when layers of that are in use: the next
// boot goes without.
func (b *boot) forgetLayers() bool {
	if !slices.ContainsFunc(b.report.Layers, func(l report.Layer) bool { return l.Source != "" && l.LeftOut == "" }) {
		return false
	}
	b.warn("an added layer may be damaged; the next boot goes without added layers")
	if err := os.Remove(encryptedDir + "/" + layerlist.GoodFile(b.report.Root.RootHash)); err != nil {
		b.warn("%v", err)
	}
	return true
}

// saveProofs replaces the proofs, durably.
func saveProofs(volume *os.File, text string) error {
	return replaceFile(volume, layerlist.ProofsFile, []byte(text))
}

// replaceFile replaces a file of the private directory, durably.
func replaceFile(volume *os.File, path string, text []byte) error {
	dir, err := mount.OpenBeneath(volume, layout.Private, unix.O_RDONLY|unix.O_DIRECTORY, mount.Strict)
	if err != nil {
		return err
	}
	defer dir.Close()
	return replaceIn(dir, path[len(layout.Private)+1:], text, 0o600)
}

// replaceIn does that for a file of any directory.
func replaceIn(dir *os.File, name string, text []byte, mode uint32) error {
	at, temp := int(dir.Fd()), name+layout.PendingSuffix
	_ = unix.Unlinkat(at, temp, 0) // else it cannot be made
	err := keep(dir, temp, text)
	if err == nil {
		err = unix.Fchmodat(at, temp, mode, 0)
	}
	// crash point: the old file, and one that the next save removes
	if err == nil {
		err = unix.Renameat(at, temp, at, name)
	}
	if err == nil {
		err = dir.Sync()
	}
	return err
}

// vouch verifies who signed an image that was added.
func (b *boot) vouch(l config.Layer, sig io.ReaderAt) error {
	certs, err := certificatesOf(config.CertificatesDir, b.cfg.LayerRoles())
	if err != nil {
		return err
	}
	claim, err := signature.Read(sig)
	if err != nil {
		return err
	}
	hash, _, err := signature.Verify(claim, certs)
	if err != nil {
		return err
	}
	if hex.EncodeToString(hash) != l.Hash {
		return errNoImage
	}
	return nil
}
