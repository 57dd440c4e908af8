package gpt

import (
	"strings"

	"sealroot/slots/guid"
)

// Set is the three partitions of a slot, by Part.
type Set [3]*Partition

// maxSets bounds what Discover returns: each set has the letter of a slot.
const maxSets = 15

// Discover pairs partitions by their UUIDs, as systemd-repart and mkosi give them
// (Discoverable Partitions Specification): the data's is the first half of the
// root hash, the hash tree's the last. rootHash is what a signature partition
// names; nil: nothing. A signature whose halves no partition has is left out, so
// of two that name one root hash, with one pair of partitions, the second.
//
// The order is that of the signature partitions; sets that are wanted come first.
// Labels and signatures may be anybody's: the order is no judgement, and a root hash
// is to be verified before it is used.
func (t *Table) Discover(n Naming, w Wanted, rootHash func(sig *Partition) []byte) []Set {
	var named, first, others []Set
	used := map[*Partition]bool{}
	for i := range t.Partitions {
		sig := &t.Partitions[i]
		if sig.Type.String() != n.Type(Sig) || len(named)+len(first)+len(others) == maxSets {
			continue
		}
		hash := rootHash(sig)
		if len(hash) < 32 {
			continue
		}
		set := Set{t.unused(n.Type(Data), hash, used), t.unused(n.Type(Tree), hash[len(hash)-16:], used), sig}
		if set[Data] == nil || set[Tree] == nil {
			continue
		}
		used[set[Data]], used[set[Tree]] = true, true
		switch {
		case w.names(set):
			named = append(named, set)
		case strings.HasSuffix(set[Data].Name, "_"+w.Version):
			first = append(first, set)
		default:
			others = append(others, set)
		}
	}
	return append(append(named, first...), others...)
}

// Wanted says which sets come first: those whose partitions are named, then those
// whose data is labelled with the version, as in "kiosk_2".
type Wanted struct {
	Version string
	// Data and Tree are PARTUUID=<lower case> or PARTLABEL=<label>, "" for any.
	Data, Tree string
}

func (w Wanted) names(s Set) bool {
	return w.Data+w.Tree != "" && isNamed(s[Data], w.Data) && isNamed(s[Tree], w.Tree)
}

func isNamed(p *Partition, name string) bool {
	return name == "" || name == "PARTUUID="+p.UUID.String() || name == "PARTLABEL="+p.Name
}

// unused is the first partition of a type, and not in used, whose UUID is the
// first 16 bytes of half; nil when there is none.
func (t *Table) unused(kind string, half []byte, used map[*Partition]bool) *Partition {
	id := guid.FromText([16]byte(half))
	for i := range t.Partitions {
		if p := &t.Partitions[i]; p.UUID == id && p.Type.String() == kind && !used[p] {
			return p
		}
	}
	return nil
}
