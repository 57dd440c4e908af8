package gpt

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"sealroot/slots/guid"
)

func idOf(b byte) guid.GUID { return guid.FromText([16]byte(bytes.Repeat([]byte{b}, 16))) }

// tableOf has partitions of these labels, with UUIDs that count up from 1.
func tableOf(labels ...string) *Table {
	t := &Table{}
	for i, l := range labels {
		t.Partitions = append(t.Partitions, Partition{Number: i + 1, UUID: idOf(byte(i + 1)), Name: l})
	}
	return t
}

func TestInSlot(t *testing.T) {
	table := tableOf("root-a", "root-a-verity", "root-a-verity-sig", "usr-a", "usr-a-verity", "usr-a-verity-sig", "usr-b", "usr-b")
	byUUID := Naming{UUIDs: []SlotUUIDs{{idOf(6), {}, idOf(2)}, {}, {idOf(9), idOf(1)}}}
	for _, tt := range []struct {
		name   string
		naming Naming
		slot   string
		want   string // numbers of data, tree and signature, or why not
	}{
		{"roots", Naming{}, "a", "1 2 3"},
		{"usr", Naming{Usr: true}, "a", "4 5 6"},
		{"twice", Naming{Usr: true}, "b", "ambiguous none none"},
		{"by_uuid_whatever_the_label", byUUID, "a", "6 none 2"},
		{"slot_without_uuids", byUUID, "b", "none none none"},
		{"uuid_that_no_partition_has", byUUID, "c", "none 1 none"},
		{"slot_beyond_all", byUUID, "d", "none none none"},
	} {
		got := ""
		for _, part := range []Part{Data, Tree, Sig} {
			p, err := table.InSlot(tt.naming, tt.slot, part)
			switch {
			case errors.Is(err, ErrNotFound):
				got += " none"
			case errors.Is(err, ErrAmbiguous):
				got += " ambiguous"
			default:
				got += fmt.Sprint(" ", p.Number)
			}
		}
		if got[1:] != tt.want {
			t.Errorf("%s: got%s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestSlotsByNaming(t *testing.T) {
	table := tableOf("root-a", "root-b", "usr-a", "usr-c", "root-a-verity", "usr-", "rootx-c")
	for want, n := range map[string]Naming{
		"ab": {}, "ac": {Usr: true}, "b": {UUIDs: []SlotUUIDs{{}, {idOf(3)}}},
	} {
		list, err := table.Slots(n)
		got := ""
		for _, s := range list {
			got += s.Name
		}
		if err != nil || got != want {
			t.Errorf("%+v: slots %q, %v, want %q", n, got, err, want)
		}
	}
}

func TestNamingOf(t *testing.T) {
	for _, tt := range []struct {
		labels []string
		usr    bool
	}{
		{[]string{"root-a", "root-b"}, false}, {[]string{"usr-a", "usr-b"}, true}, {[]string{"root-a", "usr-a"}, false},
		{[]string{"usr-a", "usr-a"}, true}, {[]string{"root-a", "root-a", "usr-a"}, false}, {[]string{"esp"}, false},
	} {
		if got := NamingOf(tableOf(tt.labels...)); got.Usr != tt.usr {
			t.Errorf("%q: /usr %t, want %t", tt.labels, got.Usr, tt.usr)
		}
	}
}

// A set whose partitions are named comes before the one of the version; a name that
// none has changes nothing.
func TestDiscoverWanted(t *testing.T) {
	table, read := repartTable(
		repartRow{kind: TypeRoot, half: 0xa1, label: "x_1"}, repartRow{kind: TypeVerity, half: 0xa2, label: "t1"}, repartRow{kind: TypeSig, half: 7, hash: hashOf(0xa1, 0xa2)},
		repartRow{kind: TypeRoot, half: 0xb1, label: "x_2"}, repartRow{kind: TypeVerity, half: 0xb2, label: "t2"}, repartRow{kind: TypeSig, half: 8, hash: hashOf(0xb1, 0xb2)})
	for _, tt := range []struct {
		data, tree string
		first      int
	}{
		{"", "", 4}, {"PARTUUID=" + idOf(0xa1).String(), "", 1}, {"", "PARTLABEL=t1", 1}, {"PARTLABEL=x_1", "PARTLABEL=t1", 1},
		{"PARTLABEL=x_1", "PARTLABEL=t2", 4}, {"PARTLABEL=none", "", 4}, {"x_1", "", 4},
	} {
		sets := table.Discover(Naming{}, Wanted{Version: "2", Data: tt.data, Tree: tt.tree}, read)
		if len(sets) != 2 || sets[0][Data].Number != tt.first {
			t.Errorf("%q, %q: %d first of %d, want %d of 2", tt.data, tt.tree, sets[0][Data].Number, len(sets), tt.first)
		}
	}
}

// A disk of systemd-repart with a root and a /usr of one root hash: each layout
// takes its own types.
func TestDiscoverUsr(t *testing.T) {
	hash := hashOf(0xa1, 0xa2)
	table, read := repartTable(
		repartRow{kind: TypeRoot, half: 0xa1}, repartRow{kind: TypeVerity, half: 0xa2}, repartRow{kind: TypeSig, half: 7, hash: hash},
		repartRow{kind: TypeUsr, half: 0xa1}, repartRow{kind: TypeUsrVerity, half: 0xa2}, repartRow{kind: TypeUsrSig, half: 8, hash: hash})
	for first, n := range map[int]Naming{1: {}, 4: {Usr: true}} {
		sets := table.Discover(n, Wanted{Version: "1"}, read)
		if len(sets) != 1 || sets[0][Data].Number != first || sets[0][Tree].Number != first+1 || sets[0][Sig].Number != first+2 {
			t.Errorf("%+v: got %v, want partitions %d to %d", n, sets, first, first+2)
		}
	}
}
