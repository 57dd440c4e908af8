package config

import (
	"encoding/json"
	"strings"
	"testing"

	"sealroot/slots/gpt"
)

const uuid = "3f2b8a60-1c4d-4e5f-8a9b-0c1d2e3f4a5"

// slotUUIDs are UUIDs that differ in their last digits.
func slotUUIDs(data, hash, signature string) SlotPartUUIDs {
	return SlotPartUUIDs{uuid + data, uuid + hash, uuid + signature}
}

func TestValidatePartUUIDs(t *testing.T) {
	a, b := slotUUIDs("1", "2", "3"), slotUUIDs("4", "5", "6")
	with := func(p PartUUIDs) func(*Config) {
		return func(c *Config) { c.Root.Partitions, c.Root.PartUUIDs = PartitionsPartUUIDs, p }
	}
	check(t, goodUKI, []row{
		{"two_slots", with(PartUUIDs{A: a, B: b}), nil},
		{"three_slots", with(PartUUIDs{A: a, B: b, C: slotUUIDs("7", "8", "9")}), nil},
		{"in_upper_case", with(PartUUIDs{A: slotUUIDs("A", "b", "3"), B: b}), nil},
		{"none", with(PartUUIDs{}), []string{"root.partuuids.a"}},
		{"only_b", with(PartUUIDs{B: b}), []string{"root.partuuids.a"}},
		{"one_slot", with(PartUUIDs{A: a}), []string{"root.partuuids.b"}},
		{"one_fixed_slot", func(c *Config) { with(PartUUIDs{A: a})(c); c.Boot.Store = StoreFixed }, nil},
		{"two_fixed_slots", func(c *Config) { with(PartUUIDs{A: a, B: b})(c); c.Boot.Store = StoreFixed }, []string{"root.partuuids"}},
		{"no_signature", with(PartUUIDs{A: SlotPartUUIDs{Data: a.Data, Hash: a.Hash}, B: b}), []string{"root.partuuids.a.signature"}},
		{"no_data", with(PartUUIDs{A: a, B: SlotPartUUIDs{Hash: b.Hash, Signature: b.Signature}}), []string{"root.partuuids.b.data"}},
		{"twice_in_a_slot", with(PartUUIDs{A: slotUUIDs("1", "1", "3"), B: b}), []string{"root.partuuids.a.hash"}},
		{"twice_in_two_slots_and_another_case", with(PartUUIDs{A: slotUUIDs("a", "2", "3"), B: slotUUIDs("4", "5", "A")}), []string{"root.partuuids.b.signature"}},
		{"no_uuid", with(PartUUIDs{A: SlotPartUUIDs{"root-a", a.Hash, a.Signature}, B: b}), []string{"root.partuuids.a.data"}},
		{"zero", with(PartUUIDs{A: SlotPartUUIDs{"00000000-0000-0000-0000-000000000000", a.Hash, a.Signature}, B: b}), []string{"root.partuuids.a.data"}},
		{"tree_behind_the_data", func(c *Config) {
			with(PartUUIDs{A: SlotPartUUIDs{Data: a.Data, Signature: a.Signature}, B: SlotPartUUIDs{Data: b.Data, Signature: b.Signature}})(c)
			c.Root.Verity.TreeAtMiB = 64
		}, nil},
		{"tree_behind_the_data_and_its_partition", func(c *Config) { with(PartUUIDs{A: a, B: b})(c); c.Root.Verity.TreeAtMiB = 64 },
			[]string{"root.partuuids.a.hash", "root.partuuids.b.hash"}},
		{"by_labels", func(c *Config) { c.Root.PartUUIDs.A = a }, []string{"root.partuuids"}},
		{"new_guids", func(c *Config) { with(PartUUIDs{A: a, B: b})(c); c.Boot.NewGUIDs = NewGUIDsFirstBoot }, []string{"boot.new_guids"}},
	})
	// Without a word the GUIDs that the configuration names stay.
	c := goodUKI()
	with(PartUUIDs{A: a, B: b})(&c)
	if c = c.WithDefaults(); c.Boot.NewGUIDs != NewGUIDsNever {
		t.Errorf("boot.new_guids is %s by default, want never", c.Boot.NewGUIDs)
	}
}

// PID 1 reads the UUIDs back out of the JSON.
func TestNaming(t *testing.T) {
	c := goodUKI()
	c.Root.Source, c.Root.Partitions = SourceUsrVerity, PartitionsPartUUIDs
	c.Root.PartUUIDs = PartUUIDs{A: slotUUIDs("1", "2", "3"), C: slotUUIDs("A", "", "6")}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	read, err := Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	n := read.Root.Naming()
	for _, want := range []struct {
		slot string
		part gpt.Part
		uuid string
	}{
		{"a", gpt.Data, uuid + "1"}, {"a", gpt.Tree, uuid + "2"}, {"a", gpt.Sig, uuid + "3"},
		{"c", gpt.Data, strings.ToLower(uuid + "A")}, {"c", gpt.Tree, ""}, {"b", gpt.Data, ""}, {"d", gpt.Data, ""},
	} {
		id := n.UUID(want.slot, want.part)
		if got := id.String(); id.IsZero() != (want.uuid == "") || want.uuid != "" && got != want.uuid {
			t.Errorf("slot %s, part %d: %s, want %q", want.slot, want.part, got, want.uuid)
		}
	}
	if !n.Usr || (&Root{}).Naming().UUIDs != nil || (&Root{}).Naming().Usr {
		t.Errorf("naming %+v, and %+v of labels", n, (&Root{}).Naming())
	}
	if got, want := read.Root.PartUUIDs.Line(), "a="+uuid+"1,"+uuid+"2,"+uuid+"3;c="; !strings.HasPrefix(got, want) {
		t.Errorf("on one line %q, want %q first", got, want)
	}
}
