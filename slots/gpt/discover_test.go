package gpt

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"sealroot/slots/guid"
)

// hashOf is a root hash whose halves are bytes of two values.
func hashOf(first, last byte) []byte {
	return append(bytes.Repeat([]byte{first}, 16), bytes.Repeat([]byte{last}, 16)...)
}

// repartTable is a table as systemd-repart makes them. A row is type, what half of
// a root hash its UUID is (a byte), and a label; signatures name a root hash.
type repartRow struct {
	kind  string
	half  byte
	label string
	hash  []byte
}

func repartTable(rows ...repartRow) (*Table, func(*Partition) []byte) {
	t := &Table{}
	hashes := map[int][]byte{}
	for i, r := range rows {
		id := guid.FromText([16]byte(bytes.Repeat([]byte{r.half}, 16)))
		t.Partitions = append(t.Partitions, Partition{Number: i + 1, Type: guid.Must(r.kind), UUID: id, Name: r.label})
		hashes[i+1] = r.hash
	}
	return t, func(p *Partition) []byte { return hashes[p.Number] }
}

func TestDiscover(t *testing.T) {
	one, two := hashOf(0xa1, 0xa2), hashOf(0xb1, 0xb2)
	root := func(half byte, label string) repartRow { return repartRow{kind: TypeRoot, half: half, label: label} }
	tree := func(half byte) repartRow { return repartRow{kind: TypeVerity, half: half} }
	sig := func(id byte, hash []byte) repartRow { return repartRow{kind: TypeSig, half: id, hash: hash} }
	esp := repartRow{kind: TypeESP, half: 1, label: "esp"}
	for _, tt := range []struct {
		name string
		rows []repartRow
		want string // sets of root, verity and sig, by number
	}{
		{"one", []repartRow{esp, root(0xa1, ""), tree(0xa2), sig(9, one)}, "[2 3 4]"},
		{"two_in_another_order", []repartRow{sig(8, two), sig(9, one), tree(0xa2), tree(0xb2), root(0xa1, ""), root(0xb1, "")}, "[6 4 1] [5 3 2]"},
		{"the_version_first", []repartRow{root(0xa1, "kiosk_1"), tree(0xa2), sig(8, one), root(0xb1, "kiosk_2"), tree(0xb2), sig(9, two)}, "[4 5 6] [1 2 3]"},
		{"several_signatures", []repartRow{root(0xb1, ""), tree(0xb2), sig(7, one), sig(8, nil), sig(9, two)}, "[1 2 5]"},
		{"an_image_twice_with_random_uuids", []repartRow{root(0xa1, ""), tree(0xa2), sig(7, one), root(0x77, ""), tree(0x78), sig(8, one)}, "[1 2 3]"},
		{"an_image_twice_with_equal_uuids", []repartRow{root(0xa1, ""), tree(0xa2), sig(7, one), root(0xa1, ""), tree(0xa2), sig(8, one)}, "[1 2 3] [4 5 6]"},
		{"no_tree", []repartRow{root(0xa1, ""), sig(9, one)}, ""},
		{"tree_of_another", []repartRow{root(0xa1, ""), tree(0xb2), sig(9, one)}, ""},
		{"a_half_of_the_wrong_type", []repartRow{root(0xa2, ""), tree(0xa1), sig(9, one)}, ""},
		{"a_hash_that_is_too_short", []repartRow{root(0xa1, ""), tree(0xa1), sig(9, one[:16])}, ""},
		{"a_longer_hash", []repartRow{root(0xa1, ""), tree(0xb2), sig(9, slices.Concat(one, two))}, "[1 2 3]"},
		{"a_hash_in_no_signature", []repartRow{root(0xa1, ""), tree(0xa2), {kind: TypeState, half: 9, hash: one}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table, hash := repartTable(tt.rows...)
			if tt.name == "a_hash_in_no_signature" {
				hash = func(*Partition) []byte { t.Error("a partition of another type is read"); return nil }
			}
			got := ""
			for _, s := range table.Discover(Naming{}, Wanted{Version: "2"}, hash) {
				got += fmt.Sprintf(" [%d %d %d]", s[Data].Number, s[Tree].Number, s[Sig].Number)
			}
			if got != tt.want && got != " "+tt.want {
				t.Errorf("got%s, want %s", got, tt.want)
			}
		})
	}
	// As many signatures as a table can hold do not make more slots than letters.
	var rows []repartRow
	for range 200 {
		rows = append(rows, root(0xa1, ""), tree(0xa2), sig(9, one))
	}
	table, hash := repartTable(rows...)
	if got := table.Discover(Naming{}, Wanted{Version: ""}, hash); len(got) != maxSets {
		t.Errorf("got %d sets, want %d", len(got), maxSets)
	}
}

// The judge: what Debian's systemd-repart makes is found as it means it.
func TestDiscoverJudge(t *testing.T) {
	for kind, n := range map[string]Naming{"root": {}, "usr": {Usr: true}} {
		t.Run(kind, func(t *testing.T) { discoverJudge(t, kind, n) })
	}
}

func discoverJudge(t *testing.T, kind string, n Naming) {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string) {
		if err := os.WriteFile(at(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(at("repart.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	write("root.img", string(bytes.Repeat([]byte("root"), 64<<10)))
	for _, slot := range []string{"1", "2"} { // repart takes another salt for each
		part := func(place, ofType, verity, more string) {
			write("repart.d/"+slot+place+".conf", "[Partition]\nType="+ofType+"\nVerity="+verity+"\nVerityMatchKey="+slot+"\n"+more)
		}
		part("0", kind+"-x86-64", "data", "Label=kiosk_"+slot+"\nCopyBlocks="+at("root.img")+"\nSizeMaxBytes=10M\n")
		part("1", kind+"-x86-64-verity", "hash", "SizeMaxBytes=10M\n")
		part("2", kind+"-x86-64-verity-sig", "signature", "")
	}
	run(t, true, "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-keyout", at("key"), "-out", at("crt"))
	run(t, true, "systemd-repart", "--definitions="+at("repart.d"), "--empty=create", "--size=auto", "--dry-run=no",
		"--private-key="+at("key"), "--certificate="+at("crt"), at("disk"))
	b, err := os.ReadFile(at("disk"))
	if err != nil {
		t.Fatal(err)
	}
	table, err := Read(bytes.NewReader(b), int64(len(b)), 512)
	if err != nil {
		t.Fatal(err)
	}
	sets := table.Discover(n, Wanted{Version: "2"}, func(p *Partition) []byte {
		var sig struct {
			RootHash string `json:"rootHash"`
		}
		text := b[table.Offset(*p):][:table.Size(*p)]
		if err := json.Unmarshal(bytes.TrimRight(text, "\x00"), &sig); err != nil {
			t.Fatal(err)
		}
		hash, err := hex.DecodeString(sig.RootHash)
		if err != nil {
			t.Fatal(err)
		}
		return hash
	})
	if len(sets) != 2 || sets[0][Data].Name != "kiosk_2" || sets[1][Data].Name != "kiosk_1" {
		t.Fatalf("got %d sets, want kiosk_2 and kiosk_1", len(sets))
	}
	for _, s := range sets {
		if s[Tree].Number != s[Data].Number+1 || s[Sig].Number != s[Data].Number+2 {
			t.Errorf("root %d goes with %d and %d, want those behind it", s[Data].Number, s[Tree].Number, s[Sig].Number)
		}
	}
}
