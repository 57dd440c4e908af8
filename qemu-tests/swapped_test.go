package qemutests

import (
	"path/filepath"
	"strings"
	"testing"
)

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
			{"load_options_in_place_of_cmdline", own, "console=ttyS0 init=/bin/sh systemd.debug_shell=1 rdinit=/init", "degraded", `"init=/bin/sh" is not honoured`},
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
