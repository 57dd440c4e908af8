package qemutests

import (
	"bytes"
	"strings"
	"testing"
)

// sealedToGRUB is an image under EFI GRUB whose state opens by its literal PCR 8 and 9
// alone: nobody is asked for a key.
func sealedToGRUB(more ...string) Image {
	return Image{Loader: "grub-efi", Edit: append([]string{
		"pcrs: []", "pcrs: [8, 9]", "on_failure: [prompt, degraded]", "on_failure: [degraded]",
	}, more...)}
}

// Under literal PCR 8 and 9 each image has values of its own: an installation seals the
// state to those of the image that it writes, which then opens it on trial and as
// committed, and the slot of before still does.
func TestStateUpdateUnderLiteralPCRsOpensByItself(t *testing.T) {
	t.Parallel()
	image := sealedToGRUB("recovery: later", "recovery: later\n  manage_key: true")
	vm := NewMachine(t, UEFI, image.Build(t)).WithTPM().withParts(t, readFile(t, image.next(t).Parts(t))).Boot()
	vm.UpIn("a")
	if out := vm.Run("sealroot install /dev/vdb"); !strings.Contains(out, "for its kernel too") {
		t.Errorf("install does not say that it has sealed the state anew: %s", out)
	}
	opens := func(slot, reason string) {
		t.Helper()
		vm.Reboot()
		r := vm.UpIn(slot)
		if r.State.Unlocked != "tpm2" || r.Slot.Reason != reason {
			t.Fatalf("state %+v, slot %+v: want %s, the state opened by the TPM", r.State, r.Slot, reason)
		}
	}
	opens("b", "trial")
	vm.Run("sealroot commit")
	opens("b", "committed")
	vm.Run("sealroot rollback")
	opens("a", "fallback")
	vm.PowerOff()
}

// Where no key is at hand to seal with, an installation is refused before it writes.
// (The soak shows that its trial would not open the state.)
func TestStateUpdateUnderLiteralPCRsWithoutAKeyIsRefused(t *testing.T) {
	t.Parallel()
	image := sealedToGRUB()
	disk := image.Build(t)
	m := NewMachine(t, UEFI, disk).WithTPM().Hold().withParts(t, readFile(t, image.next(t).Parts(t)))
	vm := m.Boot()
	vm.UpIn("a")
	out, status := vm.TryRun("sealroot install /dev/vdb")
	if status != 3 || !strings.Contains(out, "PCR [8 9]") || !strings.Contains(out, "state.manage_key") {
		t.Errorf("exit status %d: %s; want 3, the reason and the remedy", status, out)
	}
	vm.PowerOff()
	for _, part := range []string{"root-b", "root-b-verity", "root-b-verity-sig"} {
		if content := readFile(t, disk.Extract(t, part)); len(bytes.Trim(content, "\x00")) > 0 {
			t.Errorf("partition %s was written", part)
		}
	}
	if !soaking() {
		return
	}
	vm = m.Boot()
	vm.UpIn("a")
	vm.Run("sealroot install --locked-state /dev/vdb")
	vm.Reboot()
	if r := vm.UpIn("a"); r.FellBack == nil || r.FellBack.From != "b" {
		t.Errorf("control: fell back %+v, want from b, which cannot open the state", r.FellBack)
	}
	vm.PowerOff()
}

// A unified kernel image has a PCR 4 of its own, and the TPM's record of the volume is
// bound to it. So an installation is refused before it writes; taken all the same, the
// trial asks a person once, and opens by itself once the TPM is bound to it. A trial
// that nobody answers: TestPromptOnTrial, and TestSlotsUnlockRefused.
func TestStateUpdateToAnotherUKIAsksOnce(t *testing.T) {
	t.Parallel()
	image := Image{Config: "uki", Edit: []string{"signed-pcr11+7", "signed-pcr11+4"}}
	disk := image.Build(t)
	vm := NewMachine(t, UEFI, disk).WithTPM().Hold().oneBank().withParts(t, readFile(t, image.next(t).Parts(t))).Boot()
	vm.UpIn("a")
	key := vm.recoveryKey()
	vm.keepSomething()
	for _, command := range []string{"sealroot install /dev/vdb", "sealroot state prepare-update /dev/vdb"} {
		out, status := vm.TryRun(command)
		if status != 3 || !strings.Contains(out, "the image itself writes it") {
			t.Errorf("%s: exit status %d: %s; want 3 and the reason", command, status, out)
		}
	}
	vm.Run("sync")
	for _, part := range []string{"root-b", "root-b-verity", "root-b-verity-sig"} {
		if content := readFile(t, disk.Extract(t, part)); len(bytes.Trim(content, "\x00")) > 0 {
			t.Errorf("partition %s was written", part)
		}
	}
	if out := vm.Run("sealroot install --locked-state /dev/vdb"); !strings.Contains(out, "waits two minutes") {
		t.Errorf("install does not say what becomes of the trial: %s", out)
	}
	vm.Reboot()
	vm.Expect(`type the recovery key`, probeTime)
	vm.Send(key + "\r")
	if r := vm.UpIn("b"); r.State.Unlocked != "recovery-key" || r.State.Pinned != "anew" || !r.Slot.Trial {
		t.Fatalf("state %+v, slot %+v: want a trial that was unlocked by recovery-key, and the volume pinned anew", r.State, r.Slot)
	}
	vm.Never(`Type yes`)
	vm.Run("write /run/key " + key)
	vm.Run("sealroot commit")
	vm.Run("sealroot state enroll --recovery-key-file /run/key")
	vm.Reboot()
	if r := vm.UpIn("b"); r.State.Unlocked != "tpm2" || r.State.Pinned != "yes" {
		t.Errorf("the boot after: state %+v, want the pinned volume unlocked by tpm2", r.State)
	}
	if got := vm.Run("cat /var/lib/mine"); got != "words that stay" {
		t.Errorf("the volume holds %q", got)
	}
	vm.PowerOff()
}
