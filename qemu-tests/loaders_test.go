package qemutests

import (
	"strings"
	"testing"

	"sealroot/qemu-tests/machine"
	"sealroot/slots/efi"
)

// everyLoader are the boot loaders, each with the stores of the slots that it
// goes with. GRUB on BIOS and BootNext with the gpt store have tests of their own
// (TestUncommittedTrialFallsBack, TestCommittedBootWritesNothing, TestDeadKernelFallsBack).
var everyLoader = []struct {
	name     string
	firmware machine.Firmware
	image    Image
	// kernelB is slot b's kernel on the EFI system partition while b is on
	// trial with one try.
	kernelB string
	// forgets: the store lies in the firmware of the machine, so a new disk
	// begins with every slot committed, and b is put on trial by hand.
	forgets bool
}{
	{"bios_grub_darch", BIOS, Image{Store: "grubenv-darch"}, "/sealroot/b/vmlinuz", false},
	{"bios_grub_rauc", BIOS, Image{Store: "grubenv-rauc"}, "/sealroot/b/vmlinuz", false},
	{"efi_grub_gpt", UEFI, Image{Loader: "grub-efi"}, "/sealroot/b/vmlinuz", false},
	{"systemd_boot_gpt", UEFISecure, Image{Loader: "systemd-boot", SecureBoot: true}, "/EFI/Linux/sealroot-b.efi", false},
	{"systemd_boot_bls", UEFISecure, Image{Loader: "systemd-boot", Store: "bls", SecureBoot: true}, "/EFI/Linux/sealroot-b+1-0.efi", false},
	{"bootnext_efi", UEFISecure, Image{Config: "uki", Store: "efi", SecureBoot: true}, "/EFI/Linux/sealroot-b.efi", true},
}

// bootTrial starts a machine whose slot b is on trial with two tries.
func bootTrial(t *testing.T, firmware machine.Firmware, image Image, forgets bool) *VM {
	t.Helper()
	boot := "tries: 2"
	if image.Loader == "grub-efi" {
		boot += "\n  new_guids: never" // as where the state is sealed to PCR 8 and 9: see grubPCRs
	}
	image.B, image.Edit = &SlotB{}, []string{"tries: 3", boot}
	if forgets {
		image.B.Mode = "good"
	}
	vm := NewMachine(t, firmware, image.Build(t)).WithTPM().Boot()
	if forgets {
		vm.UpIn("a")
		vm.Run("sealroot try b --tries 2")
		vm.Reboot()
	}
	if image.Loader == "systemd-boot" {
		vm.armsB()
	}
	return vm
}

// armsB waits until slot a's init has sent the machine into slot b, as on a disk
// that comes without EFI variables.
func (vm *VM) armsB() {
	vm.t.Helper()
	vm.Expect(`slot b is on trial: rebooting into its own kernel`, probeTime)
}

// A slot on trial that nobody commits is booted exactly as often as it has
// tries, then the other slot runs; `sealroot status` says why, and the next boot
// does not begin again.
func TestLoadersGiveUpUncommittedTrial(t *testing.T) {
	t.Parallel()
	for _, tc := range everyLoader {
		if (tc.forgets || tc.image.Store == "" || tc.name == "bios_grub_rauc") && !soaking() {
			continue // TestLoadersKeepCommittedTrial has them
		}
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			vm := bootTrial(t, tc.firmware, tc.image, tc.forgets)
			for left := 1; left >= 0; left-- {
				r := vm.UpIn("b")
				if !r.Slot.Trial || r.Slot.Loaded != "b" || r.Slot.TriesBefore != left+1 || r.Slot.TriesAfter != left {
					t.Errorf("slot %+v, want b on trial by its own kernel, %d tries left", r.Slot, left)
				}
				vm.Reboot()
			}
			r := vm.UpIn("a")
			if r.FellBack == nil || r.FellBack.From != "b" || r.FellBack.Reason != "no commit" {
				t.Errorf("fell back: %+v, want from b, no commit", r.FellBack)
			}
			if r.Slot.Loaded != "a" {
				t.Errorf("the kernel is that of slot %q, want a", r.Slot.Loaded)
			}
			if text := vm.Run("sealroot status"); !strings.Contains(text, "no commit") {
				t.Errorf("sealroot status does not say why slot b does not run:\n%s", text)
			}
			if tc.firmware == BIOS || soaking() {
				vm.Reboot()
				vm.UpIn("a")
			}
			vm.PowerOff()
		})
	}
}

