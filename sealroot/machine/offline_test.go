package machine

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/mount/loop"
	"sealroot/sealroot/bootset"
	"sealroot/slots"
	slotesp "sealroot/slots/esp"
	"sealroot/slots/grubenv"
	"sealroot/slots/live"
)

func host(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// diskImage is a disk with two slots, made by sfdisk: a is committed, b empty.
// Its ESP holds nothing.
func diskImage(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 24<<20); err != nil {
		t.Fatal(err)
	}
	table := "label: gpt\n" +
		"size=1M, name=esp, type=c12a7328-f81f-11d2-ba4b-00a0c93ec93b\n" +
		"size=1M, name=sealroot-log, type=05346ab1-46a4-4036-9234-7d170c31b7c4\n"
	for _, slot := range []string{"a", "b"} {
		attrs := ""
		if slot == "a" {
			attrs = ", attrs=\"GUID:49,56\"" // priority 2, successful
		}
		table += fmt.Sprintf("size=1M, name=root-%[1]s, type=4f68bce3-e8cd-4db1-96e7-fbcaf984b709%[2]s\n"+
			"size=1M, name=root-%[1]s-verity, type=2c7357ed-ebd2-46d9-aec1-23d437ec2bf5\n"+
			"size=1M, name=root-%[1]s-verity-sig, type=41092b05-9fc8-4523-994f-2def0408b176\n", slot, attrs)
	}
	cmd := exec.Command("sfdisk", "--quiet", path)
	cmd.Stdin = strings.NewReader(table)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	return path
}

// attached lists the loop devices that show the file.
func attached(t *testing.T, path string) string {
	t.Helper()
	return strings.TrimSpace(host(t, "losetup", "-n", "-O", "NAME", "-j", path))
}

// TestOpenDisk works on an image; the ESP is not read here (the machines of
// qemu-tests do that), so that the test needs no FAT in the host's kernel.
func TestOpenDisk(t *testing.T) {
	path := diskImage(t)
	m, err := OpenDisk(path, live.StoreGPT, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() }) // of a test that ends before its own
	list, err := m.Slots()
	want := "[slot a: priority 2, no tries left, committed slot b: priority 0, no tries left, not bootable]"
	if err != nil || fmt.Sprint(list) != want {
		t.Errorf("Slots() = %v, %v; want %s", list, err, want)
	}
	if err := m.log().Record(slots.LogChange{Failures: []slots.Failure{{Slot: "b", Reason: slots.Manual}}}); err != nil {
		t.Errorf("the boot log: %v", err)
	}
	if r, err := m.Record(); err != nil || r.Failures["b"].Reason != slots.Manual {
		t.Errorf("Record() = %v, %v; want what was recorded", r, err)
	}
	k, err := m.kept()
	if err != nil {
		t.Fatal(err)
	}
	after, err := slots.FinishUpdate(list, "b", 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Store.Save(after); err != nil {
		t.Errorf("Save() = %v", err)
	}
	if _, err := OpenDisk(path, live.StoreGPT, false); !errors.Is(err, ErrInUse) {
		t.Errorf("a second time: got error %v, want %v", err, ErrInUse)
	}
	if err := m.Close(); err != nil {
		t.Errorf("Close() = %v", err)
	}
	if left := attached(t, path); left != "" {
		t.Errorf("loop devices are left: %s", left)
	}
	// priority 3, tries 3: bits 48, 49 and 52, 53
	if out := host(t, "sfdisk", "--json", path); !strings.Contains(out, "48,49,52,53") {
		t.Errorf("sfdisk reads\n%s\nwant slot b on trial", out)
	}
}

