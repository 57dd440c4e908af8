package qemutests

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// withoutTPM are the edits of the configuration "bios" for another way to the state.
func withoutTPM(t *testing.T, unlock, recovery string) []string {
	t.Helper()
	text, err := os.ReadFile(Image{}.whole().configFile())
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "  tpm2:\n")
	policy, _, found := strings.Cut(rest, "  recovery: later")
	if !found {
		t.Fatal("bios.yaml has no tpm2 before recovery")
	}
	return []string{
		"  tpm2:\n" + policy, "", "unlock: [tpm2, recovery-key]", "unlock: " + unlock,
		"recovery: later", "recovery: " + recovery, "on_failure: [prompt, degraded]", "on_failure: [degraded]",
	}
}

// A machine without a TPM: the state opens with a key file on a medium of its own.
func TestStateByKeyFile(t *testing.T) {
	t.Parallel()
	const uuid = "0e1f0203-0405-4607-8809-0a0b0c0d0e0f"
	disk := Image{Edit: withoutTPM(t, "[key-file, recovery-key]\n  key_file: {partition: "+uuid+", path: keys/kiosk.key}", "later")}.Build(t)

	dir := t.TempDir()
	key := make([]byte, 64)
	if _, err := rand.Read(key); err != nil {
		t.Fatal(err)
	}
	fat, stick := filepath.Join(dir, "fat"), filepath.Join(dir, "stick")
	writeFile(t, filepath.Join(dir, "kiosk.key"), key, 0o600)
	for path, size := range map[string]int64{fat: 8 << 20, stick: 10 << 20} {
		writeFile(t, path, nil, 0o600)
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
	}
	tool(t, "mkfs.vfat", fat)
	tool(t, "mmd", "-i", fat, "::/keys")
	tool(t, "mcopy", "-i", fat, filepath.Join(dir, "kiosk.key"), "::/keys/kiosk.key")
	tool(t, "sgdisk", "-n", "1:2048:+8M", "-u", "1:"+uuid, stick)
	tool(t, "dd", "if="+fat, "of="+stick, "bs=1M", "seek=1", "conv=notrunc")

	m := directMachine(t, disk)
	m.Config.MoreDisks = []string{stick}
	vm := m.Boot()
	if r := vm.UpIn("a"); r.State.Unlocked != "created" || r.TPM.Present {
		t.Errorf("state %+v, want created, without a TPM", r.State)
	}
	vm.Run("write /var/lib/mine words that stay")
	vm.PowerOff()
	volume := disk.EncryptedImage(t)
	if output, err := opens(t, volume, string(key)); err != nil {
		t.Errorf("cryptsetup refuses the key file: %s", output)
	}
	if _, err := opens(t, volume, string(key[1:])); err == nil {
		t.Error("control: cryptsetup takes another key too")
	}
	vm = m.Boot()
	if r := vm.UpIn("a"); r.State.Unlocked != "key-file" || r.State.Keyslot != 2 {
		t.Errorf("the boot after: state %+v, want unlocked by the key file", r.State)
	}
	if got := vm.Run("cat /var/lib/mine"); got != "words that stay" {
		t.Errorf("the boot after reads %q", got)
	}
	vm.PowerOff()
}

// A state without encryption has to be asked for, and is told of at every boot.
func TestStateInPlain(t *testing.T) {
	t.Parallel()
	disk := Image{Edit: withoutTPM(t, "[plain]", "none")}.Build(t)
	m := directMachine(t, disk)
	for i := range 2 {
		vm := m.Boot()
		r := vm.UpIn("a")
		if r.State.Unlocked != "plain" || !strings.Contains(strings.Join(r.Warnings, "\n"), "NOT ENCRYPTED") {
			t.Errorf("boot %d: state %+v, warnings %q, want plain, and loudly", i, r.State, r.Warnings)
		}
		if i == 0 {
			vm.Run("write /var/lib/mine words that stay")
			vm.Run("write /etc/mine and a setting")
		} else if got := vm.Run("cat /var/lib/mine /etc/mine /etc/from-image"); got != "words that stay\nand a setting\netc of the image" {
			t.Errorf("the second boot reads %q", got)
		}
		if text := vm.Run("sealroot status"); !strings.Contains(text, "NOT ENCRYPTED") {
			t.Errorf("sealroot status does not say it:\n%s", text)
		}
		vm.PowerOff()
	}
	if text := tool(t, "debugfs", "-R", "cat /encrypted/var/lib/mine", disk.Extract(t, "state")); !strings.Contains(text, "words that stay") {
		t.Errorf("the file on the state partition reads %q", text)
	}
}
