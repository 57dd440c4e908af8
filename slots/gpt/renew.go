package gpt

import (
	"errors"
	"io"
	"slices"

	"sealroot/slots/guid"
)

// Fresh says that the disk is fresh: its partition of type TypeLog has the
// attribute Fresh.
func (t *Table) Fresh() bool {
	return slices.ContainsFunc(t.Partitions, isFresh)
}

func isFresh(p Partition) bool {
	return p.Type.String() == TypeLog && p.Attributes&Fresh != 0
}

// Renew gives the disk and each of its partitions a new GUID from random, and
// takes Fresh away. Both are one change of the table, in the order of
// WriteAttributes: a power cut leaves a disk that is still fresh, or one that is
// not and has its new GUIDs.
func (t *Table) Renew(d Device, random io.Reader) error {
	ids := make([]guid.GUID, len(t.Partitions)+1)
	for i := range ids {
		var err error
		if ids[i], err = guid.Random(random); err != nil {
			return err
		}
	}
	t.Disk = ids[0]
	copy(t.layout.header[offDisk:], t.Disk[:])
	for i := range t.Partitions {
		p := &t.Partitions[i]
		p.UUID = ids[i+1]
		copy(t.entry(p.Number)[16:], p.UUID[:])
		if isFresh(*p) {
			t.setAttributes(p, p.Attributes&^Fresh)
		}
	}
	return t.writeCopies(d)
}

// ByLoader finds the partition whose UUID a boot loader gave. GRUB does not look
// at checksums: of a primary copy that a power cut left half written it may have
// read a UUID that the good copy does not have.
func (t *Table) ByLoader(u guid.GUID) (Partition, error) {
	p, err := t.ByUUID(u)
	i := slices.Index(t.unchecked, u)
	if errors.Is(err, ErrNotFound) && i >= 0 && !u.IsZero() {
		return t.only(u.String(), func(p Partition) bool { return p.Number == i+1 })
	}
	return p, err
}
