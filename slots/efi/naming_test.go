package efi

import (
	"errors"
	"slices"
	"testing"

	"sealroot/slots/guid"
	"sealroot/slots/slotstest"
)

func TestEntryNaming(t *testing.T) {
	esp, other := guid.Must("c4ac8a51-7d4a-4a4e-8c8c-7f3a6a0d0001"), guid.Must("c4ac8a51-7d4a-4a4e-8c8c-7f3a6a0d0002")
	of := func(id guid.GUID) []byte {
		return LoadOption{Active, "x", Partition{Number: 1, Start: 2048, Size: 9, UUID: id}, `\EFI\x.efi`, nil}.Encode()
	}
	// PciRoot(0)/HD(…)/File(…), a path that ParseLoadOption leaves out
	long := of(esp)
	root := []byte{2, 1, 12, 0, 0xd0, 0x41, 3, 0x0a, 0, 0, 0, 0}
	long[4] += byte(len(root))
	long = slices.Insert(long, 6+4, root...)
	if o, err := ParseLoadOption(long); err != nil || o.Path != "" {
		t.Fatalf("the long path: %+v, %v", o, err)
	}
	for _, tt := range []struct {
		name, vendor string
		data         []byte
		want         string
	}{
		{"Boot0003", Global, of(esp), "Boot0003"},
		{"Boot001A", Global, long, "Boot001A"},
		{"Boot0003", Global, append(of(esp)[:40:40], esp[:]...), "Boot0003"}, // whatever it means
		{"Boot0003", Global, of(other), ""},
		{"Boot0003", Global, make([]byte, 64), ""},
		{"BootNext", Global, of(esp), ""},
		{"Boot0003", Systemd, of(esp), ""},
	} {
		v := slotstest.NewVars()
		put(t, v, tt.name, tt.vendor, tt.data)
		if got, err := EntryNaming(v, esp); err != nil || got != tt.want {
			t.Errorf("%s: got %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
	if _, err := EntryNaming(unreadable{slotstest.NewVars()}, esp); !errors.Is(err, errUnreadable) {
		t.Errorf("an entry that cannot be read: got %v", err)
	}
}

var errUnreadable = errors.New("unreadable")

type unreadable struct{ *slotstest.Vars }

func (unreadable) List(string) ([]string, error)       { return []string{"Boot0000"}, nil }
func (unreadable) Read(string, string) ([]byte, error) { return nil, errUnreadable }
