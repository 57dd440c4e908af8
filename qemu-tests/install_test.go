package qemutests

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/qemu-tests/machine"
)

// installs are the ways a machine with slots starts, and the version that its
// second image gets.
var installs = []struct {
	name     string
	firmware machine.Firmware
	image    Image
}{
	{"bios_grub", BIOS, Image{Config: "bios"}},
	{"uefi_uki", UEFISecure, Image{Config: "uki", SecureBoot: true}},
}

// next is the image as version 2.
func (im Image) next(t *testing.T) Image {
	t.Helper()
	text, err := os.ReadFile(im.whole().configFile())
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		if strings.HasPrefix(line, "version: ") {
			im.Edit = append(im.Edit[:len(im.Edit):len(im.Edit)], line+"\n", "version: 2.next\n")
			return im
		}
	}
	t.Fatalf("%s has no version", im.configFile())
	return im
}

// withParts adds a disk with a set of parts: /dev/vdb.
func (m *Machine) withParts(t *testing.T, set []byte) *Machine {
	t.Helper()
	path := filepath.Join(t.TempDir(), "parts.img")
	// whole sectors, as a disk has them
	writeFile(t, path, append(set, make([]byte, 512-len(set)%512)...), 0o644)
	return m.WithDisk(path)
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// An image is installed beside the running one, booted on trial, committed, and
// copied to the other slot; then both slots hold it. (TestLoadersInstall has the
// other boot loaders and stores.)
func TestInstallTrialCommitReplicate(t *testing.T) {
	t.Parallel()
	for _, tc := range installs {
		if tc.firmware == BIOS && !soaking() {
			continue // TestKillCycles installs and commits with GRUB
		}
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.image.Edit = replicates("commit")
			vm, disk := installNext(t, tc.firmware, tc.image)
			vm.copyAndBack(disk, "sealroot replicate --quick --configured")
		})
	}
}

// installNext installs version 2.next into the empty slot b, boots it on trial
// and commits it.
func installNext(t *testing.T, firmware machine.Firmware, image Image) (*VM, *Disk) {
	t.Helper()
	disk := image.Build(t)
	vm := NewMachine(t, firmware, disk).WithTPM().withParts(t, readFile(t, image.next(t).Parts(t))).Boot()
	vm.UpIn("a")
	vm.Run("sealroot install /dev/vdb")
	vm.Reboot()
	if r := vm.UpIn("b"); r.Root.ImageVersion != "2.next" || r.Slot.Loaded != "b" || !r.Slot.Trial {
		t.Errorf("version %s, slot %+v: want 2.next on trial in b, by its own kernel", r.Root.ImageVersion, r.Slot)
	}
	vm.Run("sealroot commit")
	return vm, disk
}

// replicates edits a configuration: boot.replicate.
func replicates(after string) []string {
	return []string{"tries: 3", "tries: 3\n  replicate: [" + after + "]"}
}

// copyAndBack makes slot a a copy of slot b, which was just committed, and boots
// both.
func (vm *VM) copyAndBack(disk *Disk, command string) {
	t := vm.t
	t.Helper()
	vm.Run(command)
	var result struct {
		Data []struct {
			Slot    string `json:"slot"`
			OK      bool   `json:"ok"`
			Version string `json:"version"`
		} `json:"data"`
	}
	text := vm.Run("sealroot verify --json")
	fits(t, "result", text)
	if json.Unmarshal([]byte(text), &result) != nil || len(result.Data) != 2 {
		t.Fatalf("sealroot verify says %s", text)
	}
	for _, d := range result.Data {
		if !d.OK || d.Version != "2.next" {
			t.Errorf("sealroot verify: %+v, want version 2.next in both slots", d)
		}
	}
	if out, status := vm.TryRun("sealroot replicate --json"); status != 0 || !strings.Contains(out, `"already": true`) {
		t.Errorf("a second replicate: exit status %d: %s", status, out)
	}
	vm.Reboot()
	if r := vm.UpIn("b"); r.Slot.Reason != "committed" {
		t.Errorf("slot %+v, want b committed", r.Slot)
	}
	// The copy starts too.
	vm.Run("sealroot try a")
	vm.Reboot()
	if r := vm.UpIn("a"); r.Root.ImageVersion != "2.next" {
		t.Errorf("slot a has version %s, want 2.next", r.Root.ImageVersion)
	}
	vm.PowerOff()
	disk.CheckTable(t)
	for _, slot := range []string{"a", "b"} {
		disk.CheckVerity(t, slot)
	}
	if a, b := disk.rootHash(t, "a"), disk.rootHash(t, "b"); a != b {
		t.Errorf("slot a has root hash %s, b %s", a, b)
	}
	checkESP(t, disk)
}

