package gpt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"testing"

	"sealroot/slots"
	"sealroot/slots/guid"
	"sealroot/slots/slotstest"
)

const (
	diskSize = 3 << 19
	unit     = 128 << 10 // size of each partition
)

// newDisk makes the table of a small sealroot disk.
func newDisk(t testing.TB, sectorSize int) []byte {
	t.Helper()
	table, err := New(testGUID(1), diskSize, sectorSize)
	if err != nil {
		t.Fatal(err)
	}
	at := uint64(unit / sectorSize)
	for i, p := range []Partition{
		{Type: guid.Must(TypeESP), Name: LabelESP},
		{Type: guid.Must(TypeRoot), Name: RootLabel("a"), Attributes: Attributes(1<<60).WithSlot(1, 0, true)},
		{Type: guid.Must(TypeVerity), Name: VerityLabel("a")},
		{Type: guid.Must(TypeSig), Name: SigLabel("a")},
		{Type: guid.Must(TypeRoot), Name: RootLabel("b"), Attributes: Attributes(0).WithSlot(2, 3, false)},
		{Type: guid.Must(TypeState), Name: LabelState},
	} {
		p.UUID, p.First, p.Last = testGUID(byte(10+i)), at, at+uint64(unit/sectorSize)-1
		at = p.Last + 1
		if err := table.Add(p); err != nil {
			t.Fatal(err)
		}
	}
	d := slotstest.NewDisk(make([]byte, diskSize))
	if err := table.Write(d); err != nil {
		t.Fatal(err)
	}
	return d.Bytes()
}

func testGUID(n byte) guid.GUID {
	g, err := guid.Random(bytes.NewReader(bytes.Repeat([]byte{n}, 16)))
	if err != nil {
		panic(err)
	}
	return g
}

func store(b []byte, sectorSize int) (Store, *slotstest.Disk) {
	d := slotstest.NewDisk(b)
	return Store{Dev: d, Size: d.Size(), SectorSize: sectorSize}, d
}

func TestReadWhatWasWritten(t *testing.T) {
	for _, sectorSize := range []int{512, 4096} {
		b := newDisk(t, sectorSize)
		table, err := Read(bytes.NewReader(b), int64(len(b)), sectorSize)
		if err != nil {
			t.Fatal(err)
		}
		if table.PrimaryBad != nil || table.BackupBad != nil || table.Differ || table.Disk != testGUID(1) {
			t.Errorf("%d: got %+v", sectorSize, table)
		}
		p, err := table.ByName("root-b")
		if err != nil || p.Number != 5 || table.Offset(p) != 5*unit || table.Size(p) != unit || p.UUID != testGUID(14) {
			t.Errorf("%d: got %+v, %v", sectorSize, p, err)
		}
		if _, err := table.ByName("root-c"); !errors.Is(err, ErrNotFound) {
			t.Errorf("got %v, want ErrNotFound", err)
		}
		if q, err := table.ByUUID(testGUID(14)); err != nil || q != p {
			t.Errorf("by UUID: got %+v, %v", q, err)
		}
	}
}

func TestAttributes(t *testing.T) {
	a := Attributes(1<<60|1<<2).WithSlot(3, 5, true)
	if a.Priority() != 3 || a.Tries() != 5 || !a.Successful() || a != 1<<60|1<<56|5<<52|3<<48|1<<2 {
		t.Errorf("got %s", a)
	}
	if got, want := a.String(), "0x1153000000000004 (priority 3, tries 5, successful)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if a := a.WithSlot(99, -1, false); a != 1<<60|15<<48|1<<2 {
		t.Errorf("clamped: got %s", a)
	}
}

