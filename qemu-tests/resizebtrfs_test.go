package qemutests

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// A volume with btrfs in it is made by the first boot, grows and shrinks under a
// writer, bears a stray resize, and is opened by the TPM and checked at the next boot
// after a power cut that tore the superblock by which the kernel mounts.
func TestResizeBtrfs(t *testing.T) {
	t.Parallel()
	disk := Image{
		Edit:  []string{"recovery: later", "recovery: later\n  filesystem: btrfs\n  fsck: auto"},
		Extra: hostPrograms(t, "/usr/bin/btrfs"),
		Disk:  []string{"--state-size", "2G"},
	}.Build(t)
	m := directMachine(t, disk).WithTPM()
	vm := m.Boot()
	if r := vm.UpIn("a"); r.State.Unlocked != "created" || len(r.Warnings) > 0 && strings.Contains(strings.Join(r.Warnings, "\n"), "btrfs") {
		t.Errorf("first boot: state %+v, warnings %q", r.State, r.Warnings)
	} else {
		for _, want := range []string{"nodiscard", "subvolid=5"} {
			if got := options(r, "/state/encrypted"); !slices.Contains(got, want) {
				t.Errorf("boot.json has the volume with options %q, want %s", got, want)
			}
		}
	}
	mounts := vm.Run("cat /proc/mounts")
	if i := strings.Index(mounts, " /state/encrypted btrfs "); i < 0 {
		t.Fatalf("no btrfs on /state/encrypted:\n%s", mounts)
	} else if line, _, _ := strings.Cut(mounts[i:], "\n"); strings.Contains(line, "discard=") || !strings.Contains(line, "subvolid=5") {
		t.Errorf("the kernel has it with %s", line)
	}
	vm.keepSomething()
	vm.Run("mkdir /var/lib/written")
	said := vm.Run("resize-under-writer 10 /var/lib/written")
	t.Log(strings.TrimSpace(said))
	var files, larger, smaller int
	if _, err := fmt.Sscanf(said, "%d files, larger %d times, smaller %d times", &files, &larger, &smaller); err != nil || files < 10 || larger < 2 || smaller < 2 {
		t.Errorf("grown and shrunk: %q, %v", said, err)
	}
	vm.Run("verify /var/lib/written")

	// The partition has no room for all of the device: what was taken is given up again.
	vm.Run("sealroot state resize 1G")
	vm.Run("btrfs filesystem resize max /state/encrypted")
	if said := vm.Run("sealroot state repair"); strings.Contains(said, "NOT reserved") || strings.Contains(said, "read-only") {
		t.Errorf("repair after a stray resize: %s", said)
	}
	const roots = 64<<10 + 2859 // of earlier transactions: behind the first sector
	vm.Run(fmt.Sprintf("poke %s %d 01020304", deviceOf(vm, "/state/encrypted"), roots))
	vm.Kill()

	vm = m.Boot()
	r := vm.UpIn("a")
	warnings := strings.Join(r.Warnings, "\n")
	if r.State.Unlocked != "tpm2" || r.Degraded || r.State.ReservedBytes < 1000<<20 || r.State.ReservedBytes > 1100<<20 {
		t.Errorf("state %+v, degraded %v: want 1 GiB unlocked", r.State, r.Degraded)
	}
	for _, want := range []string{"the encrypted volume: a power cut had torn", "checked; btrfs ends with status 0"} {
		if !strings.Contains(warnings, want) {
			t.Errorf("warnings %q, want %q", warnings, want)
		}
	}
	if got := vm.Run("cat /var/lib/mine /etc/mine"); got != "words that stay\nand a setting" {
		t.Errorf("behind the mended superblock: %q", got)
	}
	if said := vm.Run("verify /var/lib/written"); said == "0 files\n" {
		t.Error("what was written is gone")
	}
	for line := range strings.Lines(vm.Run("kmsg")) {
		if strings.Contains(line, "BTRFS") && (strings.Contains(line, "error") || strings.Contains(line, "critical")) {
			t.Errorf("the kernel says %s", line)
		}
	}
	vm.PowerOff()
}