// checkESP lets fsck.vfat judge the EFI system partition of a disk that was
// switched off in order.
func checkESP(t *testing.T, disk *Disk) {
	t.Helper()
	if out, err := runTool("fsck.vfat", "-n", disk.Extract(t, "esp")); err != nil {
		t.Errorf("fsck.vfat: %v\n%s", err, out)
	}
}

// An image that nobody trusted signed, and one that was changed, is refused;
// the control is that it installs when it is whole.
func TestInstallRefuses(t *testing.T) {
	t.Parallel()
	image := Image{B: &SlotB{Mode: "good"}, Edit: replicates("failed-install")}
	disk := image.Build(t)
	whole := readFile(t, image.next(t).Parts(t))
	// A digit of the signed version, and a byte of the root image, which comes first.
	unsigned := bytes.Replace(bytes.Clone(whole), []byte(`"2.next"`), []byte(`"3.next"`), 1)
	changed := bytes.Clone(whole)
	changed[1<<20] ^= 1
	if bytes.Equal(unsigned, whole) {
		t.Fatal("the manifest has no version to change")
	}
	m := directMachine(t, disk).WithTPM().withParts(t, unsigned).withParts(t, changed).withParts(t, whole)
	before := sha256Of(t, disk, "root-a", "root-a-verity", "root-a-verity-sig", "root-b", "root-b-verity", "root-b-verity-sig", "esp")
	vm := m.Boot()
	vm.UpIn("a")
	if out, status := vm.TryRun("sealroot install /dev/vdb"); status != 6 || !strings.Contains(out, "signature does not match") {
		t.Errorf("a changed manifest: exit status %d: %s", status, out)
	}
	vm.PowerOff()
	if after := sha256Of(t, disk, "root-a", "root-a-verity", "root-a-verity-sig", "root-b", "root-b-verity", "root-b-verity-sig", "esp"); after != before {
		t.Error("the refused image changed a partition")
	}
	if b := disk.Slot(t, "b"); b.Successful != 1 {
		t.Errorf("slot b is %+v, want it committed as before", b)
	}
	before = sha256Of(t, disk, "root-a", "root-a-verity", "root-a-verity-sig")
	vm = m.Boot()
	vm.UpIn("a")
	out, status := vm.TryRun("sealroot install --replicate-on-failure=false /dev/vdc")
	if status != 6 || !strings.Contains(out, "was changed") || !strings.Contains(out, "not bootable until") || strings.Contains(out, "copy") {
		t.Errorf("a changed part: exit status %d: %s", status, out)
	}
	// As the configuration has it, the slot becomes a copy of the running one.
	out, status = vm.TryRun("sealroot install /dev/vdc")
	if status != 6 || !strings.Contains(out, "was changed") || !strings.Contains(out, "slot b: is a verified copy of slot a now") {
		t.Errorf("a changed part, to be made good: exit status %d: %s", status, out)
	}
	if out, status := vm.TryRun("sealroot replicate --configured"); status != 0 || !strings.Contains(out, "nothing is copied") {
		t.Errorf("a copy after a commit, which was not asked for: exit status %d: %s", status, out)
	}
	vm.Run("sealroot install /dev/vdd")
	vm.Reboot()
	if r := vm.UpIn("b"); r.Root.ImageVersion != "2.next" {
		t.Errorf("version %s, want 2.next", r.Root.ImageVersion)
	}
	vm.PowerOff()
	if after := sha256Of(t, disk, "root-a", "root-a-verity", "root-a-verity-sig"); after != before {
		t.Error("the running slot was changed")
	}
	disk.CheckVerity(t, "b")
}

// sha256Of are the digests of partitions.
func sha256Of(t *testing.T, disk *Disk, names ...string) string {
	t.Helper()
	var lines []string
	for _, name := range names {
		lines = append(lines, strings.Fields(tool(t, "sha256sum", disk.Extract(t, name)))[0]+" "+name)
	}
	return strings.Join(lines, "\n")
}
