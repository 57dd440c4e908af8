package live

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/mount"
	"sealroot/mount/blockdev"
	"sealroot/slots"
	"sealroot/slots/efi"
	names "sealroot/slots/esp"
	"sealroot/slots/fixed"
	"sealroot/slots/gpt"
	"sealroot/slots/grubenv"
	"sealroot/slots/guid"
	"sealroot/slots/slotstest"
)

// newDisk is a disk with an ESP and two slots. Its device node does not exist.
func newDisk(t *testing.T) *Disk {
	t.Helper()
	const size, unit = 1 << 20, 64 << 10
	id := func(n byte) guid.GUID {
		g, err := guid.Random(bytes.NewReader(bytes.Repeat([]byte{n}, 16)))
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	table, err := gpt.New(id(1), size, 512)
	if err != nil {
		t.Fatal(err)
	}
	d := &Disk{Table: table, Block: blockdev.Disk{Node: "/nonexistent"}}
	for i, p := range []gpt.Partition{
		{Type: guid.Must(gpt.TypeESP), Name: gpt.LabelESP},
		{Type: guid.Must(gpt.TypeRoot), Name: gpt.RootLabel("a")},
		{Type: guid.Must(gpt.TypeRoot), Name: gpt.RootLabel("b")},
	} {
		p.UUID, p.First, p.Last = id(byte(i+2)), uint64(i+1)*unit/512, uint64(i+2)*unit/512-1
		if err := table.Add(p); err != nil {
			t.Fatal(err)
		}
		d.Block.Partitions = append(d.Block.Partitions, blockdev.Partition{Number: i + 1, Start: int64(i+1) * unit, Size: unit})
	}
	return d
}

// folder stands for a file system: a mount makes nothing, and is noted.
type folder struct {
	mount.Mounter // nil: nothing else is called
	mounts        *[]string
}

func (f folder) Mount(p mount.Point) error {
	how := "rw"
	if p.Flags&unix.MS_RDONLY != 0 {
		how = "ro"
	}
	*f.mounts = append(*f.mounts, how)
	return nil
}

func (folder) Unmount(string) error { return nil }

func newESP(t *testing.T, d *Disk) (esp ESP, mounts *[]string) {
	t.Helper()
	mounts = new([]string)
	esp = ESP{Disk: d, Mounter: folder{mounts: mounts}, Dir: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(esp.Dir, filepath.Dir(names.Grubenv)), 0o755); err != nil {
		t.Fatal(err)
	}
	return esp, mounts
}

func TestOpen(t *testing.T) {
	d := newDisk(t)
	esp, mounts := newESP(t, d)
	vars := slotstest.NewVars()
	for _, tt := range []struct {
		name          string
		choice        Choice
		store, loader string
	}{
		{"default", Choice{Loader: LoaderGRUB}, "live.store", "live.GrubHint"},
		{"gpt_grub", Choice{Store: StoreGPT, Loader: LoaderGRUB}, "live.store", "live.GrubHint"},
		{"gpt_uki", Choice{Store: StoreGPT, Loader: LoaderUKI, UEFI: true}, "live.store", "efi.Hint"},
		{"gpt_uki_without_firmware", Choice{Store: StoreGPT, Loader: LoaderUKI}, "live.store", "<nil>"},
		{"gpt_systemd_boot", Choice{Store: StoreGPT, Loader: LoaderSystemdBoot, UEFI: true}, "live.store", "live.SystemdBoot"},
		{"gpt_systemd_boot_without_firmware", Choice{Store: StoreGPT, Loader: LoaderSystemdBoot}, "live.store", "<nil>"},
		{"direct_kernel", Choice{Store: StoreGPT, Loader: LoaderGRUB, Direct: true}, "live.store", "<nil>"},
		{"discoverable", Choice{Store: StoreFixed, Loader: LoaderUKI, UEFI: true, Discoverable: true}, "fixed.Store", "<nil>"},
		{"darch", Choice{Store: StoreDarch, Loader: LoaderGRUB}, "live.grubStore", "live.GrubHint"},
		{"rauc", Choice{Store: StoreRAUC, Loader: LoaderGRUB, UEFI: true}, "live.grubStore", "live.GrubHint"},
		{"bls", Choice{Store: StoreBLS, Loader: LoaderSystemdBoot, UEFI: true}, "live.blsStore", "live.SystemdBoot"},
		{"efi", Choice{Store: StoreEFI, Loader: LoaderUKI, UEFI: true}, "efi.Store", "efi.Hint"},
		{"efi_without_firmware", Choice{Store: StoreEFI, Loader: LoaderUKI}, "efi.Store", "<nil>"},
		{"fixed", Choice{Store: StoreFixed, Loader: LoaderUKI, UEFI: true}, "fixed.Store", "efi.Hint"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k, err := d.Open(tt.choice, esp, vars)
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprintf("%T %T", k.Store, k.Loader); got != tt.store+" "+tt.loader {
				t.Errorf("got %s, want %s %s", got, tt.store, tt.loader)
			}
			if tt.choice.Store != StoreDarch {
				if err := k.TellFallback(); err != nil {
					t.Errorf("TellFallback: %v", err)
				}
			}
		})
	}
	if len(*mounts) > 0 {
		t.Errorf("opening mounts the ESP: %v", *mounts)
	}
	for _, c := range []Choice{{Store: "tape", Loader: LoaderGRUB}, {Store: StoreGPT, Loader: "lilo"}} {
		if k, err := d.Open(c, esp, vars); !errors.Is(err, ErrUnsupported) || k != (Kept{}) {
			t.Errorf("%+v: got %v, %v, want ErrUnsupported", c, k, err)
		}
	}
	empty := &Disk{Table: &gpt.Table{}}
	if _, err := empty.Open(Choice{Store: StoreFixed, Loader: LoaderGRUB}, esp, vars); !errors.Is(err, slots.ErrNoSlot) {
		t.Errorf("a disk without slots: got %v, want ErrNoSlot", err)
	}
}

