package gpt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"sealroot/slots"
)

// places of the two copies on a disk of newDisk with 512-byte sectors
const (
	firstHeader   = 512
	firstEntries  = 1024
	secondHeader  = diskSize - 512
	secondEntries = diskSize - 512 - 16384
)

// damage is a change of one copy of the table or of both.
type damage struct {
	name            string
	change          func(header, entries []byte)
	primary, backup bool
	seal            bool // checksums are made right again
}

func (d damage) apply(b []byte) {
	if d.primary {
		d.change(b[firstHeader:firstHeader+minHeader], b[firstEntries:firstEntries+16384])
		if d.seal {
			reseal(b, firstHeader, firstEntries, 16384)
		}
	}
	if d.backup {
		d.change(b[secondHeader:secondHeader+minHeader], b[secondEntries:secondEntries+16384])
		if d.seal {
			reseal(b, secondHeader, secondEntries, 16384)
		}
	}
}

// check: the table can be read or not, always in the same way and without
// harm; when it has slots, one is chosen and can be saved.
func (d damage) check(t *testing.T, clean []byte) {
	t.Helper()
	b := bytes.Clone(clean)
	d.apply(b)
	first := ""
	for range 2 {
		s, disk := store(b, 512) // works on a copy
		list, err := s.Load()
		if err != nil && (!errors.Is(err, ErrNoTable) && !errors.Is(err, ErrAmbiguous) || list != nil) {
			t.Fatalf("%s: got %v, %v", d.name, list, err)
		}
		if d.primary != d.backup && !d.seal && len(list) != 2 {
			t.Fatalf("%s: with one good copy got %v, %v", d.name, list, err)
		}
		choice := fmt.Sprint(list, err)
		if len(list) > 0 {
			decision, err := slots.Decide(slots.Observed{Slots: list, LogReadable: true})
			if err != nil || !slices.ContainsFunc(list, func(s slots.Slot) bool { return s.Name == decision.Slot }) {
				t.Fatalf("%s: chosen %q of %v, %v", d.name, decision.Slot, list, err)
			}
			choice += decision.Slot
			last := &list[len(list)-1]
			last.Tries = (last.Tries + 1) % 16
			if err := s.Save(list); err == nil {
				if now, err := s.Load(); err != nil || !slices.Equal(now, list) {
					t.Fatalf("%s: saved %v, loaded %v, %v", d.name, list, now, err)
				}
			} else if !d.seal || disk.Ops() > 0 {
				t.Fatalf("%s: %v after %d writes", d.name, err, disk.Ops())
			}
		}
		if first != "" && choice != first {
			t.Fatalf("%s: got %s, then %s", d.name, first, choice)
		}
		first = choice
	}
}

// fields of the header and of the first two entries
func fields() map[string]func(header, entries []byte, value uint64) {
	out := map[string]func(header, entries []byte, value uint64){}
	header := func(name string, off, size int) {
		out[name] = func(h, _ []byte, v uint64) { put(h[off:off+size], v) }
	}
	header("signature", 0, 8)
	header("revision", 8, 4)
	header("header_size", 12, 4)
	header("header_crc", offHeaderCRC, 4)
	header("my_lba", offMyLBA, 8)
	header("other_lba", 32, 8)
	header("first_usable", offFirstUsable, 8)
	header("last_usable", offLastUsable, 8)
	header("disk_guid", 56, 8)
	header("entries_lba", offEntriesLBA, 8)
	header("count", offCount, 4)
	header("entry_size", offEntrySize, 4)
	header("entries_crc", offEntriesCRC, 4)
	for i := range 2 {
		at := (i + 1) * 128 // root-a is the second entry
		for name, off := range map[string]int{"type": 0, "uuid": 16, "first": 32, "last": 40, "attributes": 48, "name": 56} {
			out[fmt.Sprint("entry_", i+1, "_", name)] = func(_, e []byte, v uint64) { put(e[at+off:at+off+8], v) }
		}
	}
	return out
}

func put(b []byte, v uint64) {
	var whole [8]byte
	binary.LittleEndian.PutUint64(whole[:], v)
	copy(b, whole[:])
}

func TestSlotsBadInput(t *testing.T) {
	clean := newDisk(t, 512)
	n := 0
	for name, set := range fields() {
		for _, value := range []uint64{0, 1, 127, 1 << 31, 1<<63 - 1, 1<<64 - 1} {
			for _, where := range []struct{ primary, backup, seal bool }{
				{true, false, false}, {true, false, true}, {true, true, true}, {false, true, true},
			} {
				n++
				damage{fmt.Sprint(name, " ", value, " ", where), func(h, e []byte) { set(h, e, value) },
					where.primary, where.backup, where.seal}.check(t, clean)
			}
		}
	}
	if n < 200 {
		t.Errorf("only %d crafted tables", n)
	}
	rng := rand.New(rand.NewPCG(1, 618))
	for i := range 1000 {
		seed := rng.Uint64()
		damage{fmt.Sprint("random ", i), func(h, e []byte) {
			r := rand.New(rand.NewPCG(seed, 1))
			if r.IntN(3) == 0 {
				for j := range h {
					h[j] = byte(r.Uint32())
				}
			}
			for range r.IntN(8) {
				h[r.IntN(len(h))] ^= 1 << r.IntN(8)
			}
			for range 1 + r.IntN(30) {
				e[r.IntN(6*128)] = byte(r.Uint32())
			}
		}, rng.IntN(4) > 0, rng.IntN(3) == 0, rng.IntN(2) == 0}.check(t, clean)
	}
}
