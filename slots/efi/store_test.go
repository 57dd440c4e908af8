package efi

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"sealroot/slots"
	"sealroot/slots/esp"
	"sealroot/slots/slotstest"
	"sealroot/slots/statetext"
)

func statesOf(t *testing.T, vars Vars) []slots.Slot {
	t.Helper()
	list, err := Store{Entries: Hint{Vars: vars, ESP: ourESP}, Names: []string{"a", "b"}}.Load()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// put sets a variable that tests begin with.
func put(t *testing.T, v *slotstest.Vars, name, vendor string, data []byte) {
	t.Helper()
	if err := v.Write(name, vendor, persistent, data); err != nil {
		t.Fatal(err)
	}
}

func TestForgottenState(t *testing.T) {
	entry := func(slot string) []byte {
		return LoadOption{Attributes: Active, Description: Description(slot), Partition: ourESP, Path: Path(slot)}.Encode()
	}
	stranger := LoadOption{Attributes: Active, Description: Description("b"), Partition: Partition{Number: 9, UUID: ourESP.UUID}, Path: Path("b")}.Encode()
	tests := []struct {
		name  string
		order []byte
		three []byte // Boot0003
		text  string
		want  string // the slots' priorities
	}{
		{"all_gone", nil, nil, "", "2 1"},
		{"order_b_a", []byte{3, 0, 1, 0}, entry("b"), "", "1 2"},
		{"order_a_b", []byte{1, 0, 3, 0}, entry("b"), "", "2 1"},
		{"only_b_in_order", []byte{7, 0, 3, 0}, entry("b"), "", "1 2"},
		{"entry_of_another_disk", []byte{3, 0, 1, 0}, stranger, "", "2 1"},
		{"order_is_odd", []byte{3, 0, 1}, entry("b"), "", "2 1"},
		{"state_is_rubbish", []byte{3, 0, 1, 0}, entry("b"), "a:1:0:1", "1 2"},
		{"state_is_there", []byte{3, 0, 1, 0}, entry("b"), "a:9:0:1,b:8:0:1", "9 8"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := slotstest.NewVars()
			put(t, v, "Boot0001", Global, entry("a"))
			if tt.three != nil {
				put(t, v, "Boot0003", Global, tt.three)
			}
			if tt.order != nil {
				put(t, v, "BootOrder", Global, tt.order)
			}
			if tt.text != "" {
				put(t, v, StatesVariable, Sealroot, []byte(tt.text))
			}
			list := statesOf(t, v)
			if got := fmt.Sprint(list[0].Priority, list[1].Priority); got != tt.want || !list[0].Successful || !list[1].Successful {
				t.Errorf("got %v, want priorities %s, both committed", list, tt.want)
			}
		})
	}
}

// With the boot order forgotten too, the files say which slot was committed last
// and which one is empty; the boot order, while it is there, knows better.
func TestForgottenStateByFiles(t *testing.T) {
	entry := LoadOption{Attributes: Active, Description: Description("a"), Partition: ourESP, Path: Path("a")}.Encode()
	image := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	both := fstest.MapFS{esp.UKI("a"): image("old"), esp.UKI("b"): image("new"), esp.Fallback: image("new")}
	tests := []struct {
		name  string
		files fs.FS
		err   error
		order []byte
		tries int
		want  string
	}{
		{"fallback_is_b", both, nil, nil, 0, "a:1:0:1,b:2:0:1"},
		{"boot_order_says_a", both, nil, []byte{1, 0}, 0, "a:2:0:1,b:1:0:1"},
		{"recount", both, nil, nil, 3, "a:1:3:1,b:2:3:1"},
		{"b_is_empty", fstest.MapFS{esp.UKI("a"): image("old"), esp.Fallback: image("old")}, nil, nil, 0, "a:2:0:1,b:0:0:0"},
		{"fallback_is_a_loader", fstest.MapFS{esp.UKI("a"): image("a"), esp.LinuxDir + "/" + esp.UKIName("b", esp.Counting(0, 1)): image("b")}, nil, nil, 0, "a:2:0:1,b:1:0:1"},
		{"nothing_there", fstest.MapFS{}, nil, nil, 0, "a:2:0:1,b:1:0:1"},
		{"cannot_be_mounted", both, fs.ErrPermission, nil, 3, "a:2:3:1,b:1:3:1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := slotstest.NewVars()
			put(t, v, "Boot0001", Global, entry)
			if tt.order != nil {
				put(t, v, "BootOrder", Global, tt.order)
			}
			asked := 0
			s := Store{Entries: Hint{Vars: v, ESP: ourESP}, Names: []string{"a", "b"}, Tries: tt.tries, Files: func(use func(fs.FS) error) error {
				asked++
				if tt.err != nil {
					return tt.err
				}
				return use(tt.files)
			}}
			list, err := s.Load()
			if got := statetext.Format(list); err != nil || got != tt.want {
				t.Errorf("got %s, %v; want %s", got, err, tt.want)
			}
			put(t, v, StatesVariable, Sealroot, []byte("a:9:0:1,b:8:0:1"))
			asked = 0
			if list, err := s.Load(); err != nil || asked > 0 || list[0].Priority != 9 {
				t.Errorf("with the state there: %v, %v, the files were read %d times", list, err, asked)
			}
		})
	}
}

