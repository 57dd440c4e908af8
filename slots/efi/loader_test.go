package efi

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"

	"sealroot/slots/esp"
)

func (m *memory) text(name, value string) {
	m.vars[name+"-"+Systemd] = encodeText(value)
}

func TestLoaderHint(t *testing.T) {
	m := &memory{vars: map[string][]byte{}}
	h := LoaderHint{m}
	step := func(what string, err error, writes string) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := m.take(); got != writes {
			t.Errorf("%s: wrote %q, want %q", what, got, writes)
		}
	}
	step("arm", h.Arm("b"), "LoaderEntryOneShot")
	step("arm again", h.Arm("b"), "")
	step("default", h.SetDefault("a"), "LoaderEntryDefault")
	step("default again", h.SetDefault("a"), "")
	if slot, err := h.Get(); slot != "b" || err != nil {
		t.Errorf("one-shot %q, %v", slot, err)
	}
	if slot, err := h.get(entryDefault); slot != "a" || err != nil {
		t.Errorf("default %q, %v", slot, err)
	}
	// UTF-16, little endian, with its NUL
	want := "7300650061006c0072006f006f0074002d0062005b002b002e005d002a000000"
	if got := hex.EncodeToString(m.vars["LoaderEntryOneShot-"+Systemd]); got != want {
		t.Errorf("LoaderEntryOneShot is %s, want %s", got, want)
	}
	step("clear", h.Clear(), "-LoaderEntryOneShot")
	step("clear again", h.Clear(), "")
	if slot, err := h.Get(); slot != "" || err != nil {
		t.Errorf("cleared one-shot %q, %v", slot, err)
	}

	m.fail = errors.New("no space")
	if err := h.Arm("b"); !errors.Is(err, m.fail) {
		t.Errorf("full: %v", err)
	}
	if err := h.SetDefault("a"); err != nil {
		t.Errorf("full, but right already: %v", err)
	}
}

func TestLoaderHintReadsBootctl(t *testing.T) {
	for value, want := range map[string]string{
		"sealroot-b.efi":       "b",
		"sealroot-b+3-0.efi":   "b",
		"Sealroot-B+3.EFI":     "b",
		"sealroot-b[+.]*":      "b",
		"debian-6.1.conf":      "",
		"@saved":               "",
		"sealroot-*":           "",
		"sealroot-bb.efi":      "",
		"":                     "",
		"sealroot-b+3-0.conf":  "",
		"sealroot-b+3-0-1.efi": "",
	} {
		m := &memory{vars: map[string][]byte{}}
		m.text("LoaderEntryOneShot", value)
		if slot, err := (LoaderHint{m}).Get(); slot != want || err != nil {
			t.Errorf("%q: slot %q, %v, want %q", value, slot, err, want)
		}
		// somebody else's one-shot is not ours to delete
		if err := (LoaderHint{m}).Clear(); err != nil || (m.take() != "") != (want != "") {
			t.Errorf("%q: clear: %v", value, err)
		}
	}
}

// The pattern fits the entry's name at every count, and no other slot's.
// path.Match and systemd-boot's efi_fnmatch agree on such patterns.
func TestEntryPattern(t *testing.T) {
	for c := 'a'; c <= 'z'; c++ {
		for d := 'a'; d <= 'z'; d++ {
			for _, counter := range []esp.Counter{{}, {Counted: true, Left: 3}, esp.Counting(3, 0), esp.Counting(0, 15)} {
				id := strings.ToLower(esp.UKIName(string(d), counter))
				if got, err := path.Match(EntryPattern(string(c)), id); got != (c == d) || err != nil {
					t.Errorf("%s on %s: %v, %v", EntryPattern(string(c)), id, got, err)
				}
			}
		}
	}
}

