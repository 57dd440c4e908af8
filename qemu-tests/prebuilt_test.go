package qemutests

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// prebuild makes a volume in the image of a disk, and returns its recovery key.
func (d *Disk) prebuild(t *testing.T, more ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "recovery.key")
	tool(t, filepath.Join(buildDir, "sealroot"), append([]string{"state", "create", "--disk", d.Path, "--recovery-key-file", file}, more...)...)
	key := tool(t, "cat", file)
	if out, err := opens(t, d.EncryptedImage(t), key); err != nil {
		t.Fatalf("cryptsetup does not open the prebuilt volume: %v: %s", err, out)
	}
	return key
}

// A machine puts a volume of its own in the place of one that came with the image,
// with nobody there, also after a power cut; and takes none once it has its own.
func TestStatePrebuiltIsReplaced(t *testing.T) {
	t.Parallel()
	never := Image{Edit: []string{"create: first-boot", "create: never", "recovery: later", "recovery: none"}}.Build(t)
	refused := []string{"state", "create", "--disk", never.Path}
	if out, err := exec.Command(filepath.Join(buildDir, "sealroot"), refused...).CombinedOutput(); err == nil || !strings.Contains(string(out), "state.create: never") {
		t.Errorf("an image whose machines make no volume gets one: %v: %s", err, out)
	}
	disk := Image{}.Build(t)
	key := disk.prebuild(t, "--reserve", "200")
	factory, before := disk.Extract(t, "state"), disk.EncryptedImage(t)
	m := NewMachine(t, DirectKernel, disk).WithTPM()
	m.LoadSlot("a")
	vm := m.Boot()
	vm.Expect(`the volume that came with the image is replaced`, probeTime)
	vm.Kill()

	vm = m.Boot()
	r := vm.UpIn("a")
	if r.State.Unlocked != "created" || r.State.Pinned != "yes" || r.State.ReservedBytes != 200<<20 {
		t.Errorf("state %+v, want a new volume with 200 MiB", r.State)
	}
	own := vm.recoveryKey()

	// A reset that keeps /home keeps the volume.
	vm.Run("write /home/mine a letter")
	vm.Run("write /etc/mine a setting")
	vm.Run("write /var/lib/mine words")
	vm.Run("sealroot state reset --keep-home --yes")
	vm.Reboot()
	if after := vm.UpIn("a").State; after.Unlocked != "tpm2" || after.Reset != "kept-home" || after.UUID != r.State.UUID {
		t.Errorf("after a reset: state %+v, want the same volume, unlocked by tpm2", after)
	}
	if got := vm.Run("cat /home/mine"); got != "a letter" {
		t.Errorf("after a reset /home has %q", got)
	}
	for _, path := range []string{"/var/lib/mine", "/etc/mine", "/state/encrypted/.sealroot/reset-request"} {
		if text, status := vm.TryRun("cat " + path); status == 0 {
			t.Errorf("after a reset %s is there: %q", path, text)
		}
	}
	vm.PowerOff()
	after := disk.EncryptedImage(t)
	for _, tc := range []struct {
		name, volume, key string
		opens             bool
	}{
		{"control: the prebuilt volume", before, key, true},
		{"the image's key", after, key, false},
		{"control: the machine's own key", after, own, true},
	} {
		if output, err := opens(t, tc.volume, tc.key); (err == nil) != tc.opens {
			t.Errorf("%s: cryptsetup opens it: %v, want %v: %s", tc.name, err == nil, tc.opens, output)
		}
	}
	if strings.Contains(tool(t, "cryptsetup", "luksDump", after), "sealroot-prebuilt") {
		t.Error("the machine's own volume is marked as prebuilt")
	}

	// Somebody puts what came with the image in its place.
	disk.put(t, "state", factory)
	vm = m.Boot()
	vm.Expect(`came with the image and is not opened: .*, but the TPM remembers that volume`, probeTime)
	vm.Never(`type the recovery key or passphrase`)
	vm.Kill()
	if output, err := opens(t, disk.EncryptedImage(t), key); err != nil {
		t.Errorf("the volume that was refused is not as it was: %v: %s", err, output)
	}
}
