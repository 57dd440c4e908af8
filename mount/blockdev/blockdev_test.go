package blockdev

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// tree writes files below a directory of its own and returns that.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// disk adds the files of a disk to a tree.
func disk(files map[string]string, dir, dev, sectors string) {
	files[dir+"/dev"] = dev
	files[dir+"/size"] = sectors
	files[dir+"/queue/logical_block_size"] = "512"
	files[dir+"/removable"] = "0"
	files[dir+"/ro"] = "0"
}

func partition(files map[string]string, dir, number, dev, start, sectors string) {
	files[dir+"/partition"] = number
	files[dir+"/dev"] = dev
	files[dir+"/start"] = start
	files[dir+"/size"] = sectors
}

func TestScan(t *testing.T) {
	files := map[string]string{"block/.keep": ""}
	disk(files, "devices/vda", "254:0", "8192")
	partition(files, "devices/vda/vda10", "10", "254:10", "4096", "8")
	partition(files, "devices/vda/vda2", "2", "254:2", "2048", "2048")
	disk(files, "devices/nvme0n1", "259:0", "1024")
	files["devices/nvme0n1/queue/logical_block_size"] = "4096"
	partition(files, "devices/nvme0n1/nvme0n1p1", "1", "259:1", "40", "80")
	disk(files, "devices/sda", "8:0", "16")
	files["devices/sda/removable"] = "1"
	files["devices/sda/ro"] = "1"
	disk(files, "devices/sdb", "8:16", "0") // an empty card reader
	disk(files, "devices/cciss!c0d0", "104:0", "16")
	for _, name := range []string{"loop0", "ram0", "zram0", "dm-0", "md127", "sr0"} {
		disk(files, "devices/"+name, "7:0", "16")
	}
	sys := tree(t, files)
	names, err := os.ReadDir(filepath.Join(sys, "devices"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names { // as in sysfs, /sys/block has links
		if err := os.Symlink("../devices/"+n.Name(), filepath.Join(sys, "block", n.Name())); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(sys, "block/.keep")); err != nil {
		t.Fatal(err)
	}
	got, err := Scan(sys, "/dev")
	if err != nil {
		t.Fatal(err)
	}
	want := []Disk{
		{Name: "cciss!c0d0", Node: "/dev/cciss/c0d0", Major: 104, Size: 8192, SectorSize: 512},
		{Name: "nvme0n1", Node: "/dev/nvme0n1", Major: 259, Size: 1024 * 512, SectorSize: 4096, Partitions: []Partition{
			{Number: 1, Name: "nvme0n1p1", Node: "/dev/nvme0n1p1", Major: 259, Minor: 1, Start: 40 * 512, Size: 80 * 512},
		}},
		{Name: "sda", Node: "/dev/sda", Major: 8, Size: 8192, SectorSize: 512, Removable: true, ReadOnly: true},
		{Name: "vda", Node: "/dev/vda", Major: 254, Size: 4 << 20, SectorSize: 512, Partitions: []Partition{
			{Number: 2, Name: "vda2", Node: "/dev/vda2", Major: 254, Minor: 2, Start: 1 << 20, Size: 1 << 20},
			{Number: 10, Name: "vda10", Node: "/dev/vda10", Major: 254, Minor: 10, Start: 2 << 20, Size: 4096},
		}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	if p, ok := got[3].Partition(10); !ok || p.DevNo() != "254:10" {
		t.Errorf("partition 10: got %+v, %t", p, ok)
	}
	if _, ok := got[3].Partition(1); ok {
		t.Error("partition 1 was found although there is none")
	}
}

func TestScanWithoutBlockDevices(t *testing.T) {
	got, err := Scan(t.TempDir(), "/dev")
	if err != nil || got != nil {
		t.Errorf("got %v, %v, want nothing", got, err)
	}
}

func TestScanOfADiskThatGoesAway(t *testing.T) {
	files := make(map[string]string)
	disk(files, "block/vda", "254:0", "16")
	disk(files, "block/vdb", "254:16", "16")
	delete(files, "block/vda/removable")
	got, err := Scan(tree(t, files), "/dev")
	if err != nil || len(got) != 1 || got[0].Name != "vdb" {
		t.Errorf("got %v, %v, want vdb", got, err)
	}
}

func TestScanLeavesNonsenseOut(t *testing.T) {
	for name, change := range map[string][2]string{
		"device_number":  {"dev", "254"},
		"huge_major":     {"dev", "99999:0"},
		"negative_size":  {"size", "-1"},
		"overflow":       {"size", "9223372036854775807"},
		"sector_size":    {"queue/logical_block_size", "513"},
		"no_sector_size": {"queue/logical_block_size", "0"},
		"text":           {"removable", "yes"},
	} {
		t.Run(name, func(t *testing.T) {
			files := make(map[string]string)
			disk(files, "block/vda", "254:0", "16")
			files["block/vda/"+change[0]] = change[1]
			got, err := Scan(tree(t, files), "/dev")
			if err != nil || got != nil {
				t.Errorf("got %v, %v, want nothing", got, err)
			}
			if _, err := readDisk(filepath.Join(tree(t, files), "block/vda"), "/dev"); !errors.Is(err, ErrSysfs) {
				t.Errorf("readDisk() error = %v, want %v", err, ErrSysfs)
			}
		})
	}
}

// lsblk(8) is the judge of what this machine has.
func TestScanOfThisMachine(t *testing.T) {
	out, err := exec.Command("lsblk", "--json", "--bytes", "--output", "NAME,SIZE,LOG-SEC,TYPE,MAJ:MIN,RM,RO,PATH").Output()
	if err != nil {
		t.Fatalf("lsblk: %v", err)
	}
	type dev struct {
		Name   string `json:"name"`
		Size   int64  `json:"size"`
		Sector int    `json:"log-sec"`
		Type   string `json:"type"`
		DevNo  string `json:"maj:min"`
		RM     bool   `json:"rm"`
		RO     bool   `json:"ro"`
		Path   string `json:"path"`
	}
	var want struct {
		Devices []struct {
			dev
			Children []dev `json:"children"`
		} `json:"blockdevices"`
	}
	if err := json.Unmarshal(out, &want); err != nil {
		t.Fatal(err)
	}
	disks, err := Scan("/sys", "/dev")
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]Disk)
	for _, d := range disks {
		found[d.Name] = d
	}
	count := 0
	for _, w := range want.Devices {
		if w.Type != "disk" || w.Size == 0 || strings.HasPrefix(w.Name, "zram") {
			continue
		}
		count++
		d := found[w.Name]
		if got := (dev{d.Name, d.Size, d.SectorSize, w.Type, d.DevNo(), d.Removable, d.ReadOnly, d.Node}); got != w.dev {
			t.Errorf("got %+v, want %+v", got, w.dev)
		}
		for _, c := range w.Children {
			for _, p := range d.Partitions {
				if p.Name == c.Name && (p.DevNo() != c.DevNo || p.Size != c.Size) {
					t.Errorf("got %+v, want %+v", p, c)
				}
			}
		}
	}
	if len(disks) != count {
		t.Errorf("got %d disks, lsblk has %d", len(disks), count)
	}
}

// loopDevice is a loop device of 1 MiB with 4096-byte sectors, by losetup(8).
func loopDevice(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--sector-size", "4096", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup (run as root): %v: %s", err, out)
	}
	path := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", path).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	return path
}

