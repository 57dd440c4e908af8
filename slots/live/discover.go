package live

import (
	"fmt"
	"io"

	"sealroot/mount/blockdev"
	"sealroot/slots"
	"sealroot/slots/gpt"
)

// Discover finds the slots of a disk that systemd-repart or mkosi made, where
// partitions belong together by their UUIDs, see gpt.Table.Discover. From then on
// slots "a", "b" and so on are what was found, whatever the partitions' labels are.
//
// rootHash reads the root hash that a signature partition names from its content.
// Those that cannot be read are returned in skipped. slots.ErrNoSlot when no signature has its
// partitions.
func (d *Disk) Discover(wanted gpt.Wanted, rootHash func(io.ReaderAt) ([]byte, error)) (skipped []error, err error) {
	d.found = d.Table.Discover(d.naming, wanted, func(sig *gpt.Partition) []byte {
		part, err := d.shown(*sig)
		var hash []byte
		if err == nil {
			hash, err = readPartition(part, rootHash)
		}
		if err != nil {
			skipped = append(skipped, fmt.Errorf("cannot use the signature in %s: %w", part.Node, err))
		}
		return hash
	})
	if d.found == nil {
		err = fmt.Errorf("cannot find an image on %s: no signature partition names a root hash whose halves are the UUIDs of its data and hash tree: %w",
			d.Block.Node, slots.ErrNoSlot)
	}
	return skipped, err
}

func readPartition(part blockdev.Partition, rootHash func(io.ReaderAt) ([]byte, error)) ([]byte, error) {
	d, err := blockdev.Open(part.Node, false)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return rootHash(d)
}

// slotName is the name of a set that was discovered, by its place.
func slotName(i int) string { return string(rune('a' + i)) }

// InSlot is the partition that holds a part of the slot, as the kernel shows it.
func (d *Disk) InSlot(slot string, part gpt.Part) (blockdev.Partition, error) {
	for i, set := range d.found {
		if slotName(i) == slot {
			return d.shown(*set[part])
		}
	}
	entry, err := gpt.Partition{}, gpt.ErrNotFound
	if d.found == nil {
		entry, err = d.Table.InSlot(d.naming, slot, part)
	}
	if err != nil {
		return blockdev.Partition{}, fmt.Errorf("cannot find partition %s on %s: %w", d.naming.Label(slot, part), d.Block.Node, err)
	}
	return d.shown(entry)
}

// shown is a partition of the table as the kernel shows it. That the kernel and
// this program read the same table is checked: they may have met different copies
// of it.
func (d *Disk) shown(entry gpt.Partition) (blockdev.Partition, error) {
	part, ok := d.Block.Partition(entry.Number)
	if !ok || part.Start != d.Table.Offset(entry) || part.Size != d.Table.Size(entry) {
		return part, fmt.Errorf("the kernel does not show partition %d (%s) of %s as the table has it: %w",
			entry.Number, entry.Name, d.Block.Node, ErrNoDisk)
	}
	return part, nil
}