func TestStoreChangesOnlySlotBits(t *testing.T) {
	b := newDisk(t, 512)
	s, d := store(b, 512)
	got, err := s.Load()
	want := []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Tries: 3}}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("got %v, %v, want %v", got, err, want)
	}
	if err := s.Save(want); err != nil || d.Ops() != 0 {
		t.Errorf("saving the same: %v, %d operations, want none", err, d.Ops())
	}
	want[1].Tries = 2
	if err := s.Save(want); err != nil {
		t.Fatal(err)
	}
	table, err := Read(d, d.Size(), 512)
	if err != nil || table.Differ {
		t.Fatalf("got %+v, %v", table, err)
	}
	if p, _ := table.ByName("root-a"); p.Attributes != 1<<60|1<<56|1<<48 {
		t.Errorf("root-a: got %s, want bit 60 kept", p.Attributes)
	}
	// nothing but the tries (byte 6 of the attributes of entry 5, in both
	// copies) and the checksums may differ
	changed := 0
	for i, c := range d.Bytes() {
		if c != b[i] {
			changed++
		}
	}
	if changed > 2*(1+4+4) {
		t.Errorf("%d bytes changed, want at most 18", changed)
	}
	if err := s.Save([]slots.Slot{{Name: "c"}}); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown slot: got %v, want ErrNotFound", err)
	}
}

func TestStoreLocks(t *testing.T) {
	s, d := store(newDisk(t, 512), 512)
	var trace []string
	s.Lock = func() (func() error, error) {
		trace = append(trace, fmt.Sprint("lock at ", d.Ops()))
		return func() error { trace = append(trace, fmt.Sprint("unlock at ", d.Ops())); return nil }, nil
	}
	if err := s.Save([]slots.Slot{{Name: "b"}}); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(trace), "[lock at 0 unlock at 6]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	busy := errors.New("busy")
	s.Lock = func() (func() error, error) { return nil, busy }
	if err := s.Save([]slots.Slot{{Name: "b", Priority: 1}}); !errors.Is(err, busy) || d.Ops() != 6 {
		t.Errorf("got %v after %d operations, want busy and no write", err, d.Ops())
	}
}

func TestAmbiguousSlots(t *testing.T) {
	b := newDisk(t, 512)
	table, err := Read(bytes.NewReader(b), int64(len(b)), 512)
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Add(Partition{Type: guid.Must(TypeRoot), UUID: testGUID(99), First: 3000, Last: 3010, Name: "root-a"}); err != nil {
		t.Fatal(err)
	}
	s, d := store(b, 512)
	if err := table.Write(d); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Load(); !errors.Is(err, ErrAmbiguous) || got != nil {
		t.Errorf("got %v, %v, want ErrAmbiguous", got, err)
	}
	if _, err := table.ByName("root-a"); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("got %v, want ErrAmbiguous", err)
	}
}

func TestAddRefuses(t *testing.T) {
	b := newDisk(t, 512)
	table, err := Read(bytes.NewReader(b), int64(len(b)), 512)
	if err != nil {
		t.Fatal(err)
	}
	ok := Partition{Type: guid.Must(TypeRoot), UUID: testGUID(99), First: 3000, Last: 3010, Name: "x"}
	tests := map[string]struct {
		change func(*Partition)
		want   error
	}{
		"overlap":        {func(p *Partition) { p.First = 300 }, ErrOverlap},
		"same_uuid":      {func(p *Partition) { p.UUID = testGUID(10) }, ErrOverlap},
		"same_number":    {func(p *Partition) { p.Number = 1 }, ErrOverlap},
		"backwards":      {func(p *Partition) { p.Last = p.First - 1 }, ErrBounds},
		"into_entries":   {func(p *Partition) { p.First = 33 }, ErrBounds},
		"behind_the_end": {func(p *Partition) { p.Last = table.LastUsable + 1 }, ErrBounds},
		"long_name":      {func(p *Partition) { p.Name = "0123456789012345678901234567890123456" }, ErrName},
	}
	for name, tt := range tests {
		p := ok
		tt.change(&p)
		if err := table.Add(p); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", name, err, tt.want)
		}
	}
	if err := table.Add(ok); err != nil {
		t.Errorf("control: %v", err)
	}
}

