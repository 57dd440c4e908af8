package efi

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sealroot/slots/guid"
)

var ourESP = Partition{2, 0x1000, 0x32000, guid.Must("0fc63daf-8483-4772-8e79-3d69d8477de4")}

// golden is the entry below, put together by hand from UEFI 2.10: 3.1.3 (load
// option), 10.3.5.1 (hard drive node), 10.3.5.4 (file path node).
const golden = "01000000" + "6600" + // active, 102 bytes of path
	"7300650061006c0072006f006f0074002000620000" + "00" + // "sealroot b"
	"04012a00" + "02000000" + "0010000000000000" + "0020030000000000" +
	"af3dc60f838472478e793d69d8477de4" + "0202" +
	"04043800" + "5c004500460049005c004c0069006e00750078005c00" + // \EFI\Linux\
	"7300650061006c0072006f006f0074002d0062002e006500660069000000" + // sealroot-b.efi
	"7fff0400"

func TestLoadOptionGolden(t *testing.T) {
	o := LoadOption{Attributes: Active, Description: "sealroot b", Partition: ourESP, Path: Path("b")}
	if got := hex.EncodeToString(o.Encode()); got != golden {
		t.Errorf("\n got %s\nwant %s", got, golden)
	}
	b, err := hex.DecodeString(golden)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseLoadOption(append(b, 1, 2, 3))
	o.Optional = []byte{1, 2, 3}
	if err != nil || !reflect.DeepEqual(got, o) {
		t.Errorf("got %+v, %v, want %+v", got, err, o)
	}
}

func TestLoadOptionOfOthers(t *testing.T) {
	// a firmware application (Fv file) is valid, but no file of a partition
	b := append([]byte{1, 0, 0, 0, 24, 0, 'U', 0, 0, 0}, append([]byte{4, 6, 20, 0}, make([]byte, 16)...)...)
	b = append(b, 0x7f, 0xff, 4, 0)
	if o, err := ParseLoadOption(b); err != nil || o.Description != "U" || o.Path != "" {
		t.Errorf("got %+v, %v", o, err)
	}
	for name, bad := range map[string][]byte{
		"empty":            {},
		"no_end_of_text":   {1, 0, 0, 0, 0, 0, 'U', 0},
		"path_too_long":    {1, 0, 0, 0, 99, 0, 'U', 0, 0, 0},
		"no_end_of_path":   {1, 0, 0, 0, 4, 0, 'U', 0, 0, 0, 4, 6, 4, 0},
		"node_of_length_0": {1, 0, 0, 0, 4, 0, 'U', 0, 0, 0, 4, 6, 0, 0},
	} {
		if o, err := ParseLoadOption(bad); !errors.Is(err, ErrFormat) || !reflect.DeepEqual(o, LoadOption{}) {
			t.Errorf("%s: got %+v, %v, want ErrFormat", name, o, err)
		}
	}
}

// memory is firmware in memory.
type memory struct {
	vars   map[string][]byte
	writes []string
	fail   error
}

func (m *memory) Read(name, vendor string) ([]byte, error) {
	b, ok := m.vars[name+"-"+vendor]
	if !ok {
		return nil, fmt.Errorf("cannot read %s: %w", name, fs.ErrNotExist)
	}
	return bytes.Clone(b), nil
}

func (m *memory) Write(name, vendor string, attributes uint32, data []byte) error {
	if m.fail != nil {
		return m.fail
	}
	m.writes = append(m.writes, name)
	m.vars[name+"-"+vendor] = bytes.Clone(data)
	return nil
}

func (m *memory) Delete(name, vendor string) error {
	m.writes = append(m.writes, "-"+name)
	delete(m.vars, name+"-"+vendor)
	return nil
}

func (m *memory) List(vendor string) ([]string, error) {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m.vars)) {
		if name, ok := strings.CutSuffix(k, "-"+vendor); ok {
			out = append(out, name)
		}
	}
	return out, nil
}

