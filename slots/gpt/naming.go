package gpt

import "sealroot/slots/guid"

// Part is what a partition is to its slot.
type Part int

// The parts of a slot.
const (
	Data Part = iota // the image: a root, or /usr
	Tree             // the hash tree
	Sig              // the signature
)

// Naming says how the partitions of the slots are found in a table. The zero value
// is that of roots, by their labels.
type Naming struct {
	// Usr: the slots hold a /usr in place of a whole root.
	Usr bool
	// UUIDs are those of the partitions of slots a, b and so on; nil: partitions are
	// found by label.
	UUIDs []SlotUUIDs
}

// SlotUUIDs are the UUIDs of a slot's partitions, by Part. That of the Tree is zero
// where the hash tree lies behind the data.
type SlotUUIDs [3]guid.GUID

// Label is the label that a part of the slot has.
func (n Naming) Label(slot string, part Part) string {
	return n.prefix() + slot + suffix(part)
}

func suffix(part Part) string { return [...]string{"", "-verity", "-verity-sig"}[part] }

// MaxLayerName is how many characters of a layer's name LayerLabel has room for.
const MaxLayerName = 17

// LayerLabel is the label that a part of the slot's layer of that name has.
func LayerLabel(layer, slot string, part Part) string {
	return "layer-" + layer + "-" + slot + suffix(part)
}

func (n Naming) prefix() string {
	if n.Usr {
		return "usr-"
	}
	return "root-"
}

// Type is the type of the partition that holds part.
func (n Naming) Type(part Part) string {
	if n.Usr {
		return [...]string{TypeUsr, TypeUsrVerity, TypeUsrSig}[part]
	}
	return [...]string{TypeRoot, TypeVerity, TypeSig}[part]
}

// InSlot finds a part of the slot, with the errors of ByName.
func (t *Table) InSlot(n Naming, slot string, part Part) (Partition, error) {
	if n.UUIDs == nil {
		return t.ByName(n.Label(slot, part))
	}
	id := n.UUID(slot, part)
	if id.IsZero() {
		return Partition{}, ErrNotFound
	}
	return t.ByUUID(id)
}

// UUID is that of a part of the slot; zero when none is named.
func (n Naming) UUID(slot string, part Part) guid.GUID {
	for i, ids := range n.UUIDs {
		if slot == string(rune('a'+i)) {
			return ids[part]
		}
	}
	return guid.GUID{}
}

// NamingOf is that of a disk of which nothing else is known: by labels, and by those
// of /usr where there is no slot with a root.
func NamingOf(t *Table) Naming {
	usr := Naming{Usr: true}
	roots, err := t.Slots(Naming{})
	if err != nil || len(roots) > 0 {
		return Naming{}
	}
	if list, err := t.Slots(usr); err != nil || len(list) > 0 {
		return usr
	}
	return Naming{}
}