func TestOneBadCopyIsRepaired(t *testing.T) {
	clean := newDisk(t, 512)
	last := len(clean) - 512
	tests := []struct {
		name            string
		damage          int
		primary, backup error
	}{
		{name: "primary_header", damage: 512 + 60, primary: ErrChecksum},
		{name: "primary_signature", damage: 512, primary: ErrHeader},
		{name: "primary_entries", damage: 1024 + 130, primary: ErrChecksum},
		{name: "backup_header", damage: last + 60, backup: ErrChecksum},
		{name: "backup_entries", damage: last - 16384 + 130, backup: ErrChecksum},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := bytes.Clone(clean)
			b[tt.damage] ^= 0xff
			s, d := store(b, 512)
			table, err := Read(d, d.Size(), 512)
			if err != nil || !errors.Is(table.PrimaryBad, tt.primary) || !errors.Is(table.BackupBad, tt.backup) {
				t.Fatalf("got %v, primary %v, backup %v", err, table.PrimaryBad, table.BackupBad)
			}
			list, err := s.Load()
			if err != nil {
				t.Fatal(err)
			}
			if same, err := s.Unchanged(list); same || err != nil {
				t.Errorf("a damaged copy counts as unchanged: %v, %v", same, err)
			}
			if err := s.Save(list); err != nil {
				t.Fatal(err)
			}
			if same, err := s.Unchanged(list); !same || err != nil {
				t.Errorf("a whole table counts as changed: %v, %v", same, err)
			}
			list[0].Priority ^= 1
			if same, err := s.Unchanged(list); same || err != nil {
				t.Errorf("another priority counts as unchanged: %v, %v", same, err)
			}
			if !bytes.Equal(d.Bytes(), clean) {
				t.Error("saving unchanged slots did not restore the copy")
			}
		})
	}
	b := bytes.Clone(clean)
	b[512]++
	b[last]++
	if table, err := Read(bytes.NewReader(b), int64(len(b)), 512); !errors.Is(err, ErrNoTable) || table != nil {
		t.Errorf("both bad: got %v, %v, want ErrNoTable", table, err)
	}
}

func TestLargerDisk(t *testing.T) {
	b := append(newDisk(t, 512), make([]byte, unit)...)
	s, d := store(b, 512)
	if err := s.Save([]slots.Slot{{Name: "b", Priority: 2, Tries: 1}}); err != nil {
		t.Fatal(err)
	}
	table, err := Read(d, d.Size(), 512)
	if err != nil || table.PrimaryBad != nil || table.BackupBad != nil || table.Differ {
		t.Errorf("got %+v, %v, want both copies good where they were", table, err)
	}
}

// Every subset of the sectors written before the cut leaves a readable table
// with the old or the new slots, also when one copy was bad to begin with.
func TestPowerCutAtEveryWrite(t *testing.T) {
	clean := newDisk(t, 512)
	for _, damage := range []int{-1, 512 + 60, len(clean) - 512 + 60} {
		for cut := range 8 {
			b := bytes.Clone(clean)
			if damage >= 0 {
				b[damage] ^= 0xff
			}
			s, d := store(b, 512)
			d.CutAfter(cut)
			err := s.Save([]slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Tries: 2}})
			if (err == nil) != (cut >= 6) {
				t.Fatalf("cut after %d: got %v", cut, err)
			}
			for _, out := range d.Outcomes(16, uint64(cut)) {
				s, _ := store(out, 512)
				got, loadErr := s.Load()
				if loadErr != nil || len(got) != 2 || got[0].Priority != 1 || got[1].Tries != 3 && got[1].Tries != 2 || err == nil && got[1].Tries != 2 {
					t.Fatalf("damage at %d, cut after %d: got %v, %v", damage, cut, got, loadErr)
				}
			}
		}
	}
}

// reseal gives a changed header and its entries right checksums.
func reseal(b []byte, header, entries, n int) {
	le := binary.LittleEndian
	le.PutUint32(b[header+offEntriesCRC:], crc32.ChecksumIEEE(b[entries:entries+n]))
	le.PutUint32(b[header+offHeaderCRC:], headerCRC(b[header:header+minHeader]))
}

