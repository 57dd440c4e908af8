package qemutests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/init/report"
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

// A floor is for one volume. Neither a genuine first boot nor a volume of one's own
// at the prompt, both of which have a genuine floor of zero, opens the volume that
// remembers a higher one. (The pin of the volume would refuse it before: this init
// does not look at that. The mark is taken away too, which tells of a volume.)
func TestRollbackFloorOtherVolume(t *testing.T) {
	t.Parallel()
	disk := Image{Unpinned: true, Edit: []string{
		"version: 2026.11.1", "version: 2026.11.1\nsecurity_version: 2", "root: [image.crt]", "root: [image.crt]\n  rollback_floor: true",
	}}.Build(t)
	other := disk.Copy(t)
	m := NewMachine(t, DirectKernel, disk).WithTPM().Hold()
	m.LoadSlot("a")
	vm := m.Boot()
	vm.UpIn("a")
	key := vm.recoveryKey()
	vm.Run("sealroot commit")
	vm.Reboot()
	wantFloor(t, "the volume of the owner", vm.UpIn("a"), "tpm2", 2)
	vm.PowerOff()

	// refused boots the owner's volume beside a floor of the other one.
	refused := func() *VM {
		t.Helper()
		m.Config.Disk = disk.Path
		vm := m.Boot()
		vm.Expect(`tpm2, token 0: the rollback floor is not known; .*: it was written for another volume`, probeTime)
		vm.Expect(`type the recovery key`, commandTime)
		return vm
	}
	undefine(t, m.Config.TPM, floorIndex, markIndex)
	m.Config.Disk = other.Path
	vm = m.Boot()
	wantFloor(t, "a first boot", vm.UpIn("a"), "created", 0)
	otherKey := vm.recoveryKey()
	vm.Reboot()
	wantFloor(t, "control: its own volume", vm.UpIn("a"), "tpm2", 0)
	vm.PowerOff()
	refused().Kill()

	undefine(t, m.Config.TPM, floorIndex)
	m.Config.Disk = other.Path
	vm = m.Boot()
	vm.Expect(`type the recovery key`, probeTime)
	vm.Send(otherKey + "\r")
	wantFloor(t, "a volume of one's own", vm.UpIn("a"), "recovery-key", 0)
	vm.PowerOff()
	vm = refused()
	vm.Send(key + "\r")
	wantFloor(t, "the owner's key", vm.UpIn("a"), "recovery-key", 2)
	vm.PowerOff()
}

// wantFloor compares a boot with how its state was opened, and with the floor.
func wantFloor(t *testing.T, what string, r report.Report, unlocked string, floor int) {
	t.Helper()
	if r.State.Unlocked != unlocked || r.Floor == nil || !r.Floor.Known || r.Floor.Value != floor {
		t.Errorf("%s: state %+v, floor %+v, want %s and a floor of %d", what, r.State, r.Floor, unlocked, floor)
	}
}

// NV indices of the floor and of the mark "provisioned".
const (
	floorIndex = "0x1c05ea2"
	markIndex  = "0x1c05ea1"
)

// undefine takes indices away, as the owner of the TPM can.
func undefine(t *testing.T, state string, indices ...string) {
	t.Helper()
	chip := tpmtest.StartAt(t, state)
	defer chip.PowerOff()
	for _, index := range indices {
		chip.MustRun("", "tpm2_nvundefine", index, "-C", "o")
	}
}

// redefineFloor does what the owner of the TPM can: a floor of zero under the same
// number.
func redefineFloor(t *testing.T, state string) {
	t.Helper()
	chip := tpmtest.StartAt(t, state)
	defer chip.PowerOff()
	zero := filepath.Join(t.TempDir(), "zero")
	if err := os.WriteFile(zero, append([]byte("srf2"), make([]byte, 36)...), 0o600); err != nil {
		t.Fatal(err)
	}
	chip.MustRun("", "tpm2_nvundefine", floorIndex, "-C", "o")
	chip.MustRun("", "tpm2_nvdefine", floorIndex, "-C", "o", "-s", "40", "-g", "sha256", "-a", "ownerwrite|authwrite|authread|no_da")
	chip.MustRun("", "tpm2_nvwrite", floorIndex, "-C", floorIndex, "-i", zero)
}
