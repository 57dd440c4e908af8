package balloon

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"
)

// bits is the slow truth about ranges below 64.
func bits(list []Range) (b uint64) {
	for _, r := range list {
		for i := r.Start; i < r.End; i++ {
			b |= 1 << i
		}
	}
	return b
}

func TestRanges(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	some := func() []Range {
		var list []Range
		for range random.IntN(6) {
			a := random.Int64N(60)
			list = append(list, Range{a, a + random.Int64N(62-a)})
		}
		return list
	}
	for range 20000 {
		a, b := some(), some()
		for _, c := range []struct {
			name string
			got  []Range
			want uint64
		}{
			{"Join", Join(a, b), bits(a) | bits(b)},
			{"Without", Without(a, b), bits(a) &^ bits(b)},
			{"Both", Both(a, b), bits(a) & bits(b)},
			{"Within", Within(a, 10, 30), bits(a) & bits([]Range{{10, 30}})},
		} {
			if bits(c.got) != c.want {
				t.Fatalf("%s(%v, %v) = %v", c.name, a, b, c.got)
			}
			for i, r := range c.got {
				if r.Start >= r.End || i > 0 && r.Start <= c.got[i-1].End {
					t.Fatalf("%s(%v, %v) = %v is not in order", c.name, a, b, c.got)
				}
			}
		}
	}
}

func TestHeld(t *testing.T) {
	const end = 1 << 30
	good := func() []Extent {
		return []Extent{{0, 8192, 4096, FlagUnwritten}, {4096, 40960, 8192, FlagUnwritten | FlagLast}}
	}
	if held, err := Held(good(), 12288, 12288, end); err != nil || !reflect.DeepEqual(held, []Range{{8192, 12288}, {40960, 49152}}) {
		t.Fatalf("Held = %v, %v", held, err)
	}
	for name, change := range map[string]func(e []Extent, size, blocks *int64){
		"written":       func(e []Extent, _, _ *int64) { e[0].Flags = 0 },
		"delalloc":      func(e []Extent, _, _ *int64) { e[0].Flags |= FlagDelalloc },
		"shared":        func(e []Extent, _, _ *int64) { e[1].Flags |= 0x2000 },
		"inline":        func(e []Extent, _, _ *int64) { e[1].Flags |= 0x200 },
		"not_aligned":   func(e []Extent, _, _ *int64) { e[1].Physical += 1024 },
		"hole":          func(e []Extent, size, _ *int64) { e[1].Logical += 4096; *size += 4096 },
		"short":         func(_ []Extent, size, _ *int64) { *size += 4096 },
		"fewer_blocks":  func(_ []Extent, _, blocks *int64) { *blocks -= 4096 },
		"more_blocks":   func(_ []Extent, _, blocks *int64) { *blocks += 1 << 20 },
		"twice":         func(e []Extent, _, _ *int64) { e[1].Physical = 4096 },
		"outside":       func(e []Extent, _, _ *int64) { e[1].Physical = end - 4096 },
		"empty":         func(e []Extent, _, _ *int64) { e[1].Length = 0 },
		"superblock":    func(e []Extent, _, _ *int64) { e[0].Physical = 0 },
		"overflow_sums": func(e []Extent, _, _ *int64) { e[1].Physical = 1<<63 - 4096 },
	} {
		list, size, blocks := good(), int64(12288), int64(12288)
		change(list, &size, &blocks)
		if held, err := Held(list, size, blocks, end); !errors.Is(err, ErrNotHeld) || held != nil {
			t.Errorf("%s: Held = %v, %v, want %v", name, held, err, ErrNotHeld)
		}
	}
}

const volume = "0e1f0203-0405-4607-8809-0a0b0c0d0e0f"

func TestRecord(t *testing.T) {
	r := Record{7, volume, []Range{{4096, 8192}, {1 << 40, 1<<40 + 4096}}}
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Decode(b); err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("Decode = %+v, %v", got, err)
	}
	for _, at := range []int{0, 9, 20, 55, 60, 90, 119} {
		bad := bytes.Clone(b)
		bad[at] ^= 1
		if got, err := Decode(bad); !errors.Is(err, ErrRecord) || !reflect.DeepEqual(got, Record{}) {
			t.Errorf("byte %d changed: Decode = %+v, %v", at, got, err)
		}
	}
	r.Given = make([]Range, MaxRanges+1)
	if _, err := r.Encode(); err == nil {
		t.Error("too many ranges are taken")
	}
}

func TestLatest(t *testing.T) {
	old, _ := Record{3, volume, []Range{{4096, 8192}}}.Encode()
	young, _ := Record{4, volume, nil}.Encode()
	other, _ := Record{9, "1" + volume[1:], nil}.Encode()
	torn := append(bytes.Clone(young[:40]), old[40:]...)
	for _, tt := range []struct {
		name   string
		file   []byte
		serial uint64
		slot   int
	}{
		{"none", nil, 0, 1},
		{"younger_first", append(bytes.Clone(young), old...), 4, 0},
		{"younger_second", append(bytes.Clone(old), young...), 4, 1},
		{"torn", append(bytes.Clone(torn), old...), 3, 1},
		{"of_another_volume", append(bytes.Clone(other), old...), 3, 1},
		{"cut_short", append(bytes.Clone(old), young[:100]...), 3, 0},
	} {
		if r, slot := Latest(tt.file, volume); r.Serial != tt.serial || slot != tt.slot || r.Volume != volume {
			t.Errorf("%s: serial %d in slot %d, want %d in %d", tt.name, r.Serial, slot, tt.serial, tt.slot)
		}
	}
}

func FuzzDecode(f *testing.F) {
	b, _ := Record{7, volume, []Range{{4096, 8192}}}.Encode()
	f.Add(b[:200])
	f.Fuzz(func(t *testing.T, start []byte) {
		b := make([]byte, SlotBytes)
		copy(b, start)
		r, err := Decode(b)
		if err != nil && !reflect.DeepEqual(r, Record{}) {
			t.Errorf("error %v with value %+v", err, r)
		}
		if err == nil {
			if again, err := r.Encode(); err != nil || !bytes.Equal(again[:headBytes], b[:headBytes]) {
				t.Errorf("%+v encodes otherwise, %v", r, err)
			}
		}
	})
}
