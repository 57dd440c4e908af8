package qemutests

import (
	"strings"
	"testing"
)

// The TPM refuses and nobody sits there: the machine comes up degraded, is unlocked
// from a file on the running system, and the next boot is whole although nobody can
// type anything there: by the voucher of the degraded boot. On its way there a
// state partition that was marked as having errors is repaired by the root's e2fsck. A
// volume that opens, and cannot be used, is closed again, and the boot degraded.
func TestStateDegradedIsUnlocked(t *testing.T) {
	t.Parallel()
	disk := Image{
		Config: "uki", SecureBoot: true,
		Edit:  []string{"on_failure: [prompt, degraded]", "on_failure: [degraded]\n  degraded_unlock: true\n  fsck: auto"},
		Extra: hostPrograms(t, "/usr/sbin/e2fsck"),
	}.Build(t)
	m := NewMachine(t, UEFISecure, disk).WithTPM()
	vm := m.Boot()
	vm.UpIn("a")
	key := vm.recoveryKey()
	vm.Run("write /var/lib/mine words that stay")
	vm.PowerOff()
	before := disk.Slot(t, "a")

	vm = m.WithTPM().Boot()
	if r := vm.UpIn("a"); !r.Degraded || r.State.Unlocked != "degraded" {
		t.Errorf("on another TPM: state %+v, want degraded", r.State)
	}
	if why := vm.Run("cat /run/sealroot/degraded"); !strings.Contains(why, "stays locked") {
		t.Errorf("/run/sealroot/degraded holds %q", why)
	}
	if output, status := vm.TryRun("sealroot commit"); status != 3 {
		t.Errorf("commit in a degraded boot: status %d, %s", status, output)
	}
	vm.Run("write /run/key x" + key[1:])
	if output, status := vm.TryRun("sealroot state unlock --recovery-key-file /run/key"); status != 3 {
		t.Errorf("a wrong key: status %d, %s", status, output)
	}
	vm.Run("write /run/key " + key)
	if output := vm.Run("sealroot state unlock --recovery-key-file /run/key"); !strings.Contains(output, "sealed by another TPM") || !strings.Contains(output, "the next boot unlocks with the TPM, and records there") {
		t.Errorf("state unlock says\n%s", output)
	}
	if got := vm.Run("cat /state/encrypted/var/lib/mine"); got != "words that stay" {
		t.Errorf("the volume holds %q", got)
	}
	if output := vm.Run("unseal /state/encrypted.img"); strings.Contains(output, "unsealed") {
		t.Errorf("the running system unseals what it has enrolled:\n%s", output)
	}
	vm.PowerOff()
	if after := disk.Slot(t, "a"); after != before {
		t.Errorf("slot a is %+v, was %+v", after, before)
	}

	state := disk.Extract(t, "state")
	runTool("e2fsck", "-p", state) // not zero when it replayed the journal
	tool(t, "debugfs", "-w", "-R", "set_super_value state 3", state)
	disk.put(t, "state", state)
	vm = m.Boot()
	r := vm.UpIn("a")
	if r.State.Unlocked != "tpm2" || r.State.Pinned != "anew" || r.Degraded {
		t.Errorf("the next boot: state %+v, degraded %v, want it unlocked by tpm2 and pinned anew", r.State, r.Degraded)
	}
	if warnings := strings.Join(r.Warnings, "\n"); !strings.Contains(warnings, "the state partition: checked; e2fsck ends with status") {
		t.Errorf("warnings %q, want one of e2fsck", warnings)
	}
	if got := vm.Run("cat /var/lib/mine"); got != "words that stay" {
		t.Errorf("the next boot reads %q", got)
	}
	if names := vm.Run("ls /state"); strings.Contains(names, "voucher") {
		t.Errorf("the voucher is still there: %s", names)
	}
	vm.Run("mv /state/encrypted/home /state/encrypted/.home")
	vm.Run("symlink /run /state/encrypted/home")
	vm.PowerOff()
	if dump := tool(t, "dumpe2fs", "-h", disk.Extract(t, "state")); strings.Contains(dump, "errors") && !strings.Contains(dump, "Filesystem state:         clean\n") {
		t.Errorf("the state partition after its repair:\n%s", dump)
	}

	vm = m.Boot()
	if r := vm.UpIn("a"); !r.Degraded || r.State.Unlocked != "degraded" || len(r.Failures) != 1 || !strings.Contains(r.Failures[0].Error, "cannot fill /home") {
		t.Errorf("with a link in the place of /home: state %+v, failures %+v; want it degraded", r.State, r.Failures)
	}
	vm.Run("write /run/key " + key)
	vm.Run("sealroot state unlock --recovery-key-file /run/key") // it was closed, and is as it was
	if got := vm.Run("cat /state/encrypted/var/lib/mine"); got != "words that stay" {
		t.Errorf("the volume holds %q", got)
	}
	vm.PowerOff()
	if after := disk.Slot(t, "a"); after != before {
		t.Errorf("slot a is %+v, was %+v", after, before)
	}
}
