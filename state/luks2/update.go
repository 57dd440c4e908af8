package luks2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
)

// WriteNew writes a header made by Format to a place that holds nothing of
// value: keyslots, then the secondary, then the primary, which makes it a LUKS2
// volume. It returns the header as it now lies on the disk, for later updates.
func WriteNew(w Writer, h *Header, rand io.Reader) (*Header, error) {
	n := h.change()
	n.seqid, n.retired, n.secondStale = 1, nil, true
	for _, id := range slices.Sorted(maps.Keys(n.material)) {
		if err := writeSync(w, n.material[id], n.meta.keyslots[id].area.offset); err != nil {
			return nil, fmt.Errorf("cannot write keyslot %d: %w", id, err)
		}
	}
	if err := n.writeCopies(w, rand); err != nil {
		return nil, err
	}
	n.secondStale = false
	return n, nil
}

// Update brings the changes from old, as it was read from or written to the
// disk, to new, which was made from it. At every moment one intact copy lies on
// the disk, of the old or of the new header, and the keyslots that both have
// open:
//
//  1. the material of new keyslots, into areas that old does not use; sync
//  2. the first copy; sync. The primary, unless the secondary is torn or
//     older: then the primary is all there is, and the secondary comes first.
//  3. the other copy; sync
//  4. random bytes over the areas of removed keyslots; sync
//
// A power cut between 2 and 4 leaves material that no header describes any
// more. Update returns the header as it now lies on the disk.
func Update(w Writer, old, new *Header, rand io.Reader) (*Header, error) {
	if old.uuid != new.uuid || old.hdrSize != new.hdrSize || old.seqid != new.seqid {
		return nil, errors.New("cannot update LUKS2 header: it was not made from the one on the disk")
	}
	if old.seqid == math.MaxUint64 {
		return nil, fmt.Errorf("cannot update LUKS2 header: %w: sequence id is exhausted", ErrFull)
	}
	n := new.change()
	n.seqid++
	for _, id := range slices.Sorted(maps.Keys(n.material)) {
		area := n.meta.keyslots[id].area
		if o, ok := old.meta.keyslots[id]; ok && o.area == area && bytes.Equal(old.material[id], n.material[id]) {
			continue
		}
		for oid, o := range old.meta.keyslots {
			if o.area.overlaps(area) {
				return nil, fmt.Errorf("cannot update LUKS2 header: keyslot %d would overwrite keyslot %d", id, oid)
			}
		}
		if err := writeSync(w, n.material[id], area.offset); err != nil {
			return nil, fmt.Errorf("cannot write keyslot %d: %w", id, err)
		}
	}
	if err := n.writeCopies(w, rand); err != nil {
		return nil, err
	}
	n.secondStale = false
	for _, area := range n.retired {
		noise := make([]byte, area.size)
		if _, err := io.ReadFull(rand, noise); err != nil {
			return nil, fmt.Errorf("cannot get random bytes: %w", err)
		}
		if err := writeSync(w, noise, area.offset); err != nil {
			return nil, fmt.Errorf("cannot wipe removed keyslot: %w", err)
		}
	}
	n.retired = nil
	return n, nil
}

// writeCopies writes both copies with fresh salts, one after the other.
func (h *Header) writeCopies(w Writer, rand io.Reader) error {
	text, err := h.meta.encode(h.hdrSize)
	if err != nil {
		return err
	}
	salts := make([]byte, 2*hdrSaltBytes)
	if _, err := io.ReadFull(rand, salts); err != nil {
		return fmt.Errorf("cannot get random bytes: %w", err)
	}
	c := diskCopy{hdrSize: h.hdrSize, seqid: h.seqid, label: h.label, uuid: h.uuid, subsystem: h.subsystem, json: text}
	primary := func() error {
		return writeSync(w, c.encode(0, magicPrimary, salts[:hdrSaltBytes]), 0)
	}
	second := func() error {
		return writeSync(w, c.encode(h.hdrSize, magicSecond, salts[hdrSaltBytes:]), h.hdrSize)
	}
	first, then := primary, second
	if h.secondStale {
		first, then = second, primary
	}
	if err := first(); err != nil {
		return fmt.Errorf("cannot write LUKS2 header: %w", err)
	}
	if err := then(); err != nil {
		return fmt.Errorf("cannot write second copy of LUKS2 header: %w", err)
	}
	return nil
}

func writeSync(w Writer, b []byte, offset uint64) error {
	if _, err := w.WriteAt(b, int64(offset)); err != nil {
		return err
	}
	return w.Sync()
}
