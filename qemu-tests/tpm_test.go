package qemutests

import (
	"fmt"
	"strings"
	"testing"

	"sealroot/qemu-tests/machine"
)

// The disk beside another TPM does not unlock: it asks for the recovery key and
// takes it, and no slot pays for it. A yes binds that TPM, and the next boot unlocks
// by itself.
func TestStateOtherTPMAsksForRecoveryKey(t *testing.T) {
	t.Parallel()
	disk := Image{}.Build(t)
	m := directMachine(t, disk).WithTPM()
	vm := m.Boot()
	vm.UpIn("a")
	key := vm.recoveryKey()
	vm.Run("write /var/lib/mine words that stay")
	vm.PowerOff()
	before := disk.Slot(t, "a")

	vm = m.WithTPM().Boot()
	vm.Expect(`type the recovery key`, probeTime)
	vm.Send("not-the-key\r")
	vm.Expect(`does not open`, commandTime)
	vm.Expect(`type the recovery key`, commandTime) // what is typed before it is dropped
	vm.Send(key + "\r")
	vm.Expect(`sealed by another TPM[^\n]*\n(?s:.*)Type yes`, commandTime)
	vm.Send("yes\r")
	r := vm.UpIn("a")
	if r.State.Unlocked != "recovery-key" || r.State.Pinned != "anew" {
		t.Errorf("state %+v, want unlocked by recovery-key and pinned anew", r.State)
	}
	if got := vm.Run("cat /var/lib/mine"); got != "words that stay" {
		t.Errorf("the volume holds %q", got)
	}
	if log := vm.guest.Console(); strings.Contains(log, key) {
		t.Error("the console shows the recovery key that was typed")
	}
	vm.PowerOff()
	if dump := tool(t, "cryptsetup", "luksDump", disk.EncryptedImage(t)); strings.Count(dump, "systemd-tpm2\n") != 1 || strings.Count(dump, ": luks2\n") != 2 {
		t.Errorf("cryptsetup finds, want two keyslots and one systemd-tpm2 token:\n%s", dump)
	}
	vm = m.Boot()
	if r := vm.UpIn("a"); r.State.Unlocked != "tpm2" || r.State.Pinned != "yes" {
		t.Errorf("the boot after: state %+v, want the pinned volume unlocked by tpm2", r.State)
	}
	vm.PowerOff()
	if got := disk.Slot(t, "a"); got != before {
		t.Errorf("slot a is %+v, was %+v", got, before)
	}
	volume := disk.EncryptedImage(t)
	if output, err := opens(t, volume, key); err != nil {
		t.Errorf("cryptsetup refuses the recovery key: %s", output)
	}
	if output, err := opens(t, volume, "x"+key[1:]); err == nil {
		t.Errorf("cryptsetup accepts a wrong recovery key: %s", output)
	}
}

// With a PIN the TPM opens nothing until somebody typed it, also where no boot path
// vouches for the initramfs.
func TestStateTPMWithPIN(t *testing.T) {
	t.Parallel()
	// Letters: four digits are found in the microseconds of a kernel log, too.
	const pin, wrong = "pin of vega", "pin of mira"
	disk := Image{Edit: []string{"tpm_without_measured_boot: accept-theft-by-disk-edit", "pin: true"}}.Build(t)
	m := directMachine(t, disk).WithTPM()
	vm := m.Boot()
	vm.Expect(`new PIN`, probeTime)
	vm.Send(pin + "\r")
	vm.Expect(`once more`, commandTime)
	vm.Send(pin + "\r")
	if r := vm.UpIn("a"); r.State.Unlocked != "created" {
		t.Errorf("first boot: state %+v, want created", r.State)
	}
	vm.PowerOff()
	if dump := tool(t, "cryptsetup", "luksDump", disk.EncryptedImage(t)); !strings.Contains(dump, "tpm2-pin:         true") {
		t.Errorf("cryptsetup finds no PIN:\n%s", dump)
	}
	vm = m.Boot()
	vm.Expect(`type the PIN of this machine`, probeTime)
	vm.Send(wrong + "\r")
	vm.Expect(`that is not the PIN. Tries left: 2`, commandTime)
	vm.Expect(`type the PIN of this machine`, commandTime) // what is typed before it is dropped
	vm.Send(pin + "\r")
	if r := vm.UpIn("a"); r.State.Unlocked != "tpm2" || r.State.Pinned != "yes" {
		t.Errorf("state %+v, want the pinned volume unlocked by tpm2", r.State)
	}
	if log := vm.guest.Console() + vm.Run("kmsg"); strings.Contains(log, pin) || strings.Contains(log, wrong) {
		t.Error("the console shows the PIN")
	}
	vm.PowerOff()
}

// From the booted system nobody unseals the secret again, through no bank of
// PCRs. The control, an init that leaves the TPM open, shows the theft.
func TestStateNoUnsealAfterBoot(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		firmware machine.Firmware
		image    Image
	}{
		{"bios", BIOS, Image{}},
		{"secure_boot", UEFISecure, Image{Config: "uki", SecureBoot: true}},
	} {
		if tc.firmware == BIOS && !soaking() {
			continue // one firmware is the sample
		}
		for _, uncapped := range []bool{false, true} {
			name := tc.name
			if uncapped {
				name += "_control"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				tc.image.Uncapped = uncapped
				vm := NewMachine(t, tc.firmware, tc.image.Build(t)).WithTPM().Boot()
				r := vm.UpIn("a")
				if len(r.TPM.Banks) < 4 {
					t.Errorf("TPM %+v, want four active banks", r.TPM)
				}
				output := vm.Run("unseal /state/encrypted.img")
				if got := strings.Contains(output, "unsealed"); got != uncapped {
					t.Errorf("the secret comes out: %v, want %v:\n%s", got, uncapped, output)
				}
				if got := strings.Count(output, "\n"); got < len(r.TPM.Banks)-1 {
					t.Errorf("%d answers for %d banks:\n%s", got, len(r.TPM.Banks), output)
				}
				if !uncapped && len(r.TPM.Capped) == 0 {
					t.Errorf("TPM %+v, want capped PCRs", r.TPM)
				}
				// Whatever the policy, in each bank the PCRs are not as PID 1 found them.
				for _, bank := range r.TPM.Banks {
					for _, pcr := range r.TPM.Capped {
						value := vm.Run(fmt.Sprintf("cat /sys/class/tpm/tpm0/pcr-%s/%d", bank, pcr))
						if strings.Trim(value, "0\n") == "" {
							t.Errorf("PCR %d of bank %s is zero: not capped", pcr, bank)
						}
					}
				}
				vm.PowerOff()
			})
		}
	}
}