func (m *memory) take() string {
	s := strings.Join(m.writes, " ")
	m.writes = nil
	return s
}

func TestHintOneShot(t *testing.T) {
	other := LoadOption{Attributes: Active, Description: "debian", Partition: ourESP, Path: `\EFI\debian\grubx64.efi`}
	m := &memory{vars: map[string][]byte{
		"Boot0000-" + Global:  other.Encode(),
		"BootOrder-" + Global: {0, 0},
	}}
	h := Hint{Vars: m, ESP: ourESP}
	check := func(what, wantSlot, wantWrites string) {
		t.Helper()
		got, err := h.Get()
		if err != nil || got != wantSlot {
			t.Errorf("%s: got %q, %v, want %q", what, got, err, wantSlot)
		}
		if w := m.take(); w != wantWrites {
			t.Errorf("%s: wrote %q, want %q", what, w, wantWrites)
		}
	}
	check("fresh", "", "")
	if err := h.Arm("b"); err != nil {
		t.Fatal(err)
	}
	check("armed", "b", "Boot0001 BootOrder BootNext")
	if got := m.vars["BootOrder-"+Global]; !bytes.Equal(got, []byte{0, 0, 1, 0}) {
		t.Errorf("boot order: got %x, want the new entry last", got)
	}
	if err := h.Clear(); err != nil {
		t.Fatal(err)
	}
	check("cleared", "", "-BootNext")
	if err := h.Clear(); err != nil {
		t.Fatal(err)
	}
	check("cleared_twice", "", "")

	delete(m.vars, "Boot0001-"+Global) // firmware forgets
	if err := h.Arm("b"); err != nil {
		t.Fatal(err)
	}
	check("forgotten_entry", "b", "Boot0001 BootNext")

	h.ESP.UUID = guid.Must(Global) // the disk was exchanged
	h.Exists = func(id guid.GUID) bool { return id == h.ESP.UUID }
	check("one_shot_of_another_disk", "", "")
	if err := h.Arm("b"); err != nil {
		t.Fatal(err)
	}
	check("entry_is_corrected", "b", "Boot0001 BootNext")

	m.vars["BootNext-"+Global] = []byte{0, 0}
	check("somebody_elses_one_shot", "", "")
	if err := h.Clear(); err != nil {
		t.Fatal(err)
	}
	check("and_it_stays", "", "")
	if _, ok := m.vars["BootNext-"+Global]; !ok {
		t.Error("somebody else's BootNext was deleted")
	}

	if err := h.SetDefault("b"); err != nil {
		t.Fatal(err)
	}
	check("default", "", "BootOrder")
	if got := m.vars["BootOrder-"+Global]; !bytes.Equal(got, []byte{1, 0, 0, 0}) {
		t.Errorf("boot order: got %x, want b first", got)
	}
	if err := h.SetDefault("b"); err != nil {
		t.Fatal(err)
	}
	check("default_twice", "", "")

	m.fail = errors.New("no space")
	if err := h.Arm("a"); !errors.Is(err, m.fail) {
		t.Errorf("full store: got %v", err)
	}
}

func TestInfo(t *testing.T) {
	m := &memory{vars: map[string][]byte{
		"SecureBoot-" + Global:             {1},
		"SetupMode-" + Global:              {2},
		"StubPcrKernelImage-" + Systemd:    encodeText("11"),
		"LoaderDevicePartUUID-" + Systemd:  encodeText("0FC63DAF-8483-4772-8E79-3D69D8477DE4"),
		"LoaderDevicePartUUID2-" + Systemd: encodeText("x"),
	}}
	if on, err := SecureBoot(m); !on || err != nil {
		t.Errorf("SecureBoot: got %v, %v", on, err)
	}
	if on, err := SetupMode(m); on || !errors.Is(err, ErrFormat) {
		t.Errorf("SetupMode: got %v, %v, want ErrFormat", on, err)
	}
	if s, err := StubPCR(m); s != "11" || err != nil {
		t.Errorf("StubPCR: got %q, %v", s, err)
	}
	if g, err := LoaderPartition(m); g != ourESP.UUID || err != nil {
		t.Errorf("LoaderPartition: got %v, %v", g, err)
	}
	empty := &memory{}
	if _, err := LoaderPartition(empty); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no loader: got %v, want ErrNotExist", err)
	}
	if on, err := SecureBoot(empty); on || err != nil {
		t.Errorf("no variable: got %v, %v, want false", on, err)
	}
	if s, err := StubPCR(empty); s != "" || err != nil {
		t.Errorf("no stub: got %q, %v", s, err)
	}
}

