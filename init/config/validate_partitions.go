package config

import (
	"fmt"

	"sealroot/slots/guid"
)

// partitions checks how the partitions of a slot are found.
func (v *validator) partitions(c *Config) {
	const at = "root.partitions"
	r := c.Root
	v.oneOf(at, r.Partitions, []string{PartitionsLabels, PartitionsDiscoverable, PartitionsPartUUIDs}, nil)
	if r.Partitions == PartitionsPartUUIDs {
		v.partUUIDs(c)
	} else if r.PartUUIDs != (PartUUIDs{}) {
		v.add("root.partuuids", "leave it out, or use root.partitions: "+PartitionsPartUUIDs, "root.partitions is %s: nothing would be found by them", r.Partitions)
	}
	if r.Partitions != PartitionsDiscoverable {
		return
	}
	if c.Boot.Store != StoreFixed {
		v.add(at, "use boot.store: fixed, or labels", "discoverable has no slots that boot.store %s could count", c.Boot.Store)
	}
	if r.Verity.TreeAtMiB != 0 {
		v.add(at, "leave root.verity.tree_at_mib out, or use labels", "discoverable finds the hash tree in a partition of its own")
	}
	if c.Boot.Loader == LoaderGRUB {
		v.add(at, "use boot.loader: uki or systemd-boot", "discoverable is for disks of systemd-repart and mkosi, and boot.loader grub for those of `mkinitramfs disk`")
	}
}

// partUUIDs wants each slot whole, and each UUID once.
func (v *validator) partUUIDs(c *Config) {
	const at = "root.partuuids"
	p := c.Root.PartUUIDs
	none := SlotPartUUIDs{}
	fixed := c.Boot.Store == StoreFixed
	switch {
	case p.A == none:
		v.add(at+".a", "give data, hash and signature", "missing: there is no slot without it")
	case fixed && (p.B != none || p.C != none):
		v.add(at, "leave slots b and c out", "boot.store fixed has one slot")
	case !fixed && p.B == none:
		v.add(at+".b", "give data, hash and signature, or use boot.store: fixed", "missing: boot.store %s needs a second slot", c.Boot.Store)
	}
	first := map[guid.GUID]string{}
	for i, s := range p.slots() {
		if *s == none {
			continue
		}
		for _, part := range []struct{ key, uuid string }{{"data", s.Data}, {"hash", s.Hash}, {"signature", s.Signature}} {
			path := fmt.Sprintf("%s.%s.%s", at, slotName(i), part.key)
			behind := part.key == "hash" && c.Root.Verity.TreeAtMiB != 0
			id, err := guid.Parse(part.uuid)
			switch {
			case behind && part.uuid == "":
			case behind:
				v.add(path, "leave it out", "root.verity.tree_at_mib has the hash tree in the partition of the data")
			case part.uuid == "":
				v.add(path, "give the partition's UUID", "missing")
			case err != nil || id.IsZero():
				v.add(path, "write it as uuidgen does", "%.40q is no UUID of a partition", part.uuid)
			case first[id] != "":
				v.add(path, "give each partition a UUID of its own", "it is that of %s", first[id])
			default:
				first[id] = path
			}
		}
	}
}
