package qemutests

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A kernel that is not that of the slot's signed manifest is refused before it is loaded;
// a command that does not compare them is the control. The right one is started by kexec
// once every file system is unmounted: PID 1 finds the same slot and counts nothing, the
// TPM gives nothing, and nothing is bound to it. The state asks, and after the next
// restart it opens by itself.
func TestRootKexec(t *testing.T) {
	t.Parallel()
	disk := Image{
		Config: "uki", Edit: []string{"signed-pcr11+7", "signed-pcr11+4"},
		Extra: map[string]string{"usr/bin/unchecked": string(readFile(t, uncheckedSealroot(t)))},
	}.Build(t)
	m := NewMachine(t, UEFI, disk).WithTPM().oneBank().Hold()
	vm := m.Boot()
	vm.UpIn("a")
	key, before := vm.recoveryKey(), disk.Slot(t, "a")

	loaded := func(want string) {
		t.Helper()
		if got := strings.TrimSpace(vm.Run("cat /sys/kernel/kexec_loaded")); got != want {
			t.Errorf("the kernel says %q of whether one is loaded, want %s", got, want)
		}
	}
	restore := vm.tamperWithKernel(disk)
	if said, status := vm.TryRun("sealroot kexec"); status != 6 || !strings.Contains(said, "not that of the signed manifest") {
		t.Errorf("a changed kernel: status %d, %q", status, said)
	}
	loaded("0")
	vm.Run("unchecked kexec")
	loaded("1")
	vm.Run("sealroot kexec --unload")
	loaded("0")
	restore()
	if said := vm.Run("sealroot kexec"); !strings.Contains(said, "slot a") || !strings.Contains(said, "TPM stays closed") {
		t.Errorf("sealroot kexec says %q", said)
	}
	vm.Run("sealroot exit-program")
	vm.post("shutdown kexec")
	vm.Expect(`exit: everything is unmounted \(kexec\)`, commandTime)
	vm.Expect(`Linux version`, commandTime)
	// The next kernel has not come to its disks yet.
	vm.monitor("stop")
	disk.checkUnmounted(t, key)
	vm.monitor("cont")

	vm.Expect(`started by kexec: nobody vouches for the initramfs`, probeTime)
	vm.Expect(`type the recovery key`, probeTime)
	vm.Send(key + "\r")
	r := vm.UpIn("a")
	if r.BootPath != "kexec" || r.State.Unlocked != "recovery-key" || r.State.Pinned != "yes" || !strings.Contains(strings.Join(r.State.Attempts, "\n"), "started by kexec") {
		t.Errorf("boot path %q, state %+v; want kexec, opened by the recovery key, pinned, and why", r.BootPath, r.State)
	}
	if r.Slot.Name != "a" || r.Slot.Loaded != "a" || r.Slot.Reason != "committed" || len(r.Failures) > 0 || r.FellBack != nil || r.Disagreement != nil {
		t.Errorf("slot %+v, failures %q, fell back %+v, disagreement %+v", r.Slot, failuresText(r), r.FellBack, r.Disagreement)
	}
	fits(t, "boot", vm.Run("cat /run/sealroot/boot.json"))
	vm.Never(`bind the TPM|recovery complete`)
	vm.Run("write /run/key " + key)
	if said, status := vm.TryRun("sealroot state enroll --recovery-key-file /run/key"); status != 3 || !strings.Contains(said, "started by kexec") {
		t.Errorf("to bind the TPM then: status %d, %q", status, said)
	}
	if said := vm.Run("sealroot status --pcrs"); !strings.Contains(said, "started by kexec") || strings.Contains(said, "DIFFERS") || strings.Contains(said, "what was measured is not") {
		t.Errorf("sealroot status --pcrs:\n%s", said)
	}
	// As an init does it that cannot become the exit program: that runs as its child.
	if said, status := vm.TryRun("sealroot exit-program now"); status != 2 || !strings.Contains(said, "how to end") {
		t.Errorf("sealroot exit-program now: status %d, %q", status, said)
	}
	vm.post("sealroot exit-program poweroff")
	vm.Expect(`exit: left behind: mount /oldroot\b`, commandTime)
	vm.WaitPowerOff(commandTime)
	disk.checkUnmounted(t, key)
	if after := disk.Slot(t, "a"); after != before {
		t.Errorf("slot a is %+v, was %+v", after, before)
	}

	vm = m.Boot()
	if r := vm.UpIn("a"); r.BootPath != "uki" || r.State.Unlocked != "tpm2" || r.State.Pinned != "yes" || len(unexpected(r)) > 0 {
		t.Errorf("after a restart: boot path %q, state %+v, warnings %q", r.BootPath, r.State, unexpected(r))
	}
	vm.PowerOff()
}

// uncheckedSealroot is a command that takes any kernel for that of the manifest.
func uncheckedSealroot(t *testing.T) string {
	t.Helper()
	return overlaid(t, "../sealroot", "sealroot/install/matches.go", `package install

import "sealroot/slots/manifest"

func matches([]byte, manifest.Part) bool { return true }
`)
}

// overlaid builds a program with another text in the place of one file of the tree.
func overlaid(t *testing.T, program, file, text string) string {
	t.Helper()
	dir := t.TempDir()
	other, overlay := filepath.Join(dir, "other.go"), filepath.Join(dir, "overlay.json")
	writeFile(t, other, []byte(text), 0o644)
	replaced, err := json.Marshal(map[string]any{"Replace": map[string]string{absolute(t, filepath.Join(rootDir, file)): other}})
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, overlay, replaced, 0o644)
	return goBuild(t, "-overlay="+overlay, program)
}

// tamperWithKernel inverts bytes in the middle of the kernel on the EFI system partition,
// in every copy of it, and returns what puts them right again.
func (vm *VM) tamperWithKernel(disk *Disk) (restore func()) {
	t := vm.t
	t.Helper()
	image := readFile(t, kernel(t, "6.1").Image)
	right := image[len(image)/2:][:16]
	wrong := slices.Clone(right)
	for i := range wrong {
		wrong[i] ^= 0xff
	}
	esp := disk.Part(t, "esp")
	content := disk.Read(t, "esp", 0, esp.Bytes)
	var places []int64
	for from := 0; ; from++ {
		i := bytes.Index(content[from:], right)
		if i < 0 {
			break
		}
		from += i
		places = append(places, esp.Offset+int64(from))
	}
	if len(places) == 0 {
		t.Fatal("the kernel is not found on the EFI system partition")
	}
	poke := func(data []byte) {
		for _, at := range places {
			vm.Run(fmt.Sprintf("poke /dev/vda %d %s", at, hex.EncodeToString(data)))
		}
	}
	poke(wrong)
	return func() { poke(right) }
}

// monitor runs a command of QEMU's monitor.
func (vm *VM) monitor(command string) {
	vm.t.Helper()
	if err := vm.guest.Monitor(command, nil); err != nil {
		vm.t.Fatal(err)
	}
}