// A committed trial stays, by the loader's own default: the second reboot has
// no one-shot left over from the trial.
func TestLoadersKeepCommittedTrial(t *testing.T) {
	t.Parallel()
	for _, tc := range everyLoader {
		if (tc.image.Store == "bls" || tc.name == "bios_grub_darch") && !soaking() {
			continue // TestLoadersInstall has the one, TestLoadersGiveUpUncommittedTrial the other
		}
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			vm := bootTrial(t, tc.firmware, tc.image, tc.forgets)
			if r := vm.UpIn("b"); !r.Slot.Trial {
				t.Errorf("slot %+v, want b on trial", r.Slot)
			}
			measured := vm.grubPCRs(tc.image)
			vm.Run("sealroot commit")
			vm.loaderNames(tc.image, "b")
			for range 2 {
				vm.Reboot()
				if r := vm.UpIn("b"); r.Slot.Reason != "committed" || r.Slot.Loaded != "b" || r.FellBack != nil {
					t.Errorf("slot %+v, fell back %+v, want b committed, by its own kernel", r.Slot, r.FellBack)
				}
				if now := vm.grubPCRs(tc.image); now != measured {
					t.Errorf("PCR 8 and 9 by the default:\n%s\nby the one-shot:\n%s", now, measured)
				}
			}
			vm.PowerOff()
		})
	}
}

// Every loader with every store starts what was installed, and its copy.
// (TestInstallTrialCommitReplicate has GRUB on BIOS and BootNext, with the store
// gpt.)
func TestLoadersInstall(t *testing.T) {
	t.Parallel()
	for _, tc := range everyLoader {
		if tc.image.Store != "bls" && !soaking() {
			continue // that store has names of its own for what is installed
		}
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			vm, disk := installNext(t, tc.firmware, tc.image)
			if soaking() {
				vm.copyAndBack(disk, "sealroot replicate")
				return
			}
			vm.Reboot()
			if r := vm.UpIn("b"); r.Slot.Reason != "committed" || r.Slot.Loaded != "b" || r.FellBack != nil {
				t.Errorf("slot %+v, fell back %+v, want b committed, by its own kernel", r.Slot, r.FellBack)
			}
			vm.PowerOff()
			checkESP(t, disk)
			disk.CheckVerity(t, "b")
		})
	}
}

// loaderNames checks that the variable of systemd-boot, which wins over
// loader.conf, names the slot as the default.
func (vm *VM) loaderNames(image Image, slot string) {
	vm.t.Helper()
	if image.Loader != "systemd-boot" {
		return
	}
	const attributes = 4 // efivarfs has them before the value
	b := vm.bytes("/sys/firmware/efi/efivars/LoaderEntryDefault-" + efi.Systemd)
	if got, want := strings.ReplaceAll(string(b[attributes:]), "\x00", ""), efi.EntryPattern(slot); got != want {
		vm.t.Errorf("LoaderEntryDefault is %q, want %q", got, want)
	}
}

// grubPCRs is what EFI GRUB has measured, its commands and the files it read; ""
// with other loaders. A secret sealed to it must open by one-shot and default.
func (vm *VM) grubPCRs(image Image) string {
	vm.t.Helper()
	if image.Loader != "grub-efi" {
		return ""
	}
	var all []string
	for _, pcr := range []string{"8", "9"} {
		value := vm.Run("cat /sys/class/tpm/tpm0/pcr-sha256/" + pcr)
		if strings.Trim(value, "0\n") == "" {
			vm.t.Errorf("PCR %s is all zeros: GRUB measured nothing", pcr)
		}
		all = append(all, value)
	}
	return strings.Join(all, "\n")
}

// A kernel image that systemd-boot cannot read is left out of its list; one that
// Secure Boot refuses makes it end, and the firmware starts it again by its
// second entry. Either way the one-shot is gone, and the machine comes up in the
// other slot by itself and says why. (TestDeadKernelFallsBack has GRUB and the
// firmware's own BootNext.)
func TestLoadersDeadKernel(t *testing.T) {
	t.Parallel()
	for _, tc := range everyLoader {
		if tc.image.Loader != "systemd-boot" {
			continue
		}
		for name, spoil := range map[string]func([]byte){
			"zeros":   func(kernel []byte) { clear(kernel) },
			"refused": func(kernel []byte) { kernel[len(kernel)/2] ^= 1 },
		} {
			if (name == "zeros" || tc.image.Store == "bls") && !soaking() {
				continue // one is the sample
			}
			t.Run(tc.name+"_"+name, func(t *testing.T) {
				t.Parallel()
				tc.image.B, tc.image.Edit = &SlotB{}, oneTry
				disk := tc.image.Build(t)
				kernel := disk.GetESP(t, tc.kernelB)
				if len(kernel) == 0 {
					t.Fatalf("%s is empty", tc.kernelB)
				}
				spoil(kernel)
				disk.PutESP(t, tc.kernelB, kernel)
				vm := NewMachine(t, tc.firmware, disk).WithTPM().Boot()
				vm.armsB()
				vm.UpIn("a")
				if text := vm.Run("sealroot status"); !strings.Contains(text, "kernel never reached init") {
					t.Errorf("sealroot status does not say why slot b does not run:\n%s", text)
				}
				// It is not tried for ever.
				vm.Reboot()
				if r := vm.UpIn("a"); r.Slot.Reason != "committed" || r.Slot.Loaded != "a" {
					t.Errorf("slot %+v, want a committed", r.Slot)
				}
				vm.PowerOff()
			})
		}
	}
}
