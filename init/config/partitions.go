package config

import (
	"strings"

	"sealroot/slots/gpt"
	"sealroot/slots/guid"
)

// The values of Root.Source that this version boots.
const (
	SourceVerity = "verity" // a whole root
	// SourceUsrVerity is a /usr; the root around it is made in memory at each boot.
	SourceUsrVerity = "usr-verity"
)

// Usr says that a slot's image is a /usr and no whole root.
func (r *Root) Usr() bool { return r.Source == SourceUsrVerity }

// ImageRole is the role of the slots' images: RoleRoot or RoleUsr.
func (r *Root) ImageRole() Role {
	if r.Usr() {
		return RoleUsr
	}
	return RoleRoot
}

// Wanted is what comes first among the sets of PartitionsDiscoverable.
func (c *Config) Wanted() gpt.Wanted {
	w := gpt.Wanted{Version: c.Version}
	if c.Kernel != nil {
		w.Data, w.Tree = c.Kernel.Data, c.Kernel.Hash
	}
	return w
}

// PartUUIDs are the UUIDs of the slots' partitions (PARTUUID), by slot.
type PartUUIDs struct {
	A SlotPartUUIDs `json:"a,omitzero"`
	B SlotPartUUIDs `json:"b,omitzero"`
	C SlotPartUUIDs `json:"c,omitzero"`
}

// SlotPartUUIDs are those of one slot, lower or upper case. Hash is not given where
// the hash tree lies behind the data (Verity.TreeAtMiB).
type SlotPartUUIDs struct {
	Data      string `json:"data,omitempty"`
	Hash      string `json:"hash,omitempty"`
	Signature string `json:"signature,omitempty"`
}

// Line is them all on one line, for comparison; "" for none.
func (p *PartUUIDs) Line() string {
	var all []string
	for i, s := range p.slots() {
		if *s != (SlotPartUUIDs{}) {
			all = append(all, strings.ToLower(slotName(i)+"="+s.Data+","+s.Hash+","+s.Signature))
		}
	}
	return strings.Join(all, ";")
}

func (p *PartUUIDs) slots() [3]*SlotPartUUIDs { return [...]*SlotPartUUIDs{&p.A, &p.B, &p.C} }

func slotName(i int) string { return string(rune('a' + i)) }

// Naming is how the partitions of the slots are found on the boot disk, but for
// PartitionsDiscoverable. What is no UUID finds nothing: Validate refuses it.
func (r *Root) Naming() gpt.Naming {
	n := gpt.Naming{Usr: r.Usr()}
	if r.Partitions != PartitionsPartUUIDs {
		return n
	}
	for _, s := range r.PartUUIDs.slots() {
		var ids gpt.SlotUUIDs
		ids[gpt.Data], _ = guid.Parse(s.Data)
		ids[gpt.Tree], _ = guid.Parse(s.Hash)
		ids[gpt.Sig], _ = guid.Parse(s.Signature)
		n.UUIDs = append(n.UUIDs, ids)
	}
	return n
}
