package qemutests

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sealroot/state/luks2/hostile"
	"sealroot/state/tpm"
	"sealroot/state/tpm/tpmtest"
)

// Whatever lies in the place of encrypted.img is refused with its reason: nothing
// of it is mounted, the TPM is closed, and no slot pays. The machine's own volume,
// put back as a sparse copy, opens and has its reservation again. `make soak` takes
// all cases. (A volume that our own TPM unlocks: TestStatePinnedVolume, with the control
// that shows the theft.)
func TestStateInPlaceOfTheVolume(t *testing.T) {
	t.Parallel()
	disk := Image{Edit: []string{"on_failure: [prompt, degraded]", "on_failure: [degraded]"}}.Build(t)
	m := directMachine(t, disk).WithTPM()
	vm := m.Boot()
	reserved := vm.UpIn("a").State.ReservedBytes
	vm.keepSomething()
	vm.PowerOff()
	before := disk.Slot(t, "a")

	dir := t.TempDir()
	chip := tpmtest.Start(t)
	another := sealedVolume(t, chip, disk.header(t), tpm.Policy{PCRs: []int{15}}, nil)
	chip.PowerOff()
	ext4, luks1 := filepath.Join(dir, "ext4"), filepath.Join(dir, "luks1")
	tool(t, "mkfs.ext4", "-q", ext4, "20M")
	writeFile(t, luks1, nil, 0o600)
	if err := os.Truncate(luks1, 20<<20); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "key"), []byte("pw"), 0o600)
	tool(t, "cryptsetup", "luksFormat", "-q", "--type", "luks1", "--pbkdf-force-iterations", "1000", luks1, filepath.Join(dir, "key"))

	// The machine's own volume goes on lying under another name, for the link and
	// for the end.
	away := []string{"ln /encrypted.img /own.img", "unlink /encrypted.img"}
	for _, tc := range []struct {
		name, command string
		says          string
	}{
		{"another_device", "write " + another + " encrypted.img", "sealed by another TPM"},
		{"ext4", "write " + ext4 + " encrypted.img", "not a LUKS2 header: wrong magic"},
		{"luks1", "write " + luks1 + " encrypted.img", "LUKS version 1"},
		{"null_cipher", "write " + hostileVolume(t, "null_cipher") + " encrypted.img", `encryption is "cipher_null-ecb"`},
		{"reencryption", "write " + hostileVolume(t, "reencryption_as_cryptsetup_writes_it") + " encrypted.img", "has requirements"},
		{"symlink", "symlink encrypted.img own.img", "encrypted.img is not a plain file"},
		{"fifo", "mknod encrypted.img p", "encrypted.img is not a plain file"},
		{"directory", "mkdir encrypted.img", "encrypted.img is not a plain file"},
	} {
		if !soaking() && slices.Contains([]string{"luks1", "reencryption", "fifo"}, tc.name) {
			continue // one of each kind is the sample
		}
		disk.editState(t, func(state string) {
			for _, command := range append(away, tc.command) {
				debugfs(t, state, command)
			}
		})
		away = []string{"rm /encrypted.img"}
		if tc.name == "directory" {
			away = []string{"rmdir /encrypted.img"}
		}
		vm := m.Boot()
		r := vm.UpIn("a")
		if text := failuresText(r) + "\n" + strings.Join(r.State.Attempts, "\n"); r.State.Unlocked != "degraded" || !r.Degraded || !strings.Contains(text, tc.says) {
			t.Errorf("%s: state %+v, want degraded because of %q: %s", tc.name, r.State, tc.says, text)
		}
		for _, mount := range r.Mounts {
			if mount.Where == "/state/encrypted" && mount.What != "degraded" {
				t.Errorf("%s: it is mounted: %+v", tc.name, mount)
			}
		}
		if table, status := vm.TryRun("dmtable sealroot-state"); status == 0 {
			t.Errorf("%s: it is mapped: %s", tc.name, table)
		}
		for _, pcr := range []string{"11", "15"} {
			if value := vm.Run("cat /sys/class/tpm/tpm0/pcr-sha256/" + pcr); strings.Trim(value, "0\n") == "" {
				t.Errorf("%s: PCR %s is zero, not capped", tc.name, pcr)
			}
		}
		vm.PowerOff()
	}
	if got := disk.Slot(t, "a"); got != before {
		t.Errorf("slot a is %+v, was %+v", got, before)
	}

	disk.editState(t, func(state string) {
		for _, command := range append(away, "ln /own.img /encrypted.img", "unlink /own.img") {
			debugfs(t, state, command)
		}
		// Near the end of the volume's file system, where nothing lies yet.
		end := reserved / 4096
		debugfs(t, state, "punch /encrypted.img "+strconv.FormatInt(end-16<<8, 10)+" "+strconv.FormatInt(end-12<<8, 10))
		if got := allocatedBytes(t, state); got >= reserved {
			t.Fatalf("%d bytes are allocated of %d: no sparse copy", got, reserved)
		}
	})
	m.survived()
	disk.editState(t, func(state string) {
		if got := allocatedBytes(t, state); got < reserved {
			t.Errorf("%d bytes are allocated, want the %d that were reserved", got, reserved)
		}
	})
}

// allocatedBytes is how much of encrypted.img its file system holds.
func allocatedBytes(t *testing.T, state string) int64 {
	t.Helper()
	_, rest, found := strings.Cut(tool(t, "debugfs", "-R", "stat /encrypted.img", state), "Blockcount: ")
	fields := strings.Fields(rest)
	if !found || len(fields) == 0 {
		t.Fatal("debugfs does not tell the blocks of encrypted.img")
	}
	n, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n * 512
}

// hostileVolume is a file with one of the hostile headers.
func hostileVolume(t *testing.T, name string) string {
	t.Helper()
	good, err := hostile.Good()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range hostile.Cases() {
		if c.Name != name {
			continue
		}
		image, err := c.Make(good)
		path := filepath.Join(t.TempDir(), "volume")
		if err == nil {
			err = image.WriteFile(path)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Fatalf("no hostile header %q", name)
	return ""
}