// What a loader may have left in the variables is read in bounds, or not at all.
func FuzzInfo(f *testing.F) {
	f.Add([]byte{1}, encodeText("11"))
	f.Add([]byte{2, 0}, encodeText("0FC63DAF-8483-4772-8E79-3D69D8477DE4"))
	f.Add([]byte(nil), []byte{0x00, 0xd8, 0x00})
	f.Fuzz(func(t *testing.T, flag, text []byte) {
		m := &memory{vars: map[string][]byte{
			"SecureBoot-" + Global: flag, "StubPcrKernelImage-" + Systemd: text, "LoaderDevicePartUUID-" + Systemd: text,
		}}
		if on, err := SecureBoot(m); on && (err != nil || flag[0] != 1) {
			t.Errorf("%x: Secure Boot on, %v", flag, err)
		}
		if s, err := StubPCR(m); err != nil && s != "" || len(s) > 3*len(text) {
			t.Errorf("%x: PCR %q, %v", text, s, err)
		}
		if id, err := LoaderPartition(m); err != nil && !id.IsZero() {
			t.Errorf("%x: partition %s, %v", text, id, err)
		}
	})
}

func FuzzParseLoadOption(f *testing.F) {
	b, err := hex.DecodeString(golden)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:40])
	f.Add([]byte{1, 0, 0, 0, 4, 0, 0, 0, 0x7f, 0xff, 4, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := ParseLoadOption(b)
		if err != nil {
			if !reflect.DeepEqual(o, LoadOption{}) {
				t.Fatal("error with a value")
			}
			return
		}
		if o.Path == "" || strings.ContainsRune(o.Path+o.Description, 0xfffd) {
			return // not ours, or text that is not UTF-16
		}
		if again, err := ParseLoadOption(o.Encode()); err != nil || !reflect.DeepEqual(again, o) {
			t.Fatalf("got %+v, %v, want %+v", again, err, o)
		}
	})
}

// Two disks of ours in one machine keep an entry each; only one of a disk that is
// gone is taken over.
func TestEntriesOfTwoDisks(t *testing.T) {
	for _, c := range []struct {
		name   string
		exists func(guid.GUID) bool
		want   string
	}{
		{"both_are_here", func(guid.GUID) bool { return true }, "Boot0001 BootOrder"},
		{"nobody_knows", nil, "Boot0001 BootOrder"},
		{"the_other_is_gone", func(id guid.GUID) bool { return id != ourESP.UUID }, "Boot0000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &memory{vars: map[string][]byte{}}
			first := Hint{Vars: m, ESP: ourESP}
			if err := first.SetDefault("b"); err != nil {
				t.Fatal(err)
			}
			m.take()
			second := Hint{Vars: m, ESP: ourESP, Exists: c.exists}
			second.ESP.UUID = guid.Must(Global)
			if _, err := second.Ensure("b"); err != nil {
				t.Fatal(err)
			}
			if got := m.take(); got != c.want {
				t.Errorf("wrote %q, want %q", got, c.want)
			}
			if right, err := first.IsDefault("b"); err != nil || right != (c.want != "Boot0000") {
				t.Errorf("the first disk's entry is its own: %v, %v", right, err)
			}
			if _, err := second.Ensure("b"); err != nil || m.take() != "" {
				t.Errorf("the second time: %v", err)
			}
		})
	}
}