func TestImpossibleHeaders(t *testing.T) {
	clean := newDisk(t, 512)
	le := binary.LittleEndian
	tests := map[string]func(b []byte){
		"no_entries":           func(b []byte) { le.PutUint32(b[512+offCount:], 0) },
		"too_many_entries":     func(b []byte) { le.PutUint32(b[512+offCount:], 1<<31) },
		"entry_size_130":       func(b []byte) { le.PutUint32(b[512+offEntrySize:], 130) },
		"entries_far_away":     func(b []byte) { le.PutUint64(b[512+offEntriesLBA:], 1<<63) },
		"entries_over_header":  func(b []byte) { le.PutUint64(b[512+offEntriesLBA:], 1) },
		"entries_in_partition": func(b []byte) { le.PutUint64(b[512+offEntriesLBA:], 512) },
		"last_behind_disk":     func(b []byte) { le.PutUint64(b[512+offLastUsable:], 1<<40) },
		"first_after_last":     func(b []byte) { le.PutUint64(b[512+offFirstUsable:], 1<<20) },
		"another_sector":       func(b []byte) { le.PutUint64(b[512+offMyLBA:], 7) },
		"partition_behind":     func(b []byte) { le.PutUint64(b[1024+40:], 1<<50) },
		"partition_backwards":  func(b []byte) { le.PutUint64(b[1024+32:], 3000) },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(clean)
			change(b)
			reseal(b, 512, 1024, 16384)
			table, err := Read(bytes.NewReader(b), int64(len(b)), 512)
			if err != nil || table.PrimaryBad == nil || errors.Is(table.PrimaryBad, ErrChecksum) {
				t.Errorf("got %v, primary %v, want the backup and a bad primary", err, table)
			}
		})
	}
	if _, err := Read(bytes.NewReader(clean), int64(len(clean)), 1024); !errors.Is(err, ErrBounds) {
		t.Errorf("sectors of 1024: got %v, want ErrBounds", err)
	}
	if _, err := Read(bytes.NewReader(nil), 0, 512); !errors.Is(err, ErrNoTable) {
		t.Errorf("no disk: got %v, want ErrNoTable", err)
	}
}

// FuzzRead mutates header and entries of the primary and seals them again, so
// that the checks behind the checksums are reached.
func FuzzRead(f *testing.F) {
	f.Add([]byte(nil), []byte(nil), true)
	header := newDisk(f, 512)[512 : 512+minHeader]
	f.Add(bytes.Clone(header), bytes.Repeat([]byte{1}, 128), true)
	f.Add([]byte("EFI PART"), []byte{}, false)
	clean := newDisk(f, 512)[:64<<10]
	f.Fuzz(func(t *testing.T, header, entries []byte, seal bool) {
		b := bytes.Clone(clean)
		copy(b[512:1024], header)
		copy(b[1024:1024+16384], entries)
		if seal {
			reseal(b, 512, 1024, 16384)
		}
		table, err := Read(bytes.NewReader(b), int64(len(b)), 512)
		if (err == nil) != (table != nil) {
			t.Fatalf("got %v, %v", table, err)
		}
		if err != nil {
			return
		}
		for _, p := range table.Partitions {
			if table.Size(p) <= 0 || table.Offset(p) < 0 || table.Offset(p)+table.Size(p) > int64(len(b)) {
				t.Fatalf("partition outside the disk: %+v", p)
			}
		}
		if _, err := table.Slots(Naming{}); err != nil && !errors.Is(err, ErrAmbiguous) {
			t.Fatal(err)
		}
		d := slotstest.NewDisk(b)
		if err := table.WriteAttributes(d, nil); err != nil {
			return // copies may not fit on a small disk that claims more
		}
		if _, err := Read(d, d.Size(), 512); err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
	})
}