// The words are those of the configuration.
func TestWordsOfTheConfiguration(t *testing.T) {
	for got, want := range map[string]string{
		StoreGPT: string(config.StoreGPT), StoreDarch: string(config.StoreGrubenvDarch), StoreRAUC: string(config.StoreGrubenvRAUC),
		StoreBLS: string(config.StoreBLS), StoreEFI: string(config.StoreEFI), StoreFixed: string(config.StoreFixed),
		LoaderGRUB: string(config.LoaderGRUB), LoaderUKI: string(config.LoaderUKI), LoaderSystemdBoot: string(config.LoaderSystemdBoot),
	} {
		if got != want {
			t.Errorf("got %q, the configuration has %q", got, want)
		}
	}
}

func TestGrubStoreOnESP(t *testing.T) {
	d := newDisk(t)
	esp, mounts := newESP(t, d)
	k, err := d.Open(Choice{Store: StoreDarch, Loader: LoaderGRUB}, esp, nil)
	if err != nil {
		t.Fatal(err)
	}
	did := func(want string) {
		t.Helper()
		if got := strings.Join(*mounts, " "); got != want {
			t.Errorf("mounted %q, want %q", got, want)
		}
		*mounts = nil
	}
	// no block yet: a state that can be booted, and nothing is written for it
	list, err := k.Store.Load()
	if err != nil || len(list) != 2 || !list[0].Successful {
		t.Fatalf("a missing block: got %v, %v", list, err)
	}
	did("ro")
	if err := k.Store.Save(list); err != nil {
		t.Fatal(err)
	}
	did("ro")
	want := []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Tries: 3}}
	if err := k.Store.Save(want); err != nil {
		t.Fatal(err)
	}
	did("ro rw")
	if got, err := k.Store.Load(); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	did("ro")
	for _, act := range []func() error{
		func() error { return k.Loader.Arm("b") }, func() error { return k.Loader.SetDefault("a") }, k.TellFallback,
	} {
		if err := act(); err != nil {
			t.Fatal(err)
		}
	}
	*mounts = nil
	for _, act := range []func() error{
		func() error { return k.Loader.Arm("b") }, func() error { return k.Loader.SetDefault("a") },
	} {
		if err := act(); err != nil {
			t.Fatal(err)
		}
	}
	did("ro ro") // all was so already
	b, err := os.ReadFile(filepath.Join(esp.Dir, names.Grubenv))
	if err != nil {
		t.Fatal(err)
	}
	e, err := grubenv.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"BOOT_VERSION": "B", "BOOT_COUNT": "7", "BOOT_VERIFIED": "false", "BOOT_FELL_BACK": "true",
		"sealroot_once": "b", "sealroot_default": "a", "sealroot_slots": "a:1:0:1,b:2:3:0",
	} {
		if got, _ := e.Get(name); got != want {
			t.Errorf("%s=%s, want %s", name, got, want)
		}
	}
}

func TestStoresThatRefuse(t *testing.T) {
	d := newDisk(t)
	esp, _ := newESP(t, d)
	change := []slots.Slot{{Name: "a", Priority: 7, Tries: 1}}
	for store, want := range map[string]error{StoreFixed: fixed.ErrFixed, StoreEFI: efi.ErrNoVariables} {
		k, err := d.Open(Choice{Store: store, Loader: LoaderUKI}, esp, nil)
		if err != nil {
			t.Fatal(err)
		}
		list, err := k.Store.Load()
		if err != nil || list[0].Name != "a" || !list[0].Successful {
			t.Errorf("%s: got %v, %v, want slot a committed", store, list, err)
		}
		if err := k.Store.Save(change); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", store, err, want)
		}
	}
}
