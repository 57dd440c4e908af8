//go:build !minimal

package live

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/mount"
	"sealroot/mount/blockdev"
	"sealroot/slots"
	"sealroot/slots/bls"
	"sealroot/slots/efi"
	"sealroot/slots/esp"
	"sealroot/slots/gpt"
)

// mounts counts how often the ESP was mounted; its files are always there.
type mounts struct {
	mount.Mounter
	read, write int
}

func (m *mounts) Mount(p mount.Point) error {
	if p.Flags&unix.MS_RDONLY != 0 {
		m.read++
	} else if m.write++; p.Flags&unix.MS_DIRSYNC == 0 {
		return fmt.Errorf("%s is mounted for writing without dirsync", p.Where)
	}
	return nil
}

func (m *mounts) Unmount(string) error { return nil }

// firmware is EFI variables in memory.
type firmware map[string][]byte

func (f firmware) Read(name, vendor string) ([]byte, error) {
	if b, ok := f[name+vendor]; ok {
		return b, nil
	}
	return nil, fs.ErrNotExist
}

func (f firmware) Write(name, vendor string, _ uint32, data []byte) error {
	f[name+vendor] = data
	return nil
}

func (f firmware) Delete(name, vendor string) error {
	delete(f, name+vendor)
	return nil
}

func (f firmware) List(string) ([]string, error) { return nil, nil }

// diskWithESP is a disk with an ESP and two slots, opened for systemd-boot with
// the store bls. The ESP's files are in dir.
func diskWithESP(t *testing.T) (k Kept, m *mounts, dir string) {
	t.Helper()
	table := &gpt.Table{SectorSize: 512, Partitions: []gpt.Partition{
		{Number: 1, First: 8, Last: 15, Name: gpt.LabelESP},
		{Number: 2, First: 16, Last: 23, Name: "root-a"},
		{Number: 3, First: 24, Last: 31, Name: "root-b"},
	}}
	d := &Disk{Block: blockdev.Disk{Node: "/dev/none"}, Table: table}
	for _, p := range table.Partitions {
		d.Block.Partitions = append(d.Block.Partitions, blockdev.Partition{Number: p.Number, Start: table.Offset(p), Size: table.Size(p)})
	}
	m, dir = &mounts{}, t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, esp.LinuxDir), 0o755); err != nil {
		t.Fatal(err)
	}
	list := []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Tries: 3}}
	counters, text, err := bls.Initial(list)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		esp.Slots:      string(text),
		esp.LoaderConf: "timeout 0\ndefault " + efi.EntryPattern("a") + "\neditor no\n",
		esp.LinuxDir + "/" + esp.UKIName("a", counters["a"]): "a",
		esp.LinuxDir + "/" + esp.UKIName("b", counters["b"]): "b",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	k, err = d.Open(Choice{Store: StoreBLS, Loader: LoaderSystemdBoot, UEFI: true}, ESP{Disk: d, Mounter: m, Dir: dir}, firmware{})
	if err != nil {
		t.Fatal(err)
	}
	return k, m, dir
}

// The ESP is mounted for writing only when something changes.
func TestSystemdBootWritesNothingTwice(t *testing.T) {
	k, m, dir := diskWithESP(t)
	step := func(what string, err error, writes int) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if m.write != writes {
			t.Errorf("%s: mounted for writing %d times, want %d", what, m.write, writes)
		}
		m.write = 0
	}
	list, err := k.Store.Load()
	step("load", err, 0)
	step("save of the same", k.Store.Save(list), 0)
	committed, err := slots.CommitCounted(list, "b", 0)
	step("commit", err, 0)
	step("save", k.Store.Save(committed), 1)
	if _, err := os.Stat(filepath.Join(dir, esp.UKI("b"))); err != nil {
		t.Errorf("slot b's file has not lost its counter: %v", err)
	}
	step("default", k.Loader.SetDefault("b"), 1)
	step("default again", k.Loader.SetDefault("b"), 0)
	step("arm", k.Loader.Arm("b"), 0)
	conf, err := os.ReadFile(filepath.Join(dir, esp.LoaderConf))
	if want := "timeout 0\ndefault sealroot-b[+.]*\neditor no\n"; err != nil || string(conf) != want {
		t.Errorf("loader.conf is %q, %v, want %q", conf, err, want)
	}
	names, err := filepath.Glob(filepath.Join(dir, "loader/*"))
	if err != nil || strings.Join(names, " ") != filepath.Join(dir, esp.LoaderConf) {
		t.Errorf("in loader/: %v, %v", names, err)
	}
}

// A loader.conf that is not read whole is not written anew.
func TestLongLoaderConf(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, esp.LoaderConf)
	long := strings.Repeat("# a remark\n", maxConf/11+1)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(long), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := LoaderConf(dir).SetDefault("b"); err == nil {
		t.Error("SetDefault() goes on")
	}
	if now, err := os.ReadFile(path); err != nil || string(now) != long {
		t.Errorf("loader.conf has %d bytes, %v, want %d as before", len(now), err, len(long))
	}
}