// TestOpenDiskToRead changes nothing, and works on a file that cannot be written.
func TestOpenDiskToRead(t *testing.T) {
	path := diskImage(t)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := OpenDisk(path, live.StoreGPT, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	if _, err := m.Slots(); err != nil {
		t.Error(err)
	}
	k, err := m.kept()
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Store.Save([]slots.Slot{{Name: "a"}, {Name: "b"}}); err == nil {
		t.Error("a disk opened to read was written")
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the image changed, %v", err)
	}
}

// A commit on a disk that counts committed slots leaves no slot without tries.
func TestOfflineCommitOnACountedDisk(t *testing.T) {
	for _, c := range []struct{ tries, want int }{{0, 0}, {1, slots.DefaultTries}, {5, 5}} {
		m, err := OpenDisk(diskImage(t), live.StoreGPT, true)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		k, err := m.kept()
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Store.Save([]slots.Slot{{Name: "a", Priority: 2, Tries: c.tries, Successful: true}, {Name: "b", Priority: 3, Tries: 2}}); err != nil {
			t.Fatal(err)
		}
		m.espErr = nil // the host may have no vfat; nothing of the ESP is written here
		b, err := m.BootSet(nil)
		if err != nil {
			t.Fatal(err)
		}
		b.Loader = nil
		if _, err := b.Commit(bootset.Boot{Running: "b", Loaded: "b"}); err != nil {
			t.Fatal(err)
		}
		list, err := m.Slots()
		if s, _ := slots.Find(list, "b"); err != nil || !s.Successful || s.Tries != c.want {
			t.Errorf("a has %d tries: got %v, %v; want b committed with %d", c.tries, s, err, c.want)
		}
	}
}

func TestOpenDiskRefuses(t *testing.T) {
	whole := diskImage(t)
	shown := diskImage(t)
	f, err := os.Open(shown)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := loop.Attach(f, loop.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Detach()
	flocked, qemus := diskImage(t), diskImage(t)
	g, err := os.OpenFile(flocked, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := unix.Flock(int(g.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	// as QEMU does: a shared lock on one byte of the file
	h, err := os.Open(qemus)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := unix.FcntlFlock(h.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 100, Len: 1}); err != nil {
		t.Fatal(err)
	}
	blank := filepath.Join(t.TempDir(), "blank")
	if err := os.WriteFile(blank, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	tiny := filepath.Join(t.TempDir(), "tiny")
	if err := os.WriteFile(tiny, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path, store string
		want              error
	}{
		{"folder", t.TempDir(), "", ErrNotDisk},
		{"character_device", "/dev/null", "", ErrNotDisk},
		{"missing", filepath.Join(t.TempDir(), "x"), "", os.ErrNotExist},
		{"shown_by_a_loop_device", shown, "gpt", ErrInUse},
		{"locked", flocked, "gpt", ErrInUse},
		{"locked_by_qemu", qemus, "gpt", ErrInUse},
		{"tiny", tiny, "gpt", ErrNotDisk},
		{"store_that_is_elsewhere", whole, "efi", ErrNotDisk},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := OpenDisk(c.path, c.store, true); !errors.Is(err, c.want) {
				t.Errorf("got error %v, want %v", err, c.want)
			}
		})
	}
	if _, err := OpenDisk(blank, "gpt", true); err == nil {
		t.Error("a disk without a partition table was opened")
	}
	for _, path := range []string{blank, whole, tiny} {
		if left := attached(t, path); left != "" {
			t.Errorf("%s: loop devices are left: %s", path, left)
		}
	}
}

// TestDetect finds out how a disk's slots are kept and started.
func TestDetect(t *testing.T) {
	env := func(set ...string) []byte {
		e := grubenv.New()
		for i := 0; i < len(set); i += 2 {
			if err := e.Set(set[i], set[i+1]); err != nil {
				t.Fatal(err)
			}
		}
		b, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	uki := func(c slotesp.Counter) string { return slotesp.LinuxDir + "/" + slotesp.UKIName("a", c) }
	for _, c := range []struct {
		name          string
		files         map[string][]byte
		store, loader string
	}{
		{"bios_and_efi_grub", map[string][]byte{slotesp.Grubenv: env("sealroot_default", "a")}, "gpt", "grub"},
		{"darch", map[string][]byte{slotesp.Grubenv: env("BOOT_VERSION", "A")}, "grubenv-darch", "grub"},
		{"rauc", map[string][]byte{slotesp.Grubenv: env("ORDER", "A B")}, "grubenv-rauc", "grub"},
		{"uki", map[string][]byte{uki(slotesp.Counter{}): nil}, "gpt", "uki"},
		{"systemd_boot", map[string][]byte{uki(slotesp.Counter{}): nil, slotesp.SystemdBoot: nil}, "gpt", "systemd-boot"},
		{"bls_by_counter", map[string][]byte{uki(slotesp.Counting(3, 0)): nil, slotesp.SystemdBoot: nil}, "bls", "systemd-boot"},
		{"bls_all_committed", map[string][]byte{uki(slotesp.Counter{}): nil, slotesp.SystemdBoot: nil, slotesp.Slots: nil}, "bls", "systemd-boot"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := detect(newFolder(t, c.files).dir)
			if err != nil || got.Store != c.store || got.Loader != c.loader {
				t.Errorf("got %+v, %v; want %s, %s", got, err, c.store, c.loader)
			}
		})
	}
	if _, err := detect(newFolder(t, map[string][]byte{slotesp.Grubenv: []byte("rubbish")}).dir); err == nil {
		t.Error("a ruined grubenv was taken for a disk without GRUB's schemes")
	}
}