func TestConfDefault(t *testing.T) {
	for _, tc := range []struct{ name, conf, want string }{
		{"empty", "", "default sealroot-b[+.]*\n"},
		{"other_slot", "timeout 0\ndefault sealroot-a[+.]*\neditor no\n", "timeout 0\ndefault sealroot-b[+.]*\neditor no\n"},
		{"twice", "default x\ndefault\ty\n", "default sealroot-b[+.]*\n"},
		{"no_last_newline", "editor no", "editor no\ndefault sealroot-b[+.]*\n"},
		{"comment", "#default x\n", "#default x\ndefault sealroot-b[+.]*\n"},
		{"dos", "timeout 0\r\ndefault x\r\n", "timeout 0\ndefault sealroot-b[+.]*\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, changed := ConfDefault(tc.conf, "b")
			if got != tc.want || !changed {
				t.Errorf("got %q, %v", got, changed)
			}
			if again, changed := ConfDefault(got, "b"); again != got || changed {
				t.Errorf("again: %q, %v", again, changed)
			}
		})
	}
}

// Whatever loader.conf held, it has one default then, and is left alone.
func FuzzConfDefault(f *testing.F) {
	for _, conf := range []string{"", "default a", "default x\ndefault\ty\n", "timeout 0\r\ndefault x\r\n", "\x00\xff\n\n"} {
		f.Add(conf, "b")
	}
	f.Fuzz(func(t *testing.T, conf, slot string) {
		if len(slot) != 1 || slot[0] < 'a' || slot[0] > 'z' {
			return
		}
		out, changed := ConfDefault(conf, slot)
		if changed == (out == conf) {
			t.Fatalf("changed %t: %q becomes %q", changed, conf, out)
		}
		if again, changed := ConfDefault(out, slot); changed || again != out {
			t.Fatalf("%q becomes %q, then %q", conf, out, again)
		}
		defaults := 0
		for line := range strings.Lines(out) {
			if words := strings.Fields(line); len(words) > 0 && words[0] == "default" {
				defaults++
			}
		}
		if defaults != 1 {
			t.Fatalf("%q has %d defaults", out, defaults)
		}
	})
}

func TestLoadedSlot(t *testing.T) {
	const image, selected = "LoaderImageIdentifier", "LoaderEntrySelected"
	for _, tc := range []struct {
		name string
		word string
		vars map[string]string
		want Loaded
	}{
		{"nothing_known", "", nil, Loaded{}},
		{"command_line_of_grub", "b", map[string]string{image: `\EFI\BOOT\BOOTX64.EFI`}, Loaded{KnownSlot, "b", "sealroot.slot=b"}},
		{"stub", "", map[string]string{image: `\EFI\Linux\sealroot-a.efi`}, Loaded{KnownSlot, "a", image + ` \EFI\Linux\sealroot-a.efi`}},
		{"stub_in_capitals", "", map[string]string{image: `\EFI\LINUX\SEALROOT-A.EFI`}, Loaded{KnownSlot, "a", image + ` \EFI\LINUX\SEALROOT-A.EFI`}},
		{"stub_with_counter", "", map[string]string{image: `\EFI\Linux\sealroot-a+2-1.efi`}, Loaded{KnownSlot, "a", image + ` \EFI\Linux\sealroot-a+2-1.efi`}},
		{"fallback", "", map[string]string{image: `\EFI\Boot\bootx64.efi`}, Loaded{FallbackFile, "", image + ` \EFI\Boot\bootx64.efi`}},
		{"systemd_boot_from_fallback", "", map[string]string{image: `\EFI\BOOT\BOOTX64.EFI`, selected: "sealroot-b+3-0.efi"},
			Loaded{KnownSlot, "b", selected + " sealroot-b+3-0.efi"}},
		{"systemd_boot_entry_of_others", "", map[string]string{image: `\EFI\Linux\sealroot-a.efi`, selected: "debian.conf"}, Loaded{From: selected + " debian.conf"}},
		{"other_path", "", map[string]string{image: `\EFI\debian\sealroot-a.efi`}, Loaded{From: image + ` \EFI\debian\sealroot-a.efi`}},
		{"deeper_path", "", map[string]string{image: `\EFI\Linux\x\sealroot-a.efi`}, Loaded{From: image + ` \EFI\Linux\x\sealroot-a.efi`}},
		{"other_name", "", map[string]string{image: `\EFI\Linux\sealroot-ab.efi`}, Loaded{From: image + ` \EFI\Linux\sealroot-ab.efi`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := &memory{vars: map[string][]byte{}}
			for name, value := range tc.vars {
				m.text(name, value)
			}
			if got, err := LoadedSlot(m, tc.word); got != tc.want || err != nil {
				t.Errorf("got %+v, %v, want %+v", got, err, tc.want)
			}
		})
	}
	if got, err := LoadedSlot(nil, ""); got != (Loaded{}) || err != nil {
		t.Errorf("without UEFI: %+v, %v", got, err)
	}
	// a loader's damaged word must not make its own path the kernel's
	m := &memory{vars: map[string][]byte{"LoaderEntrySelected-" + Systemd: {1}}}
	m.text("LoaderImageIdentifier", `\EFI\Linux\sealroot-a.efi`)
	if got, err := LoadedSlot(m, ""); got != (Loaded{}) || !errors.Is(err, ErrFormat) {
		t.Errorf("damaged: %+v, %v", got, err)
	}
}

