package live

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/mount/blockdev"
	"sealroot/slots/efi"
	"sealroot/slots/gpt"
	"sealroot/slots/guid"
	"sealroot/slots/slotstest"
)

// image is a disk image with an ESP, slots a and b and a boot log, as the builder
// leaves it.
func image(t *testing.T) string {
	t.Helper()
	const size, unit = 1 << 20, 64 << 10
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	newID := func() guid.GUID {
		id, err := guid.Random(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	table, err := gpt.New(newID(), size, 512)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range []gpt.Partition{
		{Type: guid.Must(gpt.TypeESP), Name: gpt.LabelESP},
		{Type: guid.Must(gpt.TypeRoot), Name: gpt.RootLabel("a")},
		{Type: guid.Must(gpt.TypeRoot), Name: gpt.RootLabel("b")},
		{Type: guid.Must(gpt.TypeLog), Name: gpt.LabelLog, Attributes: gpt.Fresh},
	} {
		p.UUID, p.First, p.Last = newID(), uint64(i+1)*unit/512, uint64(i+2)*unit/512-1
		if err := table.Add(p); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := table.Write(f); err != nil {
		t.Fatal(err)
	}
	return path
}

// copyOf is what dd makes of an image.
func copyOf(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

// attach shows a file as a block device.
func attach(t *testing.T, path string) (node string) {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", path).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup (run as root): %v: %s", err, out)
	}
	node = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", node).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	return node
}

// computer is a machine with the images as /dev/vda, /dev/vdb and so on: loop
// devices, and the sysfs that a kernel would show of disks.
type computer struct{ sys, dev string }

func newComputer(t *testing.T, images ...string) computer {
	t.Helper()
	c := computer{t.TempDir(), t.TempDir()}
	for i, path := range images {
		name := fmt.Sprintf("vd%c", 'a'+i)
		loop := attach(t, path)
		if err := os.Symlink(loop, filepath.Join(c.dev, name)); err != nil {
			t.Fatal(err)
		}
		d, err := blockdev.Open(loop, false)
		if err != nil {
			t.Fatal(err)
		}
		table, err := gpt.Read(d, d.Size(), 512)
		if err != nil {
			t.Fatal(err)
		}
		files := map[string]string{
			"dev": d.DevNo(), "size": fmt.Sprint(d.Size() / 512), "queue/logical_block_size": "512", "removable": "0", "ro": "0",
		}
		for _, p := range table.Partitions {
			dir := fmt.Sprintf("%s%d/", name, p.Number)
			files[dir+"partition"], files[dir+"dev"] = fmt.Sprint(p.Number), fmt.Sprintf("259:%d", 16*i+p.Number)
			files[dir+"start"], files[dir+"size"] = fmt.Sprint(p.First), fmt.Sprint(p.Last-p.First+1)
		}
		d.Close()
		for file, text := range files {
			at := filepath.Join(c.sys, "block", name, file)
			if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(at, []byte(text+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return c
}

// inEachOrder runs a case on a machine with a disk before another, and behind it;
// name is the disk's in the kernel.
func inEachOrder(t *testing.T, disk, other string, run func(c computer, name string)) {
	t.Helper()
	run(newComputer(t, disk, other), "vda")
	run(newComputer(t, other, disk), "vdb")
}

// boot is what PID 1 does with the disk that the loader read its files from.
func (c computer) boot(t *testing.T, loader string) *Disk {
	t.Helper()
	d, err := Find(c.sys, c.dev, gpt.Naming{}, loader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Renew(rand.Reader, nil); err != nil {
		t.Fatal(err)
	}
	return d
}

func espOf(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := gpt.Read(f, 1<<20, 512)
	if err != nil {
		t.Fatal(err)
	}
	p, err := table.ByName(gpt.LabelESP)
	if err != nil {
		t.Fatal(err)
	}
	return p.UUID.String()
}

// A copy of the boot disk, GUIDs and labels and all, never wins: neither does the
// disk itself, which cannot be told from it. The error says what to do.
func TestCopyOfTheBootDisk(t *testing.T) {
	disk := image(t)
	newComputer(t, disk).boot(t, espOf(t, disk)) // its GUIDs are its own now
	clone, other := copyOf(t, disk), image(t)
	for name, images := range map[string][]string{
		"behind": {disk, clone}, "before": {clone, disk}, "with_another": {other, clone, disk},
	} {
		c := newComputer(t, images...)
		for _, from := range []string{espOf(t, disk), ""} {
			d, err := Find(c.sys, c.dev, gpt.Naming{}, from)
			if !errors.Is(err, ErrAmbiguous) || d != nil || !strings.Contains(err.Error(), "vdb") || !strings.Contains(err.Error(), "sgdisk -G") {
				t.Errorf("%s, loader %q: got %v, %v, want a refusal that names the disks and what to do", name, from, d, err)
			}
		}
		// The control: without the rule one of them would be taken, by chance.
		if found, err := candidates(c.sys, c.dev, gpt.Naming{}, espOf(t, disk)); err != nil || len(found) != 2 {
			t.Errorf("%s: candidates %v, %v, want the disk and its copy", name, found, err)
		}
	}
}

// Another disk with the same labels is another disk. When nobody says which of
// the two it is, none is taken.
func TestAnotherDiskWithTheSameLabels(t *testing.T) {
	disk, other := image(t), image(t)
	inEachOrder(t, disk, other, func(c computer, want string) {
		if d, err := Find(c.sys, c.dev, gpt.Naming{}, espOf(t, disk)); err != nil || d.Block.Name != want || d.LoadedFrom() != espOf(t, disk) {
			t.Errorf("got %+v, %v, want %s", d, err, want)
		}
		if d, err := Find(c.sys, c.dev, gpt.Naming{}, ""); !errors.Is(err, ErrAmbiguous) || d != nil {
			t.Errorf("without a word of the loader: got %v, %v, want %v", d, err, ErrAmbiguous)
		}
		if d, err := Find(c.sys, c.dev, gpt.Naming{}, "0d5e6c1f-7d5e-4b8e-9d2c-0f0b6a1d2c3e"); !errors.Is(err, ErrNoDisk) || d != nil {
			t.Errorf("a UUID that no disk has: got %v, %v, want %v", d, err, ErrNoDisk)
		}
	})
}

// The medium that a disk was copied from may stay in the machine once the disk
// has booted.
func TestMediumOfTheFlashedImage(t *testing.T) {
	medium := image(t)
	disk := copyOf(t, medium)
	both := newComputer(t, disk, medium)
	if d, err := Find(both.sys, both.dev, gpt.Naming{}, espOf(t, disk)); !errors.Is(err, ErrAmbiguous) {
		t.Fatalf("the control: got %+v, %v, want no choice before the disk has booted without it", d, err)
	}
	first := newComputer(t, disk).boot(t, espOf(t, disk))
	if first.LoadedFrom() != espOf(t, disk) || espOf(t, disk) == espOf(t, medium) {
		t.Fatalf("the first boot leaves the ESP with %s, the disk says %s", first.LoadedFrom(), espOf(t, disk))
	}
	inEachOrder(t, disk, medium, func(c computer, want string) {
		before := espOf(t, disk)
		if d := c.boot(t, before); d.Block.Name != want {
			t.Errorf("%s booted, want %s", d.Block.Name, want)
		}
		if espOf(t, disk) != before {
			t.Error("a later boot changes the GUIDs again")
		}
	})
}

// A disk that cannot be written keeps what it has.
func TestRenewOfAReadOnlyDisk(t *testing.T) {
	disk := image(t)
	before := espOf(t, disk)
	c := newComputer(t, disk)
	d, err := Find(c.sys, c.dev, gpt.Naming{}, before)
	if err != nil {
		t.Fatal(err)
	}
	d.Block.ReadOnly = true
	if renewed, err := d.Renew(rand.Reader, nil); err != nil || renewed || espOf(t, disk) != before {
		t.Errorf("got %t, %v, want nothing done", renewed, err)
	}
}

// A disk that the firmware's boot entries name keeps its GUIDs for as long.
func TestRenewOfADiskThatTheFirmwareNames(t *testing.T) {
	disk := image(t)
	before := espOf(t, disk)
	c := newComputer(t, disk)
	d, err := Find(c.sys, c.dev, gpt.Naming{}, before)
	if err != nil {
		t.Fatal(err)
	}
	vars := slotstest.NewVars()
	entry := efi.LoadOption{Description: "of an installer", Partition: efi.Partition{Number: 1, UUID: guid.Must(before)}, Path: `\EFI\x.efi`}
	if err := vars.Write("Boot0007", efi.Global, 7, entry.Encode()); err != nil {
		t.Fatal(err)
	}
	renewed, err := d.Renew(rand.Reader, vars)
	if !errors.Is(err, ErrNamed) || !strings.Contains(err.Error(), "Boot0007") || renewed || espOf(t, disk) != before || !d.Table.Fresh() {
		t.Errorf("got %t, %v, want a fresh disk as before and the entry", renewed, err)
	}
	if err := vars.Delete("Boot0007", efi.Global); err != nil {
		t.Fatal(err)
	}
	if renewed, err := d.Renew(rand.Reader, vars); err != nil || !renewed || espOf(t, disk) == before {
		t.Errorf("without the entry: got %t, %v, want new GUIDs", renewed, err)
	}
}
