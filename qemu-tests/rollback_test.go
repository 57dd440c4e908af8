package qemutests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/qemu-tests/machine"
	"sealroot/state/tpm/tpmtest"
)

// An image below the rollback floor does not boot, whoever takes the floor away;
// and the floor is not raised while a slot holds it back, so that one good image
// is always left.
func TestRollbackFloor(t *testing.T) {
	t.Parallel()
	disk := Image{
		Config: "uki", SecureBoot: true,
		Edit: []string{"version: 2026.11.1", "version: 2026.11.1\nsecurity_version: 2", "root: [image.crt]", "root: [image.crt]\n  rollback_floor: true"},
		B:    &SlotB{Mode: "good", Edit: []string{"security_version: 2", "security_version: 1", "version: 2026.11.1", "version: 2026.10.1"}},
	}.Build(t)
	m := NewMachine(t, UEFISecure, disk).WithTPM().Hold().oneBank()
	vm := m.Boot()
	if r := vm.UpIn("a"); r.Floor == nil || r.Floor.Value != 0 || !r.Floor.Known || r.Root.SecurityVersion != 2 {
		t.Errorf("security version %d, floor %+v, want 2, and a floor of 0", r.Root.SecurityVersion, r.Floor)
	}
	key := vm.recoveryKey()
	if text := vm.Run("sealroot commit"); !strings.Contains(text, "the rollback floor stays at 0: slot b has security version 1; sealroot replicate frees it") {
		t.Errorf("sealroot commit with an older slot b:\n%s", text)
	}
	spare := vm.snapshot()
	if text := vm.Run("sealroot commit --burn"); !strings.Contains(text, "slot b: has security version 1, it will not boot any more") {
		t.Errorf("sealroot commit --burn:\n%s", text)
	}
	vm.Reboot()
	if r := vm.UpIn("a"); r.Floor.Value != 2 || !r.Floor.Known {
		t.Errorf("floor %+v, want 2", r.Floor)
	}
	vm.Run("sealroot try b")
	vm.Reboot()
	// Slot b's own kernel refuses slot b, and then to carry slot a.
	vm.Expect(`cannot boot slot b: its security version is 1, the rollback floor of this machine is 2`, probeTime)
	vm.Expect(`cannot go on with slot a: the running kernel's image has security version 1`, commandTime)
	r := vm.UpIn("a")
	if text := failuresText(r); !strings.Contains(text, "b image older than the rollback floor") || r.State.Unlocked != "tpm2" || r.Slot.Loaded != "a" {
		t.Errorf("slot %+v, state %+v, failures:\n%s", r.Slot, r.State, text)
	}
	if text := vm.Run("sealroot status --json"); !strings.Contains(text, `"reason": "rollback-floor"`) {
		t.Errorf("sealroot status --json does not tell why slot b is not booted:\n%s", text)
	}
	vm.PowerOff()

	// The owner of the TPM defines the index anew: the TPM opens nothing, and a
	// person with the recovery key sets the floor that the volume remembers.
	redefineFloor(t, m.Config.TPM)
	vm = m.Boot()
	vm.Expect(`tpm2: the rollback floor is not known`, probeTime)
	vm.Expect(`type the recovery key`, commandTime)
	vm.Send(key + "\r")
	if r := vm.UpIn("a"); r.State.Unlocked != "recovery-key" || r.Floor.Value != 2 || !r.Floor.Known {
		t.Errorf("state %+v, floor %+v, want unlocked by recovery-key, and a floor of 2", r.State, r.Floor)
	}
	vm.PowerOff()

	// The control, and the reason why the older slot held the floor back: as
	// things were before, without the image of slot a, slot b boots.
	(&Disk{Path: spare.Config.Disk}).Write(t, "root-a", 0, make([]byte, 1<<20))
	vm = spare.Boot()
	if r := vm.UpIn("b"); r.Root.SecurityVersion != 1 || r.Floor.Value != 0 || r.State.Unlocked != "tpm2" {
		t.Errorf("security version %d, floor %+v, state %+v, want slot b with its state", r.Root.SecurityVersion, r.Floor, r.State)
	}
	vm.PowerOff()
}

// snapshot returns a machine that is the running one as a power cut would leave it
// now. It shares the place of the one that is held.
func (vm *VM) snapshot() *Machine {
	vm.t.Helper()
	m := vm.machine
	vm.Run("sync")
	if err := vm.guest.Monitor("stop", nil); err != nil {
		vm.t.Fatal(err)
	}
	spare := NewMachine(vm.t, m.Config.Firmware, (&Disk{Path: m.Config.Disk}).Copy(vm.t)).WithTPM()
	spare.place, spare.boots = m.place, 10 // a log of its own
	tool(vm.t, "cp", "-a", m.Config.TPM+"/.", spare.Config.TPM)
	tool(vm.t, "cp", filepath.Join(m.Config.Dir, machine.EFIVarsFile), spare.Config.Dir)
	if err := vm.guest.Monitor("cont", nil); err != nil {
		vm.t.Fatal(err)
	}
	return spare
}

// redefineFloor does what the owner of the TPM can: a floor of zero under the same
// number.
func redefineFloor(t *testing.T, state string) {
	t.Helper()
	const index = "0x1c05ea2"
	chip := tpmtest.StartAt(t, state)
	defer chip.PowerOff()
	zero := filepath.Join(t.TempDir(), "zero")
	if err := os.WriteFile(zero, append([]byte("srf2"), make([]byte, 36)...), 0o600); err != nil {
		t.Fatal(err)
	}
	chip.MustRun("", "tpm2_nvundefine", index, "-C", "o")
	chip.MustRun("", "tpm2_nvdefine", index, "-C", "o", "-s", "40", "-g", "sha256", "-a", "ownerwrite|authwrite|authread|no_da")
	chip.MustRun("", "tpm2_nvwrite", index, "-C", index, "-i", zero)
}
