package qemutests

import (
	"fmt"
	"strings"
	"testing"
)

// The disk beside another TPM does not unlock: it asks for the recovery key and
// takes it, and no slot pays for it.
func TestOtherTPMAsksForRecoveryKey(t *testing.T) {
	t.Parallel()
	disk := Image{}.Build(t)
	m := NewMachine(t, BIOS, disk).WithTPM()
	vm := m.Boot()
	vm.UpIn("a")
	key := vm.recoveryKey()
	vm.Run("write /var/lib/mine words that stay")
	vm.PowerOff()
	before := disk.Slot(t, "a")

	vm = m.WithTPM().Boot()
	vm.Expect(`recovery key`, probeTime)
	vm.Send("not-the-key\r")
	vm.Expect(`does not open`, commandTime)
	vm.Send(key + "\r")
	r := vm.UpIn("a")
	if r.State.Unlocked != "recovery-key" {
		t.Errorf("state %+v, want unlocked by recovery-key", r.State)
	}
	if got := vm.Run("cat /var/lib/mine"); got != "words that stay" {
		t.Errorf("the volume holds %q", got)
	}
	if log := vm.guest.Console(); strings.Contains(log, key) {
		t.Error("the console shows the recovery key that was typed")
	}
	vm.PowerOff()
	if got := disk.Slot(t, "a"); got != before {
		t.Errorf("slot a is %+v, was %+v", got, before)
	}
}

// From the booted system nobody unseals the key again: neither by the token as
// it is, nor through another bank of PCRs.
func TestNoUnsealAfterBoot(t *testing.T) {
	for _, tc := range []struct {
		name  string
		image Image
		vm    func(t *testing.T, disk *Disk) *Machine
	}{
		{"bios", Image{Root: Debian}, func(t *testing.T, d *Disk) *Machine { return NewMachine(t, BIOS, d) }},
		{"secure_boot", Image{Config: "uki", Root: Debian, SecureBoot: true},
			func(t *testing.T, d *Disk) *Machine { return NewMachine(t, UEFISecure, d) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			vm := tc.vm(t, tc.image.Build(t)).WithTPM().Boot()
			vm.WaitReady(bootTime)
			r := vm.Report()
			if len(r.TPM.Banks) < 4 || len(r.TPM.Capped) == 0 {
				t.Errorf("TPM %+v, want four banks and capped PCRs", r.TPM)
			}
			// The plugin of systemd is what would unlock it: it must be there to mean anything.
			vm.Run("test -e /usr/lib/x86_64-linux-gnu/cryptsetup/libcryptsetup-token-systemd-tpm2.so")
			output, status := vm.TryRun("cryptsetup open --test-passphrase --token-only --token-id 0 --debug /state/encrypted.img")
			if status == 0 {
				t.Errorf("the token unlocks the volume in the booted system:\n%s", output)
			}
			if !strings.Contains(strings.ToLower(output), "policy") {
				t.Errorf("the unlock failed for another reason than the policy:\n%s", output)
			}
			// Whatever the token's PCRs, in each bank they are not as PID 1 found them.
			for _, bank := range []string{"sha1", "sha256", "sha384", "sha512"} {
				for _, pcr := range r.TPM.Capped {
					value := vm.Run(fmt.Sprintf("cat /sys/class/tpm/tpm0/pcr-%s/%d", bank, pcr))
					if strings.Trim(value, "0") == "" {
						t.Errorf("PCR %d of bank %s is zero: not capped", pcr, bank)
					}
				}
			}
			vm.PowerOff()
		})
	}
}
