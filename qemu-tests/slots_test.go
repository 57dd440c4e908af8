package qemutests

import (
	"fmt"
	"strings"
	"testing"
)

// A trial that nobody commits ends after exactly its tries. It knows its
// deadline; the fallback is told in one boot only, and status names it later.
func TestSlotsFallbackIsToldOnce(t *testing.T) {
	t.Parallel()
	disk := Image{B: &SlotB{}, Edit: []string{"tries: 3", "tries: 2\n  commit_deadline: 7m"}}.Build(t)
	vm := directMachine(t, disk).WithTPM().Boot()
	for left := 1; left >= 0; left-- {
		r := vm.UpIn("b")
		if r.Slot.TriesAfter != left || r.CommitDeadlineSeconds != 420 || r.FellBack != nil {
			t.Errorf("slot %+v, deadline %d s, fell back %+v; want %d tries left, 420 s, no fallback", r.Slot, r.CommitDeadlineSeconds, r.FellBack, left)
		}
		if got := vm.Run("cat /run/sealroot/trial"); got != "b" {
			t.Errorf("/run/sealroot/trial says %q, want b", got)
		}
		// From the kernel's start: the limit, and what the boot took up to the hand-over.
		got := vm.Run("cat /run/systemd/system/sealroot-deadline.timer.d/deadline.conf")
		_, timer, _ := strings.Cut(got, "[Timer]\nOnBootSec=\n")
		var after int
		if _, err := fmt.Sscanf(timer, "OnBootSec=%ds", &after); err != nil || after < 420 || after > 3*420 {
			t.Errorf("the timer's drop-in, %v: want 420 s and the time of a slow boot, have\n%s", err, got)
		}
		vm.Reboot()
	}
	r := vm.UpIn("a")
	if r.FellBack == nil || r.FellBack.From != "b" || r.FellBack.Reason != "no commit" || r.Slot.Reason != "fallback" {
		t.Errorf("slot %+v, fell back %+v, want from b because of no commit", r.Slot, r.FellBack)
	}
	if got := vm.Run("cat /run/sealroot/fell-back"); got != "slot b: no commit" {
		t.Errorf("/run/sealroot/fell-back says %q", got)
	}
	if got := vm.Run("cat /run/sealroot/config.json"); !strings.Contains(got, `"commit_deadline": "7m"`) {
		t.Errorf("/run/sealroot/config.json is\n%s", got)
	}
	if got := vm.Run("ls /run/sealroot/verity.d/root"); !strings.HasSuffix(got, ".crt") {
		t.Errorf("/run/sealroot/verity.d/root holds %q, want a certificate", got)
	}
	vm.Reboot()
	r = vm.UpIn("a")
	if r.FellBack != nil || r.Slot.Reason != "committed" || r.CommitDeadlineSeconds != 0 {
		t.Errorf("the boot after it: slot %+v, fell back %+v, want nothing of that", r.Slot, r.FellBack)
	}
	for _, name := range []string{"fell-back", "trial"} {
		if text, status := vm.TryRun("cat /run/sealroot/" + name); status == 0 {
			t.Errorf("the boot after it: %s says %q, want no such file", name, text)
		}
	}
	if text := vm.Run("sealroot status"); !strings.Contains(text, "no commit") {
		t.Errorf("sealroot status does not say why slot b does not run:\n%s", text)
	}
	vm.PowerOff()
}

// With recount a committed slot that stops committing is left too.
func TestSlotsRecountFallsBack(t *testing.T) {
	t.Parallel()
	disk := Image{B: &SlotB{Mode: "good"}, Edit: []string{"tries: 3", "tries: 2\n  recount: true"}}.Build(t)
	vm := directMachine(t, disk).WithTPM().Boot()
	vm.UpIn("a")
	vm.Run("sealroot commit")
	vm.Reboot()
	// from here on nobody commits
	for left := 1; left >= 0; left-- {
		if r := vm.UpIn("a"); r.Slot.TriesAfter != left || r.Slot.TriesBefore != left+1 || r.Slot.Reason != "committed" {
			t.Errorf("slot %+v, want committed with %d tries left", r.Slot, left)
		}
		vm.Reboot()
	}
	if r := vm.UpIn("b"); r.FellBack == nil || r.FellBack.From != "a" || r.FellBack.Reason != "no commit" {
		t.Errorf("fell back %+v, want from a because of no commit", r.FellBack)
	}
	vm.Run("sealroot commit")
	vm.Reboot()
	if r := vm.UpIn("b"); r.FellBack != nil || r.Slot.TriesBefore != 2 {
		t.Errorf("slot %+v, fell back %+v, want b with its tries back", r.Slot, r.FellBack)
	}
	vm.PowerOff()
	disk.CheckTable(t)
	if a := disk.Slot(t, "a"); a.Successful != 1 || a.Tries != 0 {
		t.Errorf("slot a is %+v, want committed without tries", a)
	}
}

// A TPM that refuses (PCR 7 is another one), nobody at the keyboard, both slots
// good: however often that happens, no slot pays for it, counted or not.
func TestSlotsUnlockRefused(t *testing.T) {
	t.Parallel()
	for name, recount := range map[string]string{"plain": "", "recount": "\n  recount: true"} {
		boots := 1 // and one more
		if soaking() {
			boots = 20
		} else if recount != "" {
			continue // init/boot and the walk hold it in `make test`
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := Image{Config: "uki", SecureBoot: true, B: &SlotB{Mode: "good"}, Edit: []string{
				"tries: 3", "tries: 3" + recount, "[prompt, degraded]", "[degraded]"}}.Build(t)
			secure := NewMachine(t, UEFISecure, disk).WithTPM()
			vm := secure.Boot()
			vm.UpIn("a")
			vm.Run("sealroot commit")
			vm.Reboot() // the control: this TPM opens the volume
			if r := vm.UpIn("a"); r.State.Unlocked != "tpm2" {
				t.Fatalf("state %+v, want unlocked by tpm2", r.State)
			}
			vm.Run("sealroot commit")
			vm.PowerOff()
			a, b := disk.Slot(t, "a"), disk.Slot(t, "b")

			// Secure Boot is off now, and PCR 7 says so.
			changed := NewMachine(t, UEFI, disk)
			changed.Config.TPM = secure.Config.TPM
			vm = changed.Boot()
			for range boots {
				if r := vm.UpIn("a"); !r.Degraded || r.FellBack != nil {
					t.Errorf("degraded %v, fell back %+v; want a degraded boot of slot a", r.Degraded, r.FellBack)
				}
				vm.Reboot()
			}
			vm.UpIn("a")
			vm.PowerOff()
			if got := disk.Slot(t, "a"); got != a {
				t.Errorf("slot a is %+v after %d refusals, was %+v", got, boots+1, a)
			}
			if got := disk.Slot(t, "b"); got != b {
				t.Errorf("slot b is %+v after %d refusals, was %+v", got, boots+1, b)
			}
		})
	}
}
