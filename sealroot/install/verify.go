package install

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sealroot/slots"
	"sealroot/slots/manifest"
)

// Held is what a slot holds, all of it read and verified.
type Held struct {
	Slot        string `json:"slot"`
	RootHash    string `json:"root_hash,omitempty"`
	Certificate string `json:"certificate,omitempty"`
	// Version is that of the slot's signed manifest, "" when it has none.
	Version string `json:"version,omitempty"`
	// BootFiles says that kernel and companions are those of the signed
	// manifest; false when there is none, as on a slot made by hand.
	BootFiles bool `json:"boot_files_verified"`
	// Layers are those of the manifest that have their content: Verify names the ones in
	// partitions of the slot.
	Layers []string `json:"layers_verified,omitempty"`
	// OnState are those of the manifest on the state partition, for VerifyLayers. They are
	// no part of the slot: all slots share the place, and a boot may do without some.
	OnState []manifest.Layer `json:"-"`
	// Restored: a failure that this has disproved had lowered the slot, and it
	// has its place back.
	Restored bool `json:"restored,omitempty"`
}

// Verify reads the whole image of a slot from the medium and compares it with
// its signature, and the boot files, and the layers in partitions of the slot, with the
// signed manifest. ErrBad says what is wrong, of the layers with each one.
func (m Machine) Verify(ctx context.Context, slot string) (h Held, err error) {
	h.Slot = slot
	p, err := m.openSlot(slot, false)
	if err != nil {
		return h, err
	}
	defer p.close()
	for _, one := range p.all() {
		if err := one.Forget(); err != nil {
			return h, err
		}
	}
	im, err := m.verifyImage(ctx, slot, p)
	if err != nil {
		return h, fmt.Errorf("slot %s: %w", slot, err)
	}
	h.RootHash, h.Certificate = hexOf(im.rootHash), im.signer
	files, err := m.digestsOf(slot)
	if err != nil {
		return h, err
	}
	mf, err := m.compareBootFiles(slot, files, im)
	if err != nil {
		return h, fmt.Errorf("slot %s: %w", slot, err)
	}
	h.Version, h.BootFiles = mf.Version, mf.Version != ""
	h.OnState = mf.OnState()
	if h.Layers, err = m.checkSlotLayers(ctx, slot, mf); err != nil {
		return h, fmt.Errorf("slot %s: %w", slot, err)
	}
	return h, nil
}

// compareBootFiles compares a slot's boot files with its signed manifest. The
// result is zero, without an error, when the slot has no manifest, or only that
// of another image: then nobody vouches for the files here. Its error is ErrBad.
func (m Machine) compareBootFiles(slot string, files digests, im image) (manifest.Manifest, error) {
	mf, err := m.Manifest(slot)
	if errors.Is(err, errNoManifest) {
		return manifest.Manifest{}, nil
	}
	if err != nil {
		return manifest.Manifest{}, err
	}
	if hex.EncodeToString(mf.RootHash) != hexOf(im.rootHash) {
		return manifest.Manifest{}, nil
	}
	for _, f := range []BootFile{Kernel, Initrd, UKI} {
		part, ok := mf.Part(manifest.Name(f))
		if have := files[f]; ok && (have.size != part.Size || have.sum != part.SHA256) {
			return manifest.Manifest{}, fmt.Errorf("%s is not that of the manifest: %w", f, ErrBad)
		}
	}
	return mf, nil
}

// Proved gives a committed slot that has just been verified its place back, if
// the failure on record is one that this disproves, and names no layer on the state
// partition (OnState) that is not among those verified since; refill as for slots.Restore.
// log is told last, so that a power cut in between only leaves the reason.
func (m Machine) Proved(h Held, f slots.Failure, refill int) (restored bool, err error) {
	slot := h.Slot
	if !disproved(f) || h.blamed(f) || m.Log == nil {
		return false, nil
	}
	list, err := m.Store.Load()
	if err != nil {
		return false, fmt.Errorf("cannot read the slots: %w", err)
	}
	if s, ok := slots.Find(list, slot); !ok || !s.Successful {
		return false, nil
	}
	f.Slot = slot
	after, err := slots.Restore(list, f, refill)
	if err != nil {
		return false, err
	}
	if err := m.BeginChange(); err != nil {
		return false, err
	}
	if err := slots.Save(m.Store, after); err != nil {
		return false, err
	}
	// crash point: it has its place back, the old reason is still told
	return true, slots.Note(m.Log, slots.LogChange{Clear: []string{slot}})
}

// disproved says that a slot which verifies does not have this failure any
// more. That its kernel never came, or that nobody committed, is not disproved
// by reading it.
func disproved(f slots.Failure) bool {
	switch f.Reason {
	case slots.Verity, slots.Signature, slots.Mount, slots.IOError:
		return true
	}
	return false
}

// blamed says that the failure names a layer which was not found good. The detail is what
// init says of a layer without which it does not go on.
func (h Held) blamed(f slots.Failure) bool {
	return slices.ContainsFunc(h.OnState, func(l manifest.Layer) bool {
		return !slices.Contains(h.Layers, l.Name) && strings.Contains(f.Detail, "cannot use layer "+l.Name+":")
	})
}