func TestIsDefault(t *testing.T) {
	v := slotstest.NewVars()
	h := Hint{Vars: v, ESP: ourESP}
	want := func(slot string, right bool) {
		t.Helper()
		if got, err := h.IsDefault(slot); got != right || err != nil {
			t.Errorf("IsDefault(%s) = %v, %v; want %v, nil", slot, got, err, right)
		}
	}
	want("a", false)
	for _, slot := range []string{"a", "b"} {
		if err := h.SetDefault(slot); err != nil {
			t.Fatal(err)
		}
	}
	want("a", false)
	want("b", true)
	h.ESP.Number++ // the entry is of a disk that was cloned or replaced
	want("b", false)
	h.ESP.Number--
	put(t, v, "Boot0001", Global, []byte("damaged"))
	want("b", false)
	put(t, v, "BootOrder", Global, []byte{9, 0})
	want("b", false)
	put(t, v, "BootOrder", Global, []byte{9})
	if _, err := h.IsDefault("b"); err == nil {
		t.Error("an odd BootOrder: got no error")
	}
}

// firmware is all that a store reads, as fuzzers make it.
type firmware struct{ state, order, one, next []byte }

func (f firmware) vars(t *testing.T) *slotstest.Vars {
	v := slotstest.NewVars()
	put(t, v, StatesVariable, Sealroot, f.state)
	put(t, v, "BootOrder", Global, f.order)
	put(t, v, "Boot0001", Global, f.one)
	put(t, v, "BootNext", Global, f.next)
	return v
}

// check: whatever the firmware holds, a slot is chosen, always the same, and a
// state can be saved.
func (f firmware) check(t *testing.T) {
	t.Helper()
	first := ""
	for range 2 {
		v := f.vars(t)
		list := statesOf(t, v)
		d, err := slots.Decide(slots.Observed{Slots: list, LogReadable: true})
		if err != nil || d.Slot != "a" && d.Slot != "b" {
			t.Fatalf("%x: chosen %q of %v, %v", f, d.Slot, list, err)
		}
		h := Hint{Vars: v, ESP: ourESP}
		armed, armedErr := h.Get()
		def, defErr := h.IsDefault("a")
		choice := fmt.Sprint(list, d.Slot, armed, armedErr, def, defErr)
		if first != "" && choice != first {
			t.Fatalf("%x: got %s, then %s", f, first, choice)
		}
		first = choice
		want := []slots.Slot{{Name: "a", Priority: 3, Successful: true}, {Name: "b", Priority: 4, Tries: 2}}
		if err := (Store{Entries: h, Names: []string{"a", "b"}}).Save(want); err != nil {
			t.Fatalf("%x: %v", f, err)
		}
		if got := statesOf(t, v); !slices.Equal(got, want) {
			t.Fatalf("%x: got %v, want %v", f, got, want)
		}
	}
}

// badFirmware are 200 contents put together by hand, by parts that hurt.
func badFirmware() []firmware {
	entry := LoadOption{Attributes: Active, Description: Description("b"), Partition: ourESP, Path: Path("b")}.Encode()
	var long []byte
	for n := range uint16(300) {
		long = binary.LittleEndian.AppendUint16(long, n)
	}
	states := [][]byte{
		nil, {0}, {0xff, 0xfe}, []byte("a:1:0:1,b:0:0:0\x00"), []byte("a:1:0:1,b:0:0:0\n"), []byte("a:0:0:0,b:0:0:0"),
		[]byte("a:16:0:1,b:0:0:0"), []byte("a:-1:0:1,b:0:0:0"), []byte("b:1:0:1,a:1:0:1"), []byte(strings.Repeat("a:1:0:1,", 1000)),
	}
	orders := [][]byte{nil, {1}, {1, 0}, {1, 0, 1, 0}, long}
	cut := slices.Clone(entry)
	binary.LittleEndian.PutUint16(cut[4:], 0xffff)
	var out []firmware
	for _, s := range states {
		for _, o := range orders {
			for _, one := range [][]byte{entry, entry[:len(entry)-3], cut, nil} {
				out = append(out, firmware{s, o, one, o})
			}
		}
	}
	return out
}

func TestSlotsBadInput(t *testing.T) {
	crafted := badFirmware()
	if len(crafted) < 200 {
		t.Errorf("only %d crafted contents", len(crafted))
	}
	for _, f := range crafted {
		f.check(t)
	}
	rng := rand.New(rand.NewPCG(2, 71))
	spoil := func(b []byte) []byte {
		b = slices.Clone(b)
		if rng.IntN(4) == 0 {
			b = make([]byte, rng.IntN(300))
		}
		for range rng.IntN(20) {
			if len(b) > 0 {
				b[rng.IntN(len(b))] = byte(rng.Uint32())
			}
		}
		return b
	}
	for range 1000 {
		f := crafted[rng.IntN(len(crafted))]
		firmware{spoil(f.state), spoil(f.order), spoil(f.one), spoil(f.next)}.check(t)
	}
}

func FuzzStore(f *testing.F) {
	for _, w := range badFirmware() {
		f.Add(w.state, w.order, w.one, w.next)
	}
	f.Fuzz(func(t *testing.T, state, order, one, next []byte) { firmware{state, order, one, next}.check(t) })
}
