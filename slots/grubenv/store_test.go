package grubenv

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/slots"
	"sealroot/slots/slotstest"
)

func names() []string { return []string{"a", "b"} }

// short writes slots as "a:2:0:1 b:0:0:0" for tables.
func short(list []slots.Slot) string {
	var out []string
	for _, s := range list {
		good := 0
		if s.Successful {
			good = 1
		}
		out = append(out, fmt.Sprintf("%s:%d:%d:%d", s.Name, s.Priority, s.Tries, good))
	}
	return strings.Join(out, " ")
}

func parse(t *testing.T, lines string) *Env {
	t.Helper()
	e, err := Parse(block(header + strings.ReplaceAll(lines, ";", "\n") + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// The scheme's variables alone, as their authors read them, and beside a state
// of ours that somebody else's change has made untrue.
func TestSchemesAsOthersWriteThem(t *testing.T) {
	tests := []struct {
		name   string
		scheme Scheme
		lines  string
		want   string
	}{
		{"nothing", Darch, "x=1", "a:2:0:1 b:1:0:1"},
		{"verified_is_missing", Darch, "BOOT_VERSION=B", "a:1:0:1 b:2:0:1"},
		{"verified", Darch, "BOOT_VERSION=B;BOOT_VERIFIED=true;BOOT_COUNT=4", "a:1:0:1 b:2:0:1"},
		{"not_verified", Darch, "BOOT_VERSION=B;BOOT_VERIFIED=false;BOOT_COUNT=0", "a:1:0:1 b:2:10:0"},
		{"three_of_ten", Darch, "BOOT_VERSION=B;BOOT_VERIFIED=false;BOOT_COUNT=3", "a:1:0:1 b:2:7:0"},
		{"ten_of_ten", Darch, "BOOT_VERSION=B;BOOT_VERIFIED=false;BOOT_COUNT=10", "a:1:0:1 b:2:0:0"},
		{"eleven_of_ten", Darch, "BOOT_VERSION=B;BOOT_VERIFIED=false;BOOT_COUNT=11", "a:1:0:1 b:2:0:0"},
		{"count_is_missing", Darch, "BOOT_VERSION=B;BOOT_VERIFIED=false", "a:1:0:1 b:2:10:0"},
		{"count_is_rubbish", Darch, "BOOT_VERSION=B;BOOT_VERIFIED=false;BOOT_COUNT=-1", "a:1:0:1 b:2:0:0"},
		{"fell_back", Darch, "BOOT_VERSION=A;BOOT_VERIFIED=true;BOOT_FELL_BACK=true", "a:2:0:1 b:3:0:0"},
		{"emptied_by_save_env", Darch, "BOOT_VERSION=A;BOOT_VERIFIED=;BOOT_COUNT=;BOOT_FELL_BACK=", "a:2:0:1 b:1:0:1"},
		{"no_such_version", Darch, "BOOT_VERSION=C", "a:2:0:1 b:1:0:1"},
		{"exact_state", Darch, "BOOT_VERSION=B;BOOT_VERIFIED=false;BOOT_COUNT=8;sealroot_slots=a:4:0:1,b:9:2:0", "a:4:0:1 b:9:2:0"},
		{"exact_state_of_a_bad_slot", Darch, "BOOT_VERSION=A;BOOT_VERIFIED=true;BOOT_COUNT=0;sealroot_slots=a:4:0:1,b:0:0:0", "a:4:0:1 b:0:0:0"},
		{"somebody_verified", Darch, "BOOT_VERSION=B;BOOT_VERIFIED=true;BOOT_COUNT=8;sealroot_slots=a:4:0:1,b:9:2:0", "a:1:0:1 b:2:0:1"},
		{"somebody_counted", Darch, "BOOT_VERSION=B;BOOT_VERIFIED=false;BOOT_COUNT=9;sealroot_slots=a:4:0:1,b:9:2:0", "a:1:0:1 b:2:1:0"},
		{"somebody_fell_back", Darch, "BOOT_VERSION=A;BOOT_VERIFIED=true;BOOT_FELL_BACK=true;sealroot_slots=a:4:0:1,b:9:2:0", "a:2:0:1 b:3:0:0"},
		{"somebody_switched", Darch, "BOOT_VERSION=A;BOOT_VERIFIED=true;sealroot_slots=a:4:0:1,b:9:2:0", "a:2:0:1 b:1:0:0"},
		{"state_of_other_slots", Darch, "BOOT_VERSION=A;sealroot_slots=a:4:0:1", "a:2:0:1 b:1:0:1"},

		{"nothing", RAUC, "x=1", "a:2:0:1 b:1:0:1"},
		{"both_good", RAUC, "ORDER=B A;A_OK=1;A_TRY=0;B_OK=1;B_TRY=0", "a:1:0:1 b:2:0:1"},
		{"one_bad", RAUC, "ORDER=B A;A_OK=1;A_TRY=0;B_OK=0;B_TRY=0", "a:1:0:1 b:0:0:0"},
		{"one_tried", RAUC, "ORDER=B A;A_OK=1;A_TRY=0;B_OK=1;B_TRY=1", "a:1:0:1 b:2:0:0"},
		{"no_order", RAUC, "A_OK=1;A_TRY=0;B_OK=1;B_TRY=0", "a:2:0:1 b:1:0:1"},
		{"order_twice_and_strange", RAUC, "ORDER=B X B A;A_OK=1;B_OK=1", "a:1:0:1 b:2:0:1"},
		{"only_order", RAUC, "ORDER=A B", "a:0:0:0 b:0:0:0"},
		{"exact_state", RAUC, "ORDER=B A;A_OK=1;A_TRY=0;B_OK=1;B_TRY=1;sealroot_slots=a:4:0:1,b:9:2:0", "a:4:0:1 b:9:2:0"},
		{"somebody_marked_good", RAUC, "ORDER=B A;A_OK=1;A_TRY=0;B_OK=1;B_TRY=0;sealroot_slots=a:4:0:1,b:9:2:0", "a:1:0:1 b:2:0:1"},
		{"somebody_marked_bad", RAUC, "ORDER=B A;A_OK=1;A_TRY=0;B_OK=0;B_TRY=0;sealroot_slots=a:4:0:1,b:9:2:0", "a:1:0:1 b:0:0:0"},
		{"somebody_marked_a_good_one_bad", RAUC, "ORDER=A B;A_OK=0;A_TRY=0;B_OK=1;B_TRY=0;sealroot_slots=a:4:0:1,b:3:0:1", "a:0:0:0 b:1:0:1"},
		{"somebody_installed", RAUC, "ORDER=B A;A_OK=1;A_TRY=0;B_OK=1;B_TRY=0;sealroot_slots=a:4:0:1,b:0:0:0", "a:1:0:1 b:2:1:0"},
		{"somebodys_boot_script", RAUC, "ORDER=A B;A_OK=1;A_TRY=1;B_OK=1;B_TRY=0;sealroot_slots=a:4:0:1,b:3:0:1", "a:1:0:1 b:2:0:1"},
		{"somebody_reordered", RAUC, "ORDER=A B;A_OK=1;A_TRY=0;B_OK=1;B_TRY=1;sealroot_slots=a:4:0:1,b:9:2:0", "a:2:0:1 b:1:2:0"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.scheme, "_", tt.name), func(t *testing.T) {
			if got := short(tt.scheme.Read(parse(t, tt.lines), names())); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// What we write, as others read it.
func TestSchemesForOthers(t *testing.T) {
	tests := []struct {
		name        string
		list        []slots.Slot
		darch, rauc string
	}{
		{"new_disk", []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b"}}, "A 0 true", "A B|1 0|0 0"},
		{"on_trial", []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Tries: 3}}, "B 7 false", "B A|1 0|1 1"},
		{"fifteen_tries", []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Tries: 15}}, "B 0 false", "B A|1 0|1 1"},
		{"given_up", []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2}}, "B 10 false", "B A|1 0|1 1"},
		{"both_good", []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Successful: true}}, "B 0 true", "B A|1 0|1 0"},
		{"tie", []slots.Slot{{Name: "a", Priority: 2, Successful: true}, {Name: "b", Priority: 2, Successful: true}}, "A 0 true", "A B|1 0|1 0"},
		{"nothing_bootable", []slots.Slot{{Name: "a"}, {Name: "b"}}, "A 10 false", "A B|0 0|0 0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			read := func(scheme Scheme, format string, names ...string) string {
				e := New()
				if err := scheme.Write(e, tt.list); err != nil {
					t.Fatal(err)
				}
				var values []any
				for _, name := range names {
					v, _ := e.Get(name)
					values = append(values, v)
				}
				return fmt.Sprintf(format, values...)
			}
			if got := read(Darch, "%s %s %s", "BOOT_VERSION", "BOOT_COUNT", "BOOT_VERIFIED"); got != tt.darch {
				t.Errorf("darch: got %s, want %s", got, tt.darch)
			}
			if got := read(RAUC, "%s|%s %s|%s %s", "ORDER", "A_OK", "A_TRY", "B_OK", "B_TRY"); got != tt.rauc {
				t.Errorf("RAUC: got %s, want %s", got, tt.rauc)
			}
		})
	}
}

