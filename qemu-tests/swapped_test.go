package qemutests

import (
	"path/filepath"
	"strings"
	"testing"
)

// otherOptions are load options that stand in for a UKI's own command line.
const otherOptions = "console=ttyS0 init=/bin/sh systemd.debug_shell=1 rdinit=/init"

// What the table of boot paths in README promises when somebody exchanges the
// initramfs, or the command line, of a machine that sealed its state before.
// (With Secure Boot on nothing else starts: TestSecureBootRefusesUnsigned.)
func TestTrustSwappedInitramfs(t *testing.T) {
	t.Parallel()
	t.Run("uki_without_secure_boot", func(t *testing.T) {
		t.Parallel()
		im := Image{Config: "uki", Edit: []string{"signed-pcr11+7", "signed-pcr11+4", "on_failure: [prompt, degraded]", "on_failure: [degraded]"}}
		disk := im.Build(t)
		im.Uncapped = true
		theirs := im.Build(t)
		dir := t.TempDir()
		uki := func(name string, d *Disk) string {
			path := filepath.Join(dir, name)
			writeFile(t, path, d.GetESP(t, "/EFI/Linux/sealroot-a.efi"), 0o644)
			return path
		}
		own, swapped := uki("own.efi", disk), uki("swapped.efi", theirs)
		m := NewMachine(t, UEFI, disk).WithTPM().Hold().oneBank()
		for _, tc := range []struct {
			name, uki, options string
			want               string // state
			says               string // on the console
		}{
			// What is there before the first boot must not become part of the policy.
			{"load_options_before_the_first_boot", own, "console=ttyS0 systemd.debug_shell=1", "degraded", "cannot seal to PCR 12: load options"},
			{"first_boot", own, "", "created", ""},
			// They run, and that is all they do.
			{"load_options_in_place_of_cmdline", own, otherOptions, "degraded", `"init=/bin/sh" is not honoured`},
			{"swapped_initramfs", swapped, "", "degraded", "sealroot-demo 2026.11.1"},
			{"control_unchanged", own, "", "tpm2", ""},
		} {
			// The firmware starts the UKI with these load options, none when empty.
			m.Config.Args = []string{"-kernel", tc.uki}
			if tc.options != "" {
				m.Config.Args = append(m.Config.Args, "-append", tc.options)
			}
			vm := m.Boot()
			r := vm.UpIn("a")
			if r.State.Unlocked != tc.want || r.BootPath != "uki" {
				t.Errorf("%s: state %+v by boot path %s, want %s by uki", tc.name, r.State, r.BootPath, tc.want)
			}
			if !strings.Contains(vm.guest.Console(), tc.says) {
				t.Errorf("%s: no %q on the console", tc.name, tc.says)
			}
			if text, _ := vm.TryRun("sealroot status"); !strings.Contains(text, "the TPM tells what boots") {
				t.Errorf("%s: sealroot status does not name the boot path:\n%s", tc.name, text)
			}
			vm.PowerOff()
		}
	})
	// The red control of the load options above: it is PCR 12 that stops them.
	t.Run("uki_control_without_pcr_12", func(t *testing.T) {
		t.Parallel()
		im := Image{Config: "uki", Edit: []string{
			"policy: signed-pcr11+7\n    public_key: pcr.pub", "policy: pcrs\n    pcrs: [4]\n    tpm_without_measured_boot: accept-theft-by-disk-edit",
			"on_failure: [prompt, degraded]", "on_failure: [degraded]",
		}}
		disk := im.Build(t)
		uki := filepath.Join(t.TempDir(), "own.efi")
		writeFile(t, uki, disk.GetESP(t, "/EFI/Linux/sealroot-a.efi"), 0o644)
		m := NewMachine(t, UEFI, disk).WithTPM().Hold().oneBank().WithArgs("-kernel", uki)
		for _, want := range []string{"created", "tpm2"} {
			vm := m.Boot()
			if r := vm.UpIn("a"); r.State.Unlocked != want || r.BootPath != "uki" {
				t.Errorf("state %+v by boot path %s, want %s by uki", r.State, r.BootPath, want)
			}
			vm.PowerOff()
			m.WithArgs("-append", otherOptions) // for the second boot
		}
	})
	// The policy holds what GRUB measures: an initramfs of others, or a word more on
	// the command line, is another PCR. (The control, a policy without them, is below.)
	t.Run("grub_on_uefi", func(t *testing.T) {
		t.Parallel()
		im := Image{Loader: "grub-efi", Edit: []string{"pcrs: []", "pcrs: [8, 9]", "on_failure: [prompt, degraded]", "on_failure: [degraded]"}}
		own := im.Build(t)
		disk := own.Copy(t)
		im.Uncapped, im.Cmdline = true, "systemd.debug_shell=1"
		theirs := im.Build(t)
		// GRUB's configuration is inside of its program.
		const initrd, program = "/sealroot/a/initrd", "/EFI/BOOT/BOOTX64.EFI"
		m := NewMachine(t, UEFI, disk).WithTPM().Hold().oneBank()
		for _, tc := range []struct {
			name           string
			initrd, loader *Disk // whose is on the disk
			want, says     string
		}{
			{"first_boot", own, own, "created", "the state is sealed to that"},
			{"swapped_initramfs", theirs, own, "degraded", "the TPM did not open the state"},
			{"longer_command_line", own, theirs, "degraded", "the TPM did not open the state"},
			{"control_unchanged", own, own, "tpm2", "the state is sealed to that"},
		} {
			if tc.name == "longer_command_line" && !soaking() {
				continue // one swap is the sample: these boots are slow
			}
			disk.PutESP(t, initrd, tc.initrd.GetESP(t, initrd))
			disk.PutESP(t, program, tc.loader.GetESP(t, program))
			vm := m.Boot()
			r := vm.UpIn("a")
			if r.State.Unlocked != tc.want || r.BootPath != "grub-efi" {
				t.Errorf("%s: state %+v by boot path %s, want %s by grub-efi", tc.name, r.State, r.BootPath, tc.want)
			}
			if tc.want == "degraded" && !strings.Contains(strings.Join(r.State.Attempts, "\n"), "PCR") {
				t.Errorf("%s: what was tried does not name the PCRs: %q", tc.name, r.State.Attempts)
			}
			if text, _ := vm.TryRun("sealroot status"); !strings.Contains(text, tc.says) || strings.Contains(text, "nothing here is sealed") {
				t.Errorf("%s: sealroot status does not say %q:\n%s", tc.name, tc.says, text)
			}
			vm.PowerOff()
		}
	})
	// The named exception: the theft works.
	t.Run("grub_on_bios", func(t *testing.T) {
		t.Parallel()
		disk := Image{}.Build(t)
		m := NewMachine(t, BIOS, disk).WithTPM().Hold()
		vm := m.Boot()
		vm.UpIn("a")
		if text := vm.Run("sealroot status"); !strings.Contains(text, "accept-theft-by-disk-edit") {
			t.Errorf("sealroot status does not say what is accepted:\n%s", text)
		}
		vm.PowerOff()
		disk.PutESP(t, "/sealroot/a/initrd", Image{Uncapped: true}.Build(t).GetESP(t, "/sealroot/a/initrd"))
		vm = m.Boot()
		if r := vm.UpIn("a"); r.State.Unlocked != "tpm2" {
			t.Errorf("state %+v: the table in README says that a swapped initramfs gets the key", r.State)
		}
		if output := vm.Run("unseal /state/encrypted.img"); !strings.Contains(output, "unsealed") {
			t.Errorf("the swapped initramfs left the TPM open, and the secret does not come out: %s", output)
		}
		vm.PowerOff()
	})
}
