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
	n.seqid, n.retired, n.torn, n.older, n.secondStale = 1, nil, false, nil, true
	for _, id := range slices.Sorted(maps.Keys(n.material)) {
		if err := writeSync(w, n.material[id], n.meta.keyslots[id].area.offset); err != nil {
			return nil, fmt.Errorf("cannot write keyslot %d: %w", id, err)
		}
	}
	if err := n.writeCopies(w, rand, func() error { return nil }); err != nil {
		return nil, err
	}
	n.secondStale = false
	return n, nil
}

// Update brings the changes from old, as it was read from or written to the
// disk, to new, which was made from it. At every moment one intact copy lies on
// the disk, of the old or of the new header, and all keyslots that it names open:
//
//  1. random bytes over what an update that was cut short left of removed
//     keyslots; the material of new keyslots, into areas that old does not
//     use; sync
//  2. the first copy; sync. The primary, unless the secondary is torn or
//     older: then the primary is all there is, and the secondary comes first.
//     From here on the header is the new one.
//  3. random bytes over the areas of removed keyslots; sync
//  4. the other copy; sync. Until here it still names the removed keyslots:
//     that is how the next update knows that 3 may be missing.
//
// Update returns the header as it now lies on the disk.
func Update(w Writer, old, new *Header, rand io.Reader) (*Header, error) {
	if old.uuid != new.uuid || old.hdrSize != new.hdrSize || old.seqid != new.seqid {
		return nil, errors.New("cannot update LUKS2 header: it was not made from the one on the disk")
	}
	if old.seqid == math.MaxUint64 {
		return nil, fmt.Errorf("cannot update LUKS2 header: %w: sequence id is exhausted", ErrFull)
	}
	n := new.change()
	n.seqid++
	if err := wipe(w, unused(old.leftover(), old, n), rand); err != nil {
		return nil, err
	}
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
	err := n.writeCopies(w, rand, func() error { return wipe(w, unused(n.retired, n), rand) })
	if err != nil {
		return nil, err
	}
	n.secondStale, n.torn, n.older, n.retired = false, false, nil, nil
	return n, nil
}

// leftover lists the areas of all keyslots that the older copy names. Nobody
// signed that one either: it tells what may be wiped, of what no keyslot uses.
func (h *Header) leftover() []span {
	if h.older == nil {
		return nil
	}
	m, err := parseMetadata(h.older, h.hdrSize, h.meta.segment.offset+h.meta.segment.size)
	if err != nil {
		return nil // not of an update of this volume
	}
	var areas []span
	for _, id := range slices.Sorted(maps.Keys(m.keyslots)) {
		areas = append(areas, m.keyslots[id].area)
	}
	return areas
}

// unused returns those areas that no keyslot of the headers uses and that lie
// in the keyslot area of all of them.
func unused(areas []span, headers ...*Header) []span {
	return slices.DeleteFunc(slices.Clone(areas), func(area span) bool {
		for _, h := range headers {
			if area.offset+area.size > 2*h.hdrSize+h.meta.keyslotsSize {
				return true
			}
			for _, k := range h.meta.keyslots {
				if k.area.overlaps(area) {
					return true
				}
			}
		}
		return false
	})
}

func wipe(w Writer, areas []span, rand io.Reader) error {
	for _, area := range areas {
		noise := make([]byte, area.size)
		if _, err := io.ReadFull(rand, noise); err != nil {
			return fmt.Errorf("cannot get random bytes: %w", err)
		}
		if err := writeSync(w, noise, area.offset); err != nil {
			return fmt.Errorf("cannot wipe removed keyslot: %w", err)
		}
	}
	return nil
}

// writeCopies writes both copies with fresh salts, one after the other, and
// does what belongs between them.
func (h *Header) writeCopies(w Writer, rand io.Reader, between func() error) error {
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
	if err := between(); err != nil {
		return err
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
