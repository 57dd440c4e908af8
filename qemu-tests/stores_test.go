package qemutests

import (
	"strings"
	"testing"
)

// The suite that all stores pass on the host passes against the firmware's real
// variables, also full and read-only ones, and a real FAT file system.
func TestSlotsStoresInGuest(t *testing.T) {
	t.Parallel()
	disk := Image{Config: "uki", Sealroot: goBuild(t, "./stores")}.Build(t)
	vm := NewMachine(t, UEFI, disk).WithTPM().Boot()
	vm.UpIn("a")
	for _, kind := range []string{"efi", "efi-read-only", "grubenv-darch", "grubenv-rauc", "bls", "efi-full"} {
		// sealroot is the place of the command in the image; FAT synced hundreds of
		// times takes its time
		out, status, err := vm.guest.Run("sealroot "+kind, answerTime)
		if err != nil || status != 0 || !strings.HasSuffix(strings.TrimSpace(out), "ok") {
			t.Errorf("%s: exit status %d, %v\n%s", kind, status, err, out)
		} else {
			t.Logf("%s:\n%s", kind, out)
		}
	}
	vm.PowerOff()
}
