package qemutests

import (
	"path/filepath"
	"strings"
	"testing"

	"sealroot/init/report"
)

// Root on the running system has the state made anew, and a person with a key of
// it; what anybody can write does nothing without a person at the console.
func TestStateFactoryReset(t *testing.T) {
	t.Parallel()
	disk := Image{}.Build(t)
	m := NewMachine(t, DirectKernel, disk).WithTPM()
	m.LoadSlot("a")
	vm := m.Boot()
	first := vm.UpIn("a").State
	old := vm.recoveryKey()
	vm.keepSomething()
	vm.PowerOff()
	before := disk.EncryptedImage(t)

	// What who edits the disk and the command line can ask for.
	state, request := disk.Extract(t, "state"), filepath.Join(t.TempDir(), "request")
	writeFile(t, request, []byte("factory-reset "+first.UUID+"\n"), 0o600)
	runTool("e2fsck", "-p", state)
	runTool("debugfs", "-w", "-R", "mkdir .sealroot", state) // may be there
	tool(t, "debugfs", "-w", "-R", "write "+request+" .sealroot/reset-request", state)
	if names := tool(t, "debugfs", "-R", "ls -p /.sealroot", state); !strings.Contains(names, "/reset-request/") {
		t.Fatalf("the forged request is not there:\n%s", names)
	}
	disk.put(t, "state", state)
	m.Config.Cmdline += " sealroot.reset"
	asks := func(answer string) {
		t.Helper()
		vm.Expect(`FACTORY RESET: the kernel command line asks for it`, probeTime)
		vm.Expect(`Type yes and press Enter`, commandTime)
		vm.Send(answer + "\r")
	}
	vm = m.Boot()
	asks("no")
	r := vm.UpIn("a")
	if r.State.Unlocked != "tpm2" || r.State.UUID != first.UUID || r.State.Reset != "" || !strings.Contains(strings.Join(r.Warnings, "\n"), "was not agreed to") {
		t.Errorf("after forged requests: state %+v, warnings %q", r.State, r.Warnings)
	}
	if got := vm.Run("cat /var/lib/mine /etc/mine"); got != "words that stay\nand a setting" {
		t.Errorf("after forged requests the state reads %q", got)
	}

	anew := func(was report.State, by string) report.State {
		t.Helper()
		r := vm.UpIn("a")
		if r.State.Unlocked != "created" || r.State.Reset != by || r.State.UUID == was.UUID || r.State.Pinned != "yes" {
			t.Errorf("state %+v, want a new volume after a reset by %s, not %s", r.State, by, was.UUID)
		}
		if _, status := vm.TryRun("cat /var/lib/mine"); status == 0 {
			t.Error("the old state's files are there")
		}
		return r.State
	}
	if text := vm.Run("sealroot state reset --yes"); !strings.Contains(text, "destroyed at the next boot") {
		t.Errorf("sealroot state reset says %q", text)
	}
	vm.Reboot()
	asks("no")
	vm.Expect(`FACTORY RESET \(running-system\): the volume is destroyed; restarting`, probeTime)
	second := anew(first, "running-system")
	if text := vm.Run("sealroot status"); !strings.Contains(text, "ended: state: factory reset") {
		t.Errorf("of the boot that destroyed the state sealroot status says nothing:\n%s", text)
	}
	fresh := vm.recoveryKey()
	vm.keepSomething()

	vm.Reboot()
	asks("yes")
	vm.Expect(`for the factory reset a key of the volume is needed`, commandTime)
	for _, key := range []string{old, fresh} {
		vm.Expect(`type the recovery key or passphrase`, commandTime)
		vm.Send(key + "\r")
	}
	vm.Expect(`FACTORY RESET \(key\): the volume is destroyed; restarting`, probeTime)
	anew(second, "key")
	last := vm.recoveryKey()
	vm.PowerOff()
	after := disk.EncryptedImage(t)
	for _, tc := range []struct {
		name, volume, key string
		opens             bool
	}{
		{"control: the copy from before", before, old, true},
		{"the key of the first volume", after, old, false},
		{"the key of the second volume", after, fresh, false},
		{"control: the key of the third volume", after, last, true},
	} {
		if output, err := opens(t, tc.volume, tc.key); (err == nil) != tc.opens {
			t.Errorf("%s: cryptsetup opens it: %v, want %v: %s", tc.name, err == nil, tc.opens, output)
		}
	}
}
