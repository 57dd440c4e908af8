package layerlist

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

const imageA, imageB = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"

func hash(c string) string { return strings.Repeat(c, 64) }

func TestParse(t *testing.T) {
	whole := List{{"tools", hash("1")}, {"demo", strings.Repeat("2", 128)}, {Name: "site"}, {Name: "tools"}}
	for _, l := range []List{nil, whole} {
		if got, err := Parse(l.Format()); err != nil || !slices.Equal(got, l) {
			t.Errorf("Parse(Format()) = %+v, %v; want %+v", got, err, l)
		}
	}
	add := "add tools " + hash("1")
	var many strings.Builder
	for i := range MaxEntries + 1 {
		fmt.Fprintf(&many, "off n%d\n", i)
	}
	for name, text := range map[string]string{
		"empty": "", "no_header": add + "\n", "another_version": "sealroot-layers 2\n", "torn": header + add, "no_entry": header + "\n",
		"word": header + "put tools\n", "no_name": header + "off\n", "path": header + "off ../x\n", "upper_case": header + "off Tools\n",
		"long_name": header + "off " + strings.Repeat("x", 33) + "\n", "no_hash": header + "add tools\n", "short_hash": header + "add tools " + hash("1")[1:] + "\n",
		"upper_case_hash": header + "add tools " + hash("A") + "\n", "two_spaces": header + "off  tools\n", "trailing_space": header + "off tools \n",
		"more_words": header + add + " x\n", "off_with_hash": header + "off tools " + hash("1") + "\n",
		"added_twice": header + add + "\nadd tools " + hash("2") + "\n", "off_twice": header + "off tools\noff tools\n",
		"too_many": header + many.String(), "too_large": header + strings.Repeat("off tools\n", MaxSize/10), "nul": header + "off to\x00ols\n",
	} {
		if l, err := Parse([]byte(text)); !errors.Is(err, ErrFormat) || l != nil || len(err.Error()) > 100 {
			t.Errorf("%s: got %+v, %v; want ErrFormat", name, l, err)
		}
	}
	// What can be made can be read.
	largest := List{}
	for i := range MaxEntries {
		largest = append(largest, Entry{fmt.Sprintf("%032d", i), strings.Repeat("f", 128)})
	}
	if got, err := Parse(largest.Format()); err != nil || len(got) != MaxEntries {
		t.Error(len(got), err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(header + "add tools " + hash("1") + "\noff demo\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := Parse(text)
		if err != nil {
			if l != nil || !errors.Is(err, ErrFormat) {
				t.Errorf("%+v beside %v", l, err)
			}
			return
		}
		if !bytes.Equal(l.Format(), text) {
			t.Errorf("%q reads as %q", text, l.Format())
		}
	})
}

// Whatever the file of the proofs holds, what was tried now is known at the next boot,
// and the file stays small.
func FuzzProofs(f *testing.F) {
	f.Add(imageA + " 0011223344556677 good\n" + imageB + " 0011223344556677 tried\n")
	f.Fuzz(func(t *testing.T, text string) {
		const list = "8899aabbccddeeff"
		before := Proofs(text).Of(imageA, list)
		use, next := Proofs(text).Use(imageA, list, true, false)
		if use != (before != Tried) || use && (next.Of(imageA, list) != Tried || len(next) > MaxProofsSize) {
			t.Errorf("after %q: used %v, and the list is not known as tried in %q", text, use, next)
		}
		if again, _ := next.Use(imageA, list, true, false); again {
			t.Errorf("%q: tried twice", next)
		}
	})
}

// A list is tried once with an image: where the running system asked for that, or where the
// slot is on trial itself. A committed slot does not try what another image left behind.
func TestUse(t *testing.T) {
	const list = "8899aabbccddeeff"
	none := Proofs("")
	for _, tt := range []struct {
		name            string
		p               Proofs
		slotTrial, hold bool
		use             bool
	}{
		{"asked_for", none.With(imageA, list, New), false, false, true},
		{"not_asked_for", none, false, false, false},
		{"of_another_image", none.With(imageB, list, New), false, false, false},
		{"slot_on_trial", none, true, false, true},
		{"last_try", none.With(imageA, list, New), true, true, false},
		{"tried", none.With(imageA, list, New).With(imageA, list, Tried), true, false, false},
		{"asked_for_again", none.With(imageA, list, Tried).With(imageA, list, New), false, false, true},
		{"its_good_list_is_gone", none.With(imageA, list, Good), false, false, false},
	} {
		use, next := tt.p.Use(imageA, list, tt.slotTrial, tt.hold)
		if use != tt.use || use && next.Of(imageA, list) != Tried || !use && next != tt.p {
			t.Errorf("%s: used %v, then %q", tt.name, use, next)
		}
	}
}

func TestFull(t *testing.T) {
	l := List{}
	for i := range MaxEntries {
		l = append(l, Entry{Name: fmt.Sprint("n", i)})
	}
	if _, err := l.Added("x", hash("1")); !errors.Is(err, ErrFull) {
		t.Errorf("Added() = %v", err)
	}
	if _, err := l.Turned("x", false); !errors.Is(err, ErrFull) {
		t.Errorf("Turned() = %v", err)
	}
	if _, err := l.Turned("n1", false); err != nil {
		t.Error(err)
	}
	before := List{{"x", hash("1")}, {Name: "x"}}
	if next, err := before.Added("x", hash("2")); err != nil || !slices.Equal(next, List{{"x", hash("2")}}) || !before.Off("x") || before.Hash("x") != hash("1") {
		t.Errorf("Added() = %+v, %v; the list before is %+v", next, err, before)
	}
}

// The oldest proofs are forgotten, and the last one counts.
func TestProofsAreBounded(t *testing.T) {
	p := Proofs(strings.Repeat("no proof at all\n", 5) + "torn" + imageA + " ")
	for i := range 100 {
		p = p.With(imageA, fmt.Sprintf("%016d", i), Tried).With(imageA, fmt.Sprintf("%016d", i), Good)
	}
	first, last := fmt.Sprintf("%016d", 0), fmt.Sprintf("%016d", 99)
	if len(p) > MaxProofsSize || p.Of(imageA, first) != "" || p.Of(imageA, last) != Good || p.Of(imageB, last) != "" {
		t.Errorf("%d bytes are kept\n%s", len(p), p)
	}
	if p = p.With(imageA, last, New); p.Of(imageA, last) != New {
		t.Errorf("not forgotten:\n%s", p)
	}
}
