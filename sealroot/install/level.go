package install

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"

	"sealroot/sealroot/rollbackfloor"
	"sealroot/slots"
	"sealroot/slots/manifest"
	"sealroot/verity/signature"
)

// Level finds the security version of a slot's image: that of the image that
// runs, when it is the same one, else what the slot's signed manifest says of its
// signed root hash. The image itself is not read: one that is damaged does not
// boot, whatever the rollback floor. What cannot be read counts as unknown, but
// for a slot without a signature that the store calls not bootable: it is empty.
func (m Machine) Level(s slots.Slot, r Running) rollbackfloor.Level {
	slot := s.Name
	l := rollbackfloor.Level{Slot: slot}
	unknown := func(err error) rollbackfloor.Level {
		l.Why = err.Error()
		return l
	}
	p, err := m.openSlot(slot, false)
	if err != nil {
		return unknown(err)
	}
	defer p.close()
	sig, err := signature.Read(p.signature)
	if errors.Is(err, signature.ErrFormat) && s.State() == slots.Unbootable {
		l.Empty = true // bootable, an initramfs with root.hash starts it all the same
		return l
	}
	if err != nil {
		return unknown(err)
	}
	// The slot's own initramfs may trust somebody whom this one does not.
	hash, _, err := signature.Verify(sig, m.Certs)
	if err != nil {
		return unknown(err)
	}
	if hexOf(hash) == r.RootHash {
		l.Version, l.Known = r.SecurityVersion, true
		return l
	}
	mf, err := m.Manifest(slot)
	if err != nil {
		return unknown(err)
	}
	if !bytes.Equal(mf.RootHash, hash) {
		return unknown(fmt.Errorf("its signed manifest is that of another image, root hash %s", hex.EncodeToString(mf.RootHash)))
	}
	l.Version, l.Known = mf.SecurityVersion, true
	return l
}

// Sealed is config.State.SealedUnder of a slot's image, as its signed manifest has it.
func (m Machine) Sealed(slot string) (string, error) {
	mf, err := m.Manifest(slot)
	return mf.Sealed, err
}

// errNoManifest: nobody says what a slot holds.
var errNoManifest = errors.New("it has no signed manifest")

// Manifest reads the slot's signed manifest. Errors: ErrBad, and those of the disk.
func (m Machine) Manifest(slot string) (manifest.Manifest, error) {
	var text, message []byte
	err := m.ESP.With(false, func(dir Folder) (err error) {
		if text, err = readFile(dir, slot, Manifest); err == nil {
			message, err = readFile(dir, slot, ManifestSignature)
		}
		return err
	})
	if err != nil {
		return manifest.Manifest{}, err
	}
	if text == nil {
		return manifest.Manifest{}, errNoManifest
	}
	mf, _, err := manifest.Open(text, message, m.Certs)
	if err != nil {
		return manifest.Manifest{}, fmt.Errorf("%w: %w", ErrBad, err)
	}
	return mf, nil
}