func TestTellFallback(t *testing.T) {
	d := slotstest.NewDisk(block(header))
	s := Store{File: d, Scheme: Darch, Names: names()}
	want := []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2}}
	if err := s.Save(want); err != nil {
		t.Fatal(err)
	}
	if err := s.TellFallback(); err != nil {
		t.Fatal(err)
	}
	e, err := Parse(d.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := e.Get("BOOT_FELL_BACK"); v != "true" {
		t.Errorf("BOOT_FELL_BACK=%s, want true", v)
	}
	if got, err := s.Load(); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	d = slotstest.NewDisk(block(header))
	if err := (Store{File: d, Scheme: RAUC, Names: names()}).TellFallback(); err != nil || d.Ops() != 0 {
		t.Errorf("RAUC has no word for it: got %v, %d writes", err, d.Ops())
	}
}

// In a block of more than one sector a cut leaves our variables whole, and a
// variable of others that is not at the border.
func TestLongBlockPowerCut(t *testing.T) {
	long := header + "# " + strings.Repeat("c", 200) + "\nmine=kept\nlong=" + strings.Repeat("x", 500) + "\n"
	old := []slots.Slot{{Name: "a", Priority: 9, Successful: true}, {Name: "b"}}
	next := []slots.Slot{{Name: "a", Priority: 9, Successful: true}, {Name: "b", Priority: 10, Tries: 10}}
	for _, scheme := range []Scheme{Darch, RAUC} {
		outcomes := 0
		for after := range 3 {
			d := slotstest.NewDisk(block(long))
			s := Store{File: d, Scheme: scheme, Names: names()}
			if err := s.Save(old); err != nil {
				t.Fatal(err)
			}
			d.CutAfter(after)
			done := s.Save(next) == nil
			for _, b := range d.Outcomes(8, 1) {
				outcomes++
				got, err := Store{File: slotstest.NewDisk(b), Scheme: scheme, Names: names()}.Load()
				if err != nil || !slices.Equal(got, next) && (done || !slices.Equal(got, old)) {
					t.Fatalf("cut after %d: got %v, %v", after, got, err)
				}
				if e, err := Parse(b); err != nil {
					t.Fatal(err)
				} else if v, _ := e.Get("mine"); v != "kept" {
					t.Errorf("cut after %d: mine=%s", after, v)
				}
			}
		}
		if outcomes < 9 {
			t.Errorf("only %d outcomes", outcomes)
		}
	}
}

// GRUB writes only to a file of 1024 bytes: one of another size is made so.
func TestSaveMendsTheSize(t *testing.T) {
	for _, size := range []int{0, 10, 1 << 20} {
		path := filepath.Join(t.TempDir(), "grubenv")
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := (Store{File: f, Scheme: Darch, Names: names()}).Save([]slots.Slot{{Name: "b", Priority: 5, Tries: 1}}); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || len(b) != Size {
			t.Errorf("size %d: got %d bytes, %v, want 1024", size, len(b), err)
		}
	}
}

// badBlocks are 200 contents put together by hand, by parts that hurt.
func badBlocks() [][]byte {
	values := []string{
		"", "BOOT_VERSION=B", "BOOT_VERSION=\x00\xff", "BOOT_VERSION=B\nBOOT_VERSION=A", "BOOT_COUNT=99999999999999999999",
		"BOOT_VERIFIED=false\nBOOT_COUNT=0x3", "BOOT_VERIFIED=maybe", "ORDER=", "ORDER=B B B A", "ORDER=  A\tB ", "A_OK=2\nB_OK=-1",
		"A_OK=0\nB_OK=0", "A_OK=1\nA_TRY=1\nB_OK=1\nB_TRY=1", "sealroot_slots=", "sealroot_slots=a:99:0:1,b:0:0:0",
		"sealroot_slots=a:0:0:0,b:0:0:0", "sealroot_slots=b:1:0:1,a:1:0:1", "sealroot_slots=a:1:0:1,a:2:0:1", "sealroot_slots=" + strings.Repeat("a:1:1:1,", 90),
		"\\\n\\\n\\", "=", "#", "no equals sign", "a\\=b", strings.Repeat("x=y\n", 200),
	}
	var out [][]byte
	for _, v := range values {
		whole := header + v + "\n"
		out = append(out,
			block(whole),
			[]byte(whole),             // too short
			append(block(whole), '#'), // too long
			block(strings.ReplaceAll(whole, "\n", "\r\n")), // edited on another system
			block(v+"\n"), // no first line
			block(strings.ToLower(whole)),
			append([]byte{0xef, 0xbb, 0xbf}, block(whole)[3:]...), // a byte order mark
			append(block(whole)[:512], make([]byte, 512)...),      // half of it lost
		)
	}
	return append(out, nil, make([]byte, 1<<20), bytes.Repeat([]byte{'#'}, Size), bytes.Repeat([]byte{'\\'}, Size))
}

// checkBlock: whatever the block holds, a slot is chosen, always the same, and
// a state can be saved.
func checkBlock(t *testing.T, b []byte) {
	t.Helper()
	for _, scheme := range []Scheme{Darch, RAUC} {
		first := ""
		for range 2 {
			list, err := Store{File: slotstest.NewDisk(b), Scheme: scheme, Names: names()}.Load()
			if err != nil {
				t.Fatalf("%.80q: %v", b, err)
			}
			d, err := slots.Decide(slots.Observed{Slots: list, LogReadable: true})
			if err != nil || d.Slot != "a" && d.Slot != "b" {
				t.Fatalf("%.80q reads as %v: chosen %q, %v", b, list, d.Slot, err)
			}
			if choice := short(list) + " " + d.Slot; first == "" {
				first = choice
			} else if choice != first {
				t.Fatalf("%.80q: chosen %s, then %s", b, first, choice)
			}
			if e, err := Parse(b); err != nil || e.text().Len() > Size-300 {
				continue // no file of that size grows here, and a full one is full
			}
			s := Store{File: slotstest.NewDisk(b), Scheme: scheme, Names: names()}
			want := []slots.Slot{{Name: "a", Priority: 3, Successful: true}, {Name: "b", Priority: 4, Tries: 2}}
			if err := s.Save(want); err != nil {
				t.Fatalf("%.80q: %v", b, err)
			}
			if got, err := s.Load(); err != nil || !slices.Equal(got, want) {
				t.Fatalf("%.80q: got %v, %v, want %v", b, got, err, want)
			}
		}
	}
}

func TestSlotsBadInput(t *testing.T) {
	crafted := badBlocks()
	if len(crafted) < 200 {
		t.Errorf("only %d crafted contents", len(crafted))
	}
	for _, b := range crafted {
		checkBlock(t, b)
	}
	rng := rand.New(rand.NewPCG(3, 14))
	for i := range 1000 {
		b := slices.Clone(crafted[rng.IntN(200)])
		if i%4 == 0 {
			b = make([]byte, rng.IntN(2*Size))
			for j := range b {
				b[j] = byte(rng.Uint32())
			}
		}
		for range rng.IntN(40) {
			if len(b) > 0 {
				b[rng.IntN(len(b))] = "\n=#\\AB01_ "[rng.IntN(10)]
			}
		}
		checkBlock(t, b)
	}
}

func FuzzStore(f *testing.F) {
	for _, b := range badBlocks() {
		if len(b) <= 2*Size {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) { checkBlock(t, b) })
}