func TestBootCounted(t *testing.T) {
	for value, want := range map[string]string{
		`\EFI\Linux\sealroot-b+2-1.efi`:      "b+2-1",
		`\EFI\Linux\sealroot-b.efi`:          "",
		`\loader\entries\sealroot-b+2-1.efi`: "",
		`\EFI\Linux\debian+2-1.efi`:          "",
		"":                                   "",
	} {
		m := &memory{vars: map[string][]byte{}}
		m.text("LoaderBootCountPath", value)
		slot, c, err := BootCounted(m)
		if got := slot + c.String(); got != want || err != nil {
			t.Errorf("%q: %q, %v, want %q", value, got, err, want)
		}
	}
	if slot, _, err := BootCounted(&memory{}); slot != "" || err != nil {
		t.Errorf("no variable: %q, %v", slot, err)
	}
}

func TestFallbackSlots(t *testing.T) {
	long := strings.Repeat("k", 2*compareChunk)
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	for _, tc := range []struct {
		name string
		fs   fstest.MapFS
		want []string
	}{
		{"nothing", fstest.MapFS{}, nil},
		{"no_slots", fstest.MapFS{esp.Fallback: file("x")}, nil},
		{"copy_of_b", fstest.MapFS{esp.Fallback: file(long + "b"), "EFI/Linux/sealroot-a.efi": file(long + "a"), "EFI/Linux/sealroot-b+3-0.efi": file(long + "b")}, []string{"b"}},
		{"last_byte_of_a_chunk", fstest.MapFS{esp.Fallback: file(long), "EFI/Linux/sealroot-a.efi": file(long[1:] + "x")}, nil},
		{"whole_chunks", fstest.MapFS{esp.Fallback: file(long), "EFI/Linux/sealroot-a.efi": file(long)}, []string{"a"}},
		{"both_after_replicate", fstest.MapFS{esp.Fallback: file("k"), "EFI/Linux/sealroot-b.efi": file("k"), "EFI/Linux/sealroot-a.efi": file("k")}, []string{"a", "b"}},
		{"other_size", fstest.MapFS{esp.Fallback: file("k"), "EFI/Linux/sealroot-a.efi": file("kk")}, nil},
		{"no_name_of_a_slot", fstest.MapFS{esp.Fallback: file("k"), "EFI/Linux/other.efi": file("k")}, nil},
		{"two_names", fstest.MapFS{esp.Fallback: file("k"), "EFI/Linux/sealroot-b.efi": file("k"), "EFI/Linux/sealroot-b+1-0.efi": file("k")}, []string{"b"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, err := FallbackSlots(tc.fs); !reflect.DeepEqual(got, tc.want) || err != nil {
				t.Errorf("got %v, %v, want %v", got, err, tc.want)
			}
		})
	}
}

