package esp

import (
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		UKI("b"):                      "EFI/Linux/sealroot-b.efi",
		Kernel("a"):                   "sealroot/a/vmlinuz",
		Initrd("a"):                   "sealroot/a/initrd",
		UKIName("b", Counting(3, 0)):  "sealroot-b+3-0.efi",
		UKIName("b", Counting(0, 12)): "sealroot-b+0-12.efi",
		EFIPath(UKI("b")):             `\EFI\Linux\sealroot-b.efi`,
		UKIName("a", Counter{Counted: true, Left: 2}): "sealroot-a+2.efi",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestParseUKIName(t *testing.T) {
	tests := []struct {
		name, slot string
		counter    Counter
		ok         bool
	}{
		{"sealroot-a.efi", "a", Counter{}, true},
		{"SEALROOT-A.EFI", "a", Counter{}, true},
		{"sealroot-b+3-0.efi", "b", Counting(3, 0), true},
		{"sealroot-b+3.efi", "b", Counter{Counted: true, Left: 3}, true},
		{"sealroot-b+03-007.efi", "b", Counting(3, 7), true},
		{"sealroot-b+2147483647-0.efi", "b", Counting(2147483647, 0), true},
		{"sealroot-b+2147483648-0.efi", "", Counter{}, false},
		{"sealroot-b+99999999999999999999.efi", "", Counter{}, false},
		{"sealroot-b+.efi", "", Counter{}, false},
		{"sealroot-b+-1.efi", "", Counter{}, false},
		{"sealroot-b+3-.efi", "", Counter{}, false},
		{"sealroot-b+3-0-0.efi", "", Counter{}, false},
		{"sealroot-b+3+3-0.efi", "", Counter{}, false},
		{"sealroot-b+ 3.efi", "", Counter{}, false},
		{"sealroot-ab.efi", "", Counter{}, false},
		{"sealroot-.efi", "", Counter{}, false},
		{"sealroot-1.efi", "", Counter{}, false},
		{"sealroot-é.efi", "", Counter{}, false},
		{"sealroot-b.efi.new", "", Counter{}, false},
		{"debian-b.efi", "", Counter{}, false},
		{".efi", "", Counter{}, false},
		{"", "", Counter{}, false},
	}
	for _, tt := range tests {
		slot, c, ok := ParseUKIName(tt.name)
		if slot != tt.slot || c != tt.counter || ok != tt.ok {
			t.Errorf("%q: got %q, %+v, %v", tt.name, slot, c, ok)
		}
	}
}

func TestPathsOfFirmware(t *testing.T) {
	for path, want := range map[string]string{
		`\EFI\Linux\sealroot-b.efi`:     "b",
		`\efi\LINUX\SEALROOT-B+2-1.EFI`: "b",
		`\EFI\Linux\x\sealroot-b.efi`:   "",
		`EFI\Linux\sealroot-b.efi`:      "",
		`/EFI/Linux/sealroot-b.efi`:     "",
		`\EFI\BOOT\BOOTX64.EFI`:         "",
		``:                              "",
	} {
		if slot, _, ok := SlotOfImage(path); slot != want || ok != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", path, slot, ok, want)
		}
	}
	if !IsFallback(`\efi\boot\bootx64.efi`) || IsFallback(`\EFI\BOOT\BOOTIA32.EFI`) {
		t.Error("IsFallback does not know its file")
	}
}

func FuzzParseUKIName(f *testing.F) {
	for _, name := range []string{"sealroot-a.efi", "sealroot-b+3-0.efi", "sealroot-b+3.EFI", "sealroot-b+.efi", "+1-2"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		slot, c, ok := ParseUKIName(name)
		if !ok {
			if slot != "" || c != (Counter{}) {
				t.Fatal("not a name, but a value")
			}
			return
		}
		again, d, ok := ParseUKIName(UKIName(slot, c))
		if again != slot || d != c || !ok {
			t.Fatalf("%q: got %q %+v, again %q %+v %v", name, slot, c, again, d, ok)
		}
		if s, e, ok := SlotOfImage(EFIPath(LinuxDir) + `\` + strings.ToUpper(name)); s != slot || e != c || !ok {
			t.Fatalf("%q: the firmware's path reads as %q %+v %v", name, s, e, ok)
		}
	})
}
