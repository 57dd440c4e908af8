package qemutests

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"sealroot/verity"
)

// withoutState are edits of bios.yaml for a machine that needs no TPM and makes
// no volume: what happens before the state is all that these tests ask for.
func withoutState(more ...string) []string {
	return append([]string{
		"create: first-boot", "create: never",
		"unlock: [tpm2, recovery-key]", "unlock: [recovery-key]",
		"  tpm2:\n", "",
		"    policy: pcrs\n    pcrs: []\n", "",
		"    tpm_without_measured_boot: accept-theft-by-disk-edit\n", "",
		"recovery: later", "recovery: none",
		"[prompt, degraded]", "[degraded]",
	}, more...)
}

// rootEdit adds lines to the section root.
func rootEdit(lines string) []string {
	return []string{"  source: verity\n", "  source: verity\n" + lines}
}

// unread is a file that no boot reads. Its content does not compress, so that it
// is found in the image.
const unreadFile = "usr/share/unread"

func unread() string {
	b := make([]byte, 256<<10)
	rand.NewChaCha8([32]byte{7}).Read(b)
	return string(b)
}

// directMachine has QEMU load slot a's kernel; slot b runs on it as well.
func directMachine(t *testing.T, disk *Disk) *Machine {
	t.Helper()
	m := NewMachine(t, DirectKernel, disk).Hold()
	m.LoadSlot("a")
	return m
}

// setSlot sets a slot's attribute bits.
func (d *Disk) setSlot(t *testing.T, slot string, b SlotBits) {
	t.Helper()
	tool(t, "cgpt", "add", "-i", fmt.Sprint(d.Part(t, "root-"+slot).Number),
		"-P", fmt.Sprint(b.Priority), "-T", fmt.Sprint(b.Tries), "-S", fmt.Sprint(b.Successful), d.Path)
}

