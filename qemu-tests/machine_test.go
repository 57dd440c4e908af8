package qemutests

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The harness itself: a Debian kernel with an initramfs that holds only the
// probe, packed by bsdcpio. Nothing of sealroot runs.
func TestHarness(t *testing.T) {
	t.Parallel()
	k := kernel(t, "6.1")
	m := NewMachine(t, DirectKernel, nil).WithTPM()
	m.Config.Kernel, m.Config.Initrd = k.Image, probeInitramfs(t)
	m.Config.Cmdline = "console=ttyS0"
	vm := m.Boot()
	vm.Expect(`probe: up: slot "", kernel `+k.Release, probeTime)
	vm.Run("write /greeting some words")
	if got, want := vm.Run("cat /greeting"), "some words"; got != want {
		t.Errorf("the guest read %q, want %q", got, want)
	}
	if output, status := vm.TryRun("cat /nothing"); status != 1 {
		t.Errorf("a missing file gave status %d, %q, want 1", status, output)
	}
	if got := vm.Run("ls /sys/class/tpm"); !strings.Contains(got, "tpm0") {
		t.Errorf("TPMs in the guest: %q, want tpm0", got)
	}
	vm.Reset()
	vm.WaitReady(probeTime)
	if output, status := vm.TryRun("cat /greeting"); status == 0 {
		t.Errorf("after a reset memory still holds %q", output)
	}
	vm.PowerOff()
}

// probeInitramfs packs the probe as /init.
func probeInitramfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Rename(probe(t), filepath.Join(dir, "init")); err != nil {
		t.Fatal(err)
	}
	return packInitramfs(t, dir)
}

// packInitramfs has bsdcpio make an initramfs of a folder.
func packInitramfs(t *testing.T, dir string) string {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "initrd")
	cmd := exec.Command("sh", "-c", `find . | bsdcpio --quiet -o -H newc -O "$0"`, archive)
	cmd.Dir = dir
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("bsdcpio: %v\n%s", err, output)
	}
	return archive
}
