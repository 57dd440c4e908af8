package qemutests

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"sealroot/qemu-tests/judge"
)

// A volume with btrfs in it is made by the first boot, grows and shrinks under a
// writer, bears a full partition and a stray resize, and is opened by the TPM and checked
// at the next boot after a power cut that tore the superblock by which the kernel mounts.
// There the service has it grow before it is full, and bears a stray resize as well.
func TestResizeBtrfs(t *testing.T) {
	t.Parallel()
	disk := Image{
		Edit:  []string{"recovery: later", "recovery: later\n  filesystem: btrfs\n  fsck: auto\n  auto_resize: grow"},
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
	vm.resizeUnderWriter(10, "/var/lib/written")
	vm.Run("verify /var/lib/written")

	res := &resizing{t: t, disk: disk, vm: vm, key: []byte(vm.recoveryKey()), inner: judge.Btrfs}
	vm.Run(fmt.Sprintf("promise %s %d 1", withinVolume(keptDir), keptFiles))
	vm.Run("mkdir " + withinVolume(besideDir))
	vm.Run("sealroot state resize min")
	if f, problem := res.full(1); problem != "" || f.Left != 0 || f.Inside < 50<<20 || f.Files == 0 {
		t.Errorf("on a full state partition: %+v: %s", f, problem)
	}
	vm.Run("rm /state/filler")

	// The partition has no room for all of the device: what was taken is given up again.
	vm.Run("sealroot state resize 1G")
	vm.Run("btrfs filesystem resize max /state/encrypted")
	if said := vm.Run("sealroot state repair"); strings.Contains(said, "NOT reserved") || strings.Contains(said, "read-only") {
		t.Errorf("repair after a stray resize: %s", said)
	}
	vm.Run("freeze /state/encrypted") // or btrfs may write it anew
	const roots = 64<<10 + 2859       // of earlier transactions: behind the first sector
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
	res.vm = vm
	vm.Run("sealroot state resize min")
	before := res.sizes()
	res.serve()
	const more, patience = 64 << 20, 120 // where nothing grows no room ever comes
	res.writeAtRate(withinVolume(".much"), before.InnerFree+more, 32, patience)
	if now := res.sizes(); now.Reserved < before.Reserved+more || now.OverCommitted != 0 {
		t.Errorf("the service has let it grow from %+v to %+v", before, now)
	}
	res.strayed("btrfs filesystem resize max /state/encrypted")
	res.whole("the service was at work")
	for line := range strings.Lines(vm.Run("kmsg")) {
		if strings.Contains(line, "BTRFS") && (strings.Contains(line, "error") || strings.Contains(line, "critical")) {
			t.Errorf("the kernel says %s", line)
		}
	}
	vm.PowerOff()
	if v := res.judgeOff(); v.Reserved == 0 {
		t.Errorf("the host judges %+v", v)
	}
}

// served is where the service says what it does.
const served = "/run/served"

// serve starts the service as the unit does, beside which commands go on.
func (r *resizing) serve() {
	r.t.Helper()
	r.vm.Run("background " + served + " sealroot state balance --watch --configured")
}

// strayed has another program make the volume's file system larger, of which nothing
// wakes the service, and waits until it has reserved that or taken it back.
func (r *resizing) strayed(command string) {
	t, vm := r.t, r.vm
	t.Helper()
	const said = "reserved, or taken out of its use"
	before := strings.Count(vm.Run("cat "+served), said)
	began := time.Now()
	vm.Run(command)
	// The next look is 10 s away, at most, on a host that may be busy.
	for strings.Count(vm.Run("cat "+served), said) == before {
		if time.Since(began) > 3*time.Minute {
			t.Fatalf("%s: nothing is reserved: %+v; the service says:\n%s", command, r.sizes(), vm.Run("cat "+served))
		}
		time.Sleep(500 * time.Millisecond)
	}
	t.Logf("%s: mended after %s", command, time.Since(began).Round(time.Second))
	if s := r.sizes(); s.OverCommitted != 0 || s.ReadOnly {
		t.Errorf("%s: %+v; the service says:\n%s", command, s, vm.Run("cat "+served))
	}
}