func TestDevice(t *testing.T) {
	path := loopDevice(t)
	d, err := Open(path, true)
	if err != nil {
		t.Fatal(err)
	}
	if d.Size() != 1<<20 || d.SectorSize() != 4096 || !strings.HasPrefix(d.DevNo(), "7:") || d.Name() != path {
		t.Errorf("got %d bytes, sectors of %d, %s, %s", d.Size(), d.SectorSize(), d.DevNo(), d.Name())
	}
	want := bytes.Repeat([]byte("x"), 100)
	if _, err := d.WriteAt(want, 5000); err != nil {
		t.Fatal(err)
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := Open(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make([]byte, 100)
	if _, err := r.ReadAt(got, 5000); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := r.WriteAt(want, 0); err == nil {
		t.Error("wrote to a device that is open for reading")
	}
}

func TestLock(t *testing.T) {
	path := loopDevice(t)
	open := func() *Device {
		d, err := Open(path, true)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return d
	}
	first, second := open(), open()
	unlock, err := first.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// flock(1) is the judge that it is the lock other programs take.
	if err := exec.Command("flock", "--nonblock", path, "true").Run(); err == nil {
		t.Error("flock(1) got the lock although we hold it")
	}
	short, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := second.Lock(short); !errors.Is(err, ErrLocked) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, ErrLocked)
	}
	time.AfterFunc(30*time.Millisecond, func() {
		if err := unlock(); err != nil {
			t.Error(err)
		}
	})
	long, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := second.Lock(long); err != nil {
		t.Errorf("after unlock: %v", err)
	}
}

func TestOpenOfOtherThings(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if out, err := exec.Command("mkfifo", fifo).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, file, dir, "/dev/null"} {
		if d, err := Open(path, false); !errors.Is(err, ErrNotBlock) || d != nil {
			t.Errorf("%s: got %v, want %v", path, err, ErrNotBlock)
		}
	}
	if _, err := Open(filepath.Join(dir, "none"), false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want %v", err, os.ErrNotExist)
	}
}
