package writes

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// write is a request for a made-up record.
type write struct {
	sector, sectors uint64
	flags           Flag
	fill            byte
}

// record makes a record with sectors of 512 bytes.
func record(all ...write) []byte {
	var b bytes.Buffer
	put := func(size int, numbers ...uint64) {
		block := make([]byte, size)
		for i, n := range numbers {
			binary.LittleEndian.PutUint64(block[8*i:], n)
		}
		b.Write(block)
	}
	put(512, magic, version, uint64(len(all)), 512)
	for _, w := range all {
		put(512, w.sector, w.sectors, uint64(w.flags), 0)
		if w.flags&(Discard|Mark) == 0 {
			b.Write(bytes.Repeat([]byte{w.fill}, int(w.sectors)*512))
		}
	}
	return b.Bytes()
}

func parse(t *testing.T, data []byte) *Record {
	t.Helper()
	r, err := Read(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Two epochs, an end without a flush, and a discard that changes nothing.
var example = []write{
	{1, 2, 0, 'a'}, {5, 1, 0, 'b'}, {0, 0, Flush, 0},
	{0, 0, Flush, 0},
	{2, 1, 0, 'c'}, {7, 100, Discard, 0}, {0, 0, Flush, 0},
	{6, 2, FUA, 'd'},
}

func content(t *testing.T, d *Disk) string {
	t.Helper()
	all := make([]byte, 8*512)
	if _, err := d.ReadAt(all, 0); err != nil {
		t.Fatal(err)
	}
	var text []byte
	for i := 0; i < len(all); i += 512 {
		if got := all[i : i+512]; !bytes.Equal(got, bytes.Repeat(got[:1], 512)) {
			t.Fatalf("sector %d is mixed", i/512)
		}
		text = append(text, all[i])
	}
	return string(text)
}

func TestReplay(t *testing.T) {
	r := parse(t, record(example...))
	d := NewDisk(bytes.NewReader(bytes.Repeat([]byte{'.'}, 8*512)))
	want := []string{".aa..b..", ".ac..b..", ".ac..bdd"}
	epochs := Epochs(r.Entries)
	if len(epochs) != len(want) {
		t.Fatalf("%d epochs, want %d", len(epochs), len(want))
	}
	for i, epoch := range epochs {
		before := d.Clone()
		if err := d.ApplyAll(r, epoch); err != nil {
			t.Fatal(err)
		}
		if got := content(t, d); got != want[i] {
			t.Errorf("after epoch %d: %s, want %s", i, got, want[i])
		}
		if i > 0 && content(t, before) != want[i-1] {
			t.Errorf("the clone changed with the disk: %s", content(t, before))
		}
	}
	if n := r.Before(r.Entries[3].at - 512); n != 3 {
		t.Errorf("%d entries before the fourth, want 3", n)
	}
	clone := d.Clone()
	clone.blocks[1] = bytes.Repeat([]byte{'x'}, 512)
	if d.Digest(2*512, 6*512) != clone.Digest(2*512, 6*512) || d.Digest(0, 8*512) == clone.Digest(0, 8*512) {
		t.Error("the digest is not that of its range")
	}
	part := make([]byte, 700)
	if _, err := d.ReadAt(part, 4*512+500); err != nil || string(part[11:14]) != ".bb" || part[699] != 'd' {
		t.Errorf("a read across blocks: %q, %v", part, err)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, bytes.Repeat([]byte{'.'}, 8*512), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Save(path); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := content(t, NewDisk(f)); got != want[2] {
		t.Errorf("saved: %s, want %s", got, want[2])
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte{'.'}, 8*512), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.SaveRange(path, 2*512, 4*512); err != nil { // ".ac..bdd" from the third to the sixth
		t.Fatal(err)
	}
	if got, want := content(t, NewDisk(f)), "c..b...."; got != want {
		t.Errorf("a range saved: %s, want %s", got, want)
	}
}

// Every half-done epoch is one that a disk may have, and many come up.
func TestTorn(t *testing.T) {
	r := parse(t, record(write{0, 2, 0, 'a'}, write{1, 2, 0, 'b'}, write{4, 1, FUA, 'c'}, write{0, 0, Flush, 0}))
	random := rand.New(rand.NewPCG(1, 1))
	seen := map[string]bool{}
	for range 500 {
		d := NewDisk(bytes.NewReader(bytes.Repeat([]byte{'.'}, 8*512)))
		if err := d.Torn(r, Epochs(r.Entries)[0], random); err != nil {
			t.Fatal(err)
		}
		seen[content(t, d)] = true
	}
	for _, want := range []string{"........", "aa......", "a.......", "abb.....", ".bb.....", ".b......", "abb.c...", "....c..."} {
		if !seen[want] {
			t.Errorf("%s never came", want)
		}
	}
	for got := range seen {
		if got[2] == 'b' && got[1] != 'b' {
			t.Errorf("%s: a write came in without its beginning", got)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	good := record(example...)
	change := func(at int, v byte) []byte {
		b := bytes.Clone(good)
		b[at] = v
		return b
	}
	for name, data := range map[string][]byte{
		"empty":             nil,
		"cut_in_super":      good[:20],
		"cut_in_header":     good[:520],
		"cut_in_data":       good[:512+512+512],
		"magic":             change(0, 0),
		"version":           change(8, 2),
		"too_many_entries":  change(23, 1),
		"more_than_fit":     change(17, 1),
		"no_sector_size":    change(25, 0),
		"odd_sector_size":   change(24, 3),
		"sector_far_away":   change(512+7, 0x40),
		"many_sectors":      change(512+8+5, 1),
		"unknown_flag":      change(512+16+1, 1),
		"data_past_the_end": change(512+8+2, 1),
	} {
		if _, err := Read(bytes.NewReader(data), int64(len(data))); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, want ErrFormat", name, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(record(example...))
	f.Add(record())
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Read(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			if r != nil {
				t.Error("a record beside an error")
			}
			return
		}
		for _, epoch := range Epochs(r.Entries) {
			for _, e := range epoch {
				if e.Length > int64(len(data)) {
					t.Fatalf("an entry of %d bytes in %d", e.Length, len(data))
				}
			}
		}
	})
}
