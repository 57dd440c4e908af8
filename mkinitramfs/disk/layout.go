package disk

import (
	"errors"
	"fmt"

	"sealroot/slots/gpt"
	"sealroot/slots/guid"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20

	sectorSize = 512
	// cluster is more than FAT32 gives out at once in a partition of up to 8 GiB.
	cluster = 4 * kib
	// alignment of partitions; also the room left in front of the first one
	// and behind the last one, where the two copies of the GPT are.
	alignment = mib
)

// ErrSize means that sizes do not fit together.
var ErrSize = errors.New("sizes do not fit")

// Sizes are those that a person may choose, in bytes; 0 lets layout choose.
type Sizes struct {
	Root, ESP, State, Disk int64
	// Layers are those of the data partitions of layers, by name.
	Layers map[string]int64
	// NoState leaves the state partition to the machine's first boot.
	NoState bool
}

// needs is what the images need, in bytes.
type needs struct {
	root   int64 // largest root image
	treeAt int64 // where the tree lies in the root's partition; 0: in its own
	verity func(root int64) int64
	esp    int64 // files on the ESP for one slot
	shared int64 // files on the ESP for no slot
	naming gpt.Naming
	layers []layerNeed // with partitions of their own
	state  int64       // least size of the state partition
}

// partition is one partition of the disk that is to be made.
type partition struct {
	label, kind string
	start, size int64     // bytes
	uuid        guid.GUID // zero: a random one
}

// split returns the partition up to byte at of it, and the rest.
func (p partition) split(at int64) (front, rest partition) {
	front, rest = p, p
	front.size = at
	rest.start, rest.size = p.start+at, p.size-at
	return front, rest
}

// layout decides where every partition lies, and how large the disk is.
func layout(sizes Sizes, need needs, slots []string) (parts []partition, disk int64, err error) {
	rootSize := sizes.Root
	least, more := need.root, roundUp(need.root*3/2, 16*mib) // half as much again, for the images of years of updates
	if need.treeAt > 0 {
		least = need.treeAt + need.verity(need.treeAt)
		more = roundUp(least, alignment)
	}
	if rootSize == 0 {
		rootSize = more
	}
	if rootSize < least || rootSize%alignment != 0 {
		return nil, 0, fmt.Errorf("cannot give a root slot %d bytes: it needs %d, and a slot is a multiple of 1 MiB: %w", rootSize, least, ErrSize)
	}
	espSize := sizes.ESP
	if espSize == 0 {
		// Room for three boot sets: two slots and one being written.
		espSize = max(roundUp((need.esp*3+need.shared)*5/4, 32*mib), 128*mib)
	}
	sets := int64(len(slots))
	if sets > 1 {
		sets++ // an update is written beside what it replaces
	}
	// The two tables of FAT32 take 8 bytes for each cluster of 512 or more.
	room := espSize - espSize/64 - 64*kib
	if room < need.esp*sets+need.shared || espSize < 34*mib || espSize%alignment != 0 {
		return nil, 0, fmt.Errorf("cannot give the ESP %d bytes: FAT32 begins at 34 MiB, and there are at times the files of %d slots, %d bytes each, and others of %d: %w",
			espSize, sets, need.esp, need.shared, ErrSize)
	}
	stateSize := sizes.State
	if stateSize == 0 {
		stateSize = 1024 * mib
	}
	layerSize, err := layerSizes(sizes.Layers, need.layers)
	if err != nil {
		return nil, 0, err
	}

	at := alignment
	add := func(label, kind string, size int64) {
		parts = append(parts, partition{label: label, kind: kind, start: at, size: size})
		at += size
	}
	add(gpt.LabelBIOSBoot, gpt.TypeBIOSBoot, mib)
	add(gpt.LabelESP, gpt.TypeESP, espSize)
	for _, s := range slots {
		for part, size := range [...]int64{rootSize, roundUp(need.verity(rootSize), alignment), mib} {
			if part := gpt.Part(part); part != gpt.Tree || need.treeAt == 0 {
				add(need.naming.Label(s, part), need.naming.Type(part), size)
				parts[len(parts)-1].uuid = need.naming.UUID(s, part)
			}
		}
		for _, l := range need.layers {
			size := layerSize[l.name]
			for part, size := range [...]int64{size, roundUp(l.tree(size), alignment), mib} {
				add(gpt.LayerLabel(l.name, s, gpt.Part(part)), gpt.TypeLayer, size)
			}
		}
	}
	add(gpt.LabelLog, gpt.TypeLog, mib)
	if sizes.NoState {
		if sizes.Disk != 0 && sizes.Disk < at+alignment {
			return nil, 0, fmt.Errorf("cannot make a disk of %d bytes: its partitions take %d: %w", sizes.Disk, at, ErrSize)
		}
		return parts, max(at+alignment, sizes.Disk), nil
	}
	if sizes.Disk != 0 {
		// The state is last, so that it can grow with the disk.
		if stateSize = (sizes.Disk - at - alignment) / alignment * alignment; sizes.State > 0 {
			stateSize = min(stateSize, sizes.State)
		}
	}
	if stateSize < sizes.State {
		return nil, 0, fmt.Errorf("cannot give the state %d bytes; the other partitions take %d: %w", stateSize, at, ErrSize)
	}
	if roundUp(stateSize, alignment) < need.state {
		return nil, 0, fmt.Errorf("cannot give the state %d bytes: --state-size %dM is the least for what lies there and what the first boot makes; the other partitions take %d: %w",
			stateSize, need.state/mib, at, ErrSize)
	}
	add(gpt.LabelState, gpt.TypeState, roundUp(stateSize, alignment))
	return parts, max(at+alignment, sizes.Disk), nil
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }
