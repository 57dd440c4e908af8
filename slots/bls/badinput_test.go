package bls

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"sealroot/slots"
	"sealroot/slots/esp"
)

// crafted are 200 and more names that somebody could have thought of.
func crafted() []string {
	counts := []string{"", "+", "+3", "+3-", "+3-0", "+-1", "+0", "+0-0", "+0-3", "+00003-0007", "+3-0-0", "+3+2", "+3+2-1", "++3",
		"+2147483647-2147483647", "+2147483648", "+3-2147483648", "+9223372036854775808", "+99999999999999999999999", "+ 3", "+3 -0",
		"+0x3", "+３", "+3-0.efi", "-3+0", "+3–0", "+a", "+3a", "+3-0\x00", "+1e3"}
	var out []string
	for _, base := range []string{"sealroot-a", "SEALROOT-B", "sealroot-c", "sealroot-", "sealroot-ab", "other", "auto-sealroot-a", "sealroot-b.1"} {
		for _, c := range counts {
			out = append(out, base+c+".efi")
		}
	}
	return append(out, "", ".efi", "+.efi", "sealroot-a.EFI", "sealroot-a.conf", "sealroot-a+3-0.conf", "sealroot-a+3-0", strings.Repeat("+3", 5000)+".efi",
		"sealroot-a.efi.efi", "sealroot-a+3-0.efi\n", "../sealroot-a.efi", `\EFI\Linux\sealroot-a.efi`, "\xff\xfe.efi")
}

// check: whatever lies there, the reading is the same twice, in bounds, and a
// slot is chosen; and a save from there is loaded again.
func check(t *testing.T, names []string, text []byte) {
	t.Helper()
	m := newMemory(names...)
	m.text = text
	s := m.store()
	got := load(t, s)
	if again := load(t, s); !reflect.DeepEqual(got, again) {
		t.Errorf("names %q: %v, then %v", names, got, again)
	}
	if len(got) != 2 {
		t.Fatalf("names %q: %v", names, got)
	}
	for _, x := range got {
		if x.Priority < 0 || x.Priority > slots.MaxPriority || x.Tries < 0 || x.Tries > slots.MaxTries {
			t.Errorf("names %q: %v is out of bounds", names, x)
		}
		if _, ok := FileOf(names, x.Name); !ok && x.Bootable() {
			t.Errorf("names %q: %v is bootable without a file", names, x)
		}
	}
	if d, err := slots.Decide(slots.Observed{Slots: got, LogReadable: true}); err != nil || d.Slot != "a" && d.Slot != "b" {
		t.Errorf("names %q: slot %q, %v", names, d.Slot, err)
	}
	for _, x := range got {
		bad, err := slots.MarkBad(got, x.Name, slots.ImageFailure)
		if err != nil {
			t.Fatal(err)
		}
		c := m.clone()
		if err := c.store().Save(bad); err != nil {
			continue // more files than can be put aside, or no file
		}
		if after := load(t, c.store()); !reflect.DeepEqual(after, bad) {
			t.Errorf("names %q: saved %v, loaded %v", names, bad, after)
		}
	}
}

func TestCraftedNames(t *testing.T) {
	all := crafted()
	if len(all) < 200 {
		t.Fatalf("%d names", len(all))
	}
	for _, n := range all {
		check(t, []string{n}, nil)
		check(t, []string{"sealroot-a.efi", n}, []byte(keySlots+"a:1:0:1,b:2:2:0\n"))
	}
	check(t, all, nil)
}

func TestRandomNames(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 252))
	const letters = "ab+-0123.efi SEALrootx\x00"
	for range 1000 {
		var names []string
		for range rng.IntN(6) {
			name := "sealroot-" + string(letters[rng.IntN(2)]) + randomText(rng, letters, 9) + ".efi"
			if rng.IntN(4) == 0 {
				name = randomText(rng, letters, 40)
			} else if rng.IntN(2) == 0 {
				name = esp.UKIName(string(letters[rng.IntN(2)]), esp.Counting(rng.IntN(20), rng.IntN(20)))
			}
			names = append(names, name)
		}
		text := make([]byte, []int{0, 1, StateSize - 1, StateSize, StateSize + 1}[rng.IntN(5)])
		for i := range text {
			text[i] = byte(rng.IntN(256))
		}
		check(t, names, text)
	}
}

func randomText(rng *rand.Rand, letters string, most int) string {
	var b strings.Builder
	for range rng.IntN(most) {
		b.WriteByte(letters[rng.IntN(len(letters))])
	}
	return b.String()
}

// The text is read without a panic, and what is read is written the same again.
func FuzzState(f *testing.F) {
	_, text, err := Initial([]slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Tries: 3}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text, "sealroot-a.efi/sealroot-b+3-0.efi")
	f.Add(text, "sealroot-a.efi/sealroot-b+2-1.efi/sealroot-b.efi")
	f.Add([]byte(fmt.Sprintf("%-512s", keySlots+"a:1:0:1\n"+keyFiles+"a-\n")), "")
	f.Fuzz(func(t *testing.T, text []byte, names string) {
		now, _ := decode(text)
		if len(now.slots) > 0 {
			b, err := encode(now, record{})
			if err != nil {
				t.Fatal(err)
			}
			if again, _ := decode(b); !again.equal(now) {
				t.Errorf("%+v, then %+v", now, again)
			}
		} else if len(now.marks) > 0 {
			t.Errorf("names without a state: %+v", now)
		}
		if len(names) < 2000 {
			check(t, strings.Split(names, "/"), text)
		}
	})
}
