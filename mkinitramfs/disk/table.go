package disk

import (
	"fmt"
	"io"

	"sealroot/slots/gpt"
	"sealroot/slots/guid"
)

// firstAttributes decides how the slots begin: a is committed; b is as asked.
func firstAttributes(hasB bool, state SlotState, tries int) (a, b gpt.Attributes, err error) {
	var none gpt.Attributes
	if !hasB {
		return none.WithSlot(1, 0, true), none, nil
	}
	switch state {
	case Good:
		return none.WithSlot(2, 0, true), none.WithSlot(1, 0, true), nil
	case Trial:
		return none.WithSlot(1, 0, true), none.WithSlot(2, tries, false), nil
	case Off:
		return none.WithSlot(1, 0, true), none, nil
	}
	return none, none, fmt.Errorf("cannot begin slot b as %q, only good, trial or off: %w", state, ErrOptions)
}

// writeTable writes the partition table. Every UUID is random: two slots may
// hold the same image, and tools refuse a table in which a UUID is there twice.
func writeTable(disk gpt.Device, size int64, parts []partition, attr map[string]gpt.Attributes, random io.Reader) error {
	id, err := guid.Random(random)
	if err != nil {
		return err
	}
	table, err := gpt.New(id, size, sectorSize)
	if err != nil {
		return err
	}
	for _, p := range parts {
		id, err := guid.Random(random)
		if err != nil {
			return err
		}
		kind, err := guid.Parse(p.kind)
		if err != nil {
			return err
		}
		if err := table.Add(gpt.Partition{
			Type: kind, UUID: id, Name: p.label, Attributes: attr[p.label],
			First: uint64(p.start / sectorSize), Last: uint64((p.start+p.size)/sectorSize) - 1,
		}); err != nil {
			return err
		}
	}
	return table.Write(disk)
}

// attributesOf collects the attributes by partition label.
func attributesOf(sets []set) map[string]gpt.Attributes {
	attr := map[string]gpt.Attributes{}
	for _, s := range sets {
		attr[gpt.RootLabel(s.name)] = s.attr
	}
	return attr
}