// superblock reads a slot's superblock with our own reader, which veritysetup
// judges in its own package.
func (d *Disk) superblock(t *testing.T, part string, at int64) verity.Params {
	t.Helper()
	p, err := verity.ParseSuperblock(d.Read(t, part, at, verity.SuperblockSize))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// One byte in the superblock, and in a block of each level of the tree on the
// way to a block that every boot reads: the other slot runs, in the same boot.
// The same byte of a block that no boot reads is found when it is read, and by
// the check of the whole image.
func TestVerityFlippedByte(t *testing.T) {
	t.Parallel()
	image := Image{
		Edit:  append(rootEdit("  verity: {hash_block_size: 1024}\n"), "tries: 3", "tries: 3\n  eager_check: true"),
		Extra: map[string]string{unreadFile: unread()}, B: &SlotB{},
	}
	disk := image.Build(t)
	p := disk.superblock(t, "root-b-verity", 0)
	// The levels lie from the top down; the first block of each is on the way
	// to the first block of data.
	type place struct {
		name   string
		offset int64
	}
	places := []place{{"superblock", 9}}
	var counts []int64
	for below := int64(p.DataBlocks); below > 1; {
		below = (below + 31) / 32 // digests of SHA-256 in 1024 bytes
		counts = append(counts, below)
	}
	if len(counts) < 3 {
		t.Fatalf("the tree has %d levels, want at least 3", len(counts))
	}
	at := int64(p.HashBlockSize)
	for level := len(counts); level > 0; level-- {
		places = append(places, place{fmt.Sprintf("level %d", level), at + 5})
		at += counts[level-1] * int64(p.HashBlockSize)
	}
	if at != p.HashSize() {
		t.Fatalf("the tree ends at byte %d, want %d", at, p.HashSize())
	}
	m := directMachine(t, disk).WithTPM()
	for _, p := range places {
		disk.setSlot(t, "b", SlotBits{14, 3, 0})
		disk.Flip(t, "root-b-verity", p.offset)
		vm := m.Boot()
		r := vm.UpIn("a")
		if r.FellBack == nil || r.FellBack.From != "b" || r.FellBack.Class != "image" {
			t.Errorf("%s: fell back %+v, want from b, class image", p.name, r.FellBack)
		}
		vm.PowerOff()
		if b := disk.Slot(t, "b"); b != (SlotBits{}) {
			t.Errorf("%s: slot b is %+v, want it unbootable", p.name, b)
		}
		disk.Flip(t, "root-b-verity", p.offset)
	}

	root := disk.Read(t, "root-b", 0, disk.Part(t, "root-b").Bytes)
	where := bytes.Index(root, []byte(unread()[100<<10:][:64]))
	if where < 0 {
		t.Fatalf("the content of %s is not in the image", unreadFile)
	}
	disk.setSlot(t, "b", SlotBits{14, 3, 0})
	disk.Flip(t, "root-b", int64(where))
	vm := m.Boot()
	vm.UpIn("b")
	if out, status := vm.TryRun("cat /" + unreadFile); status == 0 || !strings.Contains(out, "input/output error") {
		t.Errorf("a block that does not match was read, status %d", status)
	}
	if out, status := vm.TryRun("sealroot verify b"); status != 6 {
		t.Errorf("sealroot verify b: exit status %d: %s; want 6", status, out)
	}
	vm.Run("sealroot verify a") // the control: the same image
	if out, status := vm.TryRun("sealroot check --no-reboot"); status != 6 || !strings.Contains(out, "image: a block does not match") {
		t.Errorf("sealroot check: exit status %d: %s; want 6", status, out)
	}
	vm.Reboot()
	if r := vm.UpIn("a"); r.FellBack == nil || !strings.Contains(r.FellBack.Reason, "health check") {
		t.Errorf("fell back %+v, want from b by a health check", r.FellBack)
	}
	vm.PowerOff()
}

// With restart the kernel restarts on a block that does not match: a committed
// slot spends its tries, and the other one runs. The kernel is told of blocks
// that cannot be read too, where it knows that.
func TestVerityRestart(t *testing.T) {
	t.Parallel()
	disk := Image{
		Kernel: "6.12", B: &SlotB{Mode: "good"},
		Edit: withoutState("tries: 3", "tries: 2\n  recount: true", "filesystem: squashfs", "filesystem: squashfs\n  on_corruption: restart"),
	}.Build(t)
	disk.setSlot(t, "b", SlotBits{14, 2, 1})
	disk.Flip(t, "root-b", 8)
	vm := directMachine(t, disk).Boot()
	for range 2 {
		vm.Expect(`device-mapper: verity: .*corrupted`, probeTime)
		vm.Expect(`reboot: Restarting system|Linux version`, probeTime)
	}
	r := vm.UpIn("a")
	if r.FellBack == nil || r.FellBack.From != "b" || r.FellBack.Reason != "no commit" {
		t.Errorf("fell back %+v, want from b, which had no commit", r.FellBack)
	}
	vm.Never("does not know it for one that cannot be read")
	vm.PowerOff()
	if b := disk.Slot(t, "b"); b.Tries != 0 || b.Successful != 1 {
		t.Errorf("slot b is %+v, want committed, without tries", b)
	}
}

// With panic it is a kernel panic, after which the kernel restarts by itself. The
// slot has spent its one try then, and the other one runs, at the next boot too.
// (This kernel does not know panic_on_error.)
func TestVerityPanic(t *testing.T) {
	t.Parallel()
	disk := Image{
		B:    &SlotB{Mode: "good"},
		Edit: []string{"tries: 3", "tries: 1\n  recount: true", "filesystem: squashfs", "filesystem: squashfs\n  on_corruption: panic"},
	}.Build(t)
	disk.setSlot(t, "b", SlotBits{14, 1, 1})
	disk.Flip(t, "root-b", 8)
	vm := directMachine(t, disk).WithTPM().Boot()
	vm.Expect(`Kernel panic - not syncing: dm-verity device corrupted`, probeTime)
	vm.Expect(`Rebooting in 10 seconds`, commandTime)
	vm.Reset() // those seconds are minutes under emulation
	r := vm.UpIn("a")
	if r.FellBack == nil || r.FellBack.From != "b" || r.FellBack.Reason != "no commit" {
		t.Errorf("fell back %+v, want from b, which had no commit", r.FellBack)
	}
	vm.Run("sealroot commit") // gives slot a its try again
	vm.Reboot()
	if r := vm.UpIn("a"); r.Slot.Reason != "committed" || r.FellBack != nil {
		t.Errorf("the boot after: slot %+v, fell back %+v, want a committed", r.Slot, r.FellBack)
	}
	if n := strings.Count(vm.guest.Console(), "Kernel panic"); n != 1 {
		t.Errorf("%d panics, want one", n)
	}
	vm.PowerOff()
	if b := disk.Slot(t, "b"); b.Tries != 0 || b.Successful != 1 {
		t.Errorf("slot b is %+v, want committed, without tries", b)
	}
}

// SHA-512, erofs and a tree behind the image boot, and parity repairs what the
// boot reads; where there is none the slot is refused.
func TestVerityRepairs(t *testing.T) {
	t.Parallel()
	const at = 256 << 20
	disk := Image{
		B: &SlotB{Mode: "good"},
		Edit: withoutState(append(rootEdit("  verity: {algorithm: sha512, tree_at_mib: 256, fec_roots: 2}\n"),
			"filesystem: squashfs", "filesystem: erofs")...),
	}.Build(t)
	p := disk.superblock(t, "root-a", at)
	if p.Algorithm != verity.SHA512 {
		t.Errorf("the tree is of %s, want sha512", p.Algorithm)
	}
	disk.setSlot(t, "a", SlotBits{15, 0, 1})
	disk.Flip(t, "root-a", 1030) // the superblock of the erofs
	m := directMachine(t, disk)
	vm := m.Boot()
	r := vm.UpIn("a")
	if r.FellBack != nil || r.Root.Filesystem != "erofs" || len(r.Root.RootHash) != 128 {
		t.Errorf("root %+v, fell back %+v, want slot a with erofs and SHA-512", r.Root, r.FellBack)
	}
	if text := vm.Run("kmsg"); !strings.Contains(text, "corrected") {
		t.Error("the kernel does not say that it corrected a block: the test shows nothing")
	}
	vm.PowerOff()

	p.FECRoots = 2
	disk.Write(t, "root-a", at+p.HashSize(), make([]byte, p.FECSize()))
	vm = m.Boot()
	if r := vm.UpIn("b"); r.FellBack == nil || r.FellBack.From != "a" || r.FellBack.Class != "image" {
		t.Errorf("without parity: fell back %+v, want from a, class image", r.FellBack)
	}
	// A copy of slot b brings image, tree and parity, each to its place.
	vm.Run("sealroot repair a")
	vm.Run("sealroot verify a")
	vm.PowerOff()
	if got, want := disk.Read(t, "root-a", at, p.AreaSize()), disk.Read(t, "root-b", at, p.AreaSize()); !bytes.Equal(got, want) {
		t.Error("tree and parity of the copy differ from slot b's")
	}
}