// 1,000 random contents of every variable of the loader: no panic, the same
// answer twice, and never a slot that is not one letter.
func TestLoaderVariablesAreAnybodys(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 1))
	pieces := []string{"sealroot-", "a", "b", "+3", "-0", ".efi", ".EFI", `\`, `\EFI\Linux\`, "\x00", "é", "[+.]*", "+", "9999999999"}
	for range 1000 {
		m := &memory{vars: map[string][]byte{}}
		for _, name := range []string{"LoaderEntryOneShot", "LoaderEntryDefault", "LoaderEntrySelected", "LoaderImageIdentifier", "LoaderBootCountPath"} {
			var text string
			for range rng.IntN(6) {
				text += pieces[rng.IntN(len(pieces))]
			}
			b := encodeText(text)
			if rng.IntN(3) == 0 {
				for i := range b {
					b[i] = byte(rng.IntN(256))
				}
			}
			if n := rng.IntN(8); n > 0 {
				m.vars[name+"-"+Systemd] = b[:len(b)-min(n-1, len(b))]
			}
		}
		read := func() string {
			l, err := LoadedSlot(m, "")
			once, err1 := LoaderHint{m}.Get()
			def, err2 := LoaderHint{m}.get(entryDefault)
			counted, c, err3 := BootCounted(m)
			for _, slot := range []string{l.Slot, once, def, counted} {
				if slot != "" && (len(slot) != 1 || slot[0] < 'a' || slot[0] > 'z') {
					t.Errorf("slot %q from %q", slot, m.vars)
				}
			}
			if (l.Kind == KnownSlot) != (l.Slot != "") || c.Left < 0 || c.Done < 0 {
				t.Errorf("%+v, counter %+v", l, c)
			}
			return fmt.Sprint(l, err, once, err1, def, err2, counted, c, err3)
		}
		if a, b := read(), read(); a != b {
			t.Errorf("%s, then %s", a, b)
		}
	}
}

func FuzzLoadedSlot(f *testing.F) {
	f.Add(encodeText("sealroot-b+3-0.efi"), encodeText(`\EFI\Linux\sealroot-a.efi`))
	f.Add([]byte(nil), encodeText(`\EFI\BOOT\BOOTX64.EFI`))
	f.Fuzz(func(t *testing.T, selected, image []byte) {
		m := &memory{vars: map[string][]byte{"LoaderEntrySelected-" + Systemd: selected, "LoaderImageIdentifier-" + Systemd: image}}
		if selected == nil {
			delete(m.vars, "LoaderEntrySelected-"+Systemd)
		}
		l, err := LoadedSlot(m, "")
		if err != nil && l != (Loaded{}) {
			t.Errorf("%+v beside %v", l, err)
		}
	})
}

func TestEnsureRetry(t *testing.T) {
	m := &memory{vars: map[string][]byte{}}
	other := LoadOption{Attributes: Active, Description: "UEFI Misc Device", Partition: ourESP, Path: `\EFI\BOOT\BOOTX64.EFI`}
	m.vars["Boot0001-"+Global] = other.Encode()
	m.vars["Boot0002-"+Global] = other.Encode()
	m.vars["BootOrder-"+Global] = []byte{1, 0, 2, 0}
	m.vars["BootCurrent-"+Global] = []byte{1, 0}
	h := Hint{Vars: m, ESP: ourESP}
	for _, writes := range []string{"Boot0000 BootOrder", ""} {
		if err := h.EnsureRetry(); err != nil {
			t.Fatal(err)
		}
		if got := m.take(); got != writes {
			t.Errorf("wrote %q, want %q", got, writes)
		}
	}
	if got := m.vars["BootOrder-"+Global]; !bytes.Equal(got, []byte{1, 0, 0, 0, 2, 0}) {
		t.Errorf("BootOrder is % x, want the new entry after the one that was started", got)
	}
	if o, err := h.entry("Boot0000"); err != nil || o.Path != `\EFI\systemd\systemd-bootx64.efi` || o.Partition != ourESP {
		t.Errorf("entry %+v, %v", o, err)
	}
	// the disk was moved: the entry is mended, the order stays
	moved := ourESP
	moved.Number = 9
	if err := (Hint{Vars: m, ESP: moved}).EnsureRetry(); err != nil || m.take() != "Boot0000" {
		t.Errorf("mending: %v", err)
	}
}
