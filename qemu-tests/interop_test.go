package qemutests

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"sealroot/state/tpm/tpmtest"
)

// systemdOpens has Debian's systemd unlock a copy of the volume of the running
// guest by its recovery key: the same file system comes out. (By the TPM only
// systemd 254 and later could: older ones know no tpm2_srk.)
func (vm *VM) systemdOpens() {
	vm.t.Helper()
	vm.Run("head -c 32M /state/encrypted.img >/run/copy.img")
	vm.Run("/lib/systemd/systemd-cryptsetup attach judged /run/copy.img /state/encrypted/.sealroot/recovery.key read-only")
	const uuid = "blkid -p -o value -s UUID "
	ours := vm.Run(uuid + `$(awk '$2 == "/state/encrypted" {print $1}' /proc/mounts)`)
	if theirs := vm.Run(uuid + "/dev/mapper/judged"); ours != theirs || ours == "" {
		vm.t.Errorf("systemd finds file system %q in the volume, we %q", theirs, ours)
	}
	vm.Run("/lib/systemd/systemd-cryptsetup detach judged")
	vm.Run("rm /run/copy.img")
}

// What systemd-cryptenroll enrols in place of our token, PID 1 unlocks by, but for a
// PIN of versions before 254. (A signed PCR 11: TestStatePinnedVolume.)
func TestStateSystemdEnrolsOurVolume(t *testing.T) {
	t.Parallel()
	uncapped := []string{"    policy: pcrs\n", "    policy: pcrs\n    allow_uncapped: true\n"}
	disk := Image{Edit: uncapped}.Build(t)
	m := directMachine(t, disk).WithTPM()
	vm := m.Boot()
	vm.UpIn("a")
	key := vm.recoveryKey()
	pcr7 := vm.Run("cat /sys/class/tpm/tpm0/pcr-sha256/7")
	vm.keepSomething()
	vm.PowerOff()

	enrol := func(more ...string) {
		chip := tpmtest.StartAt(t, m.Config.TPM)
		defer chip.PowerOff()
		// SeaBIOS ends every PCR of the firmware by a separator.
		dir := t.TempDir()
		chip.MustRun(dir, "tpm2_pcrextend", fmt.Sprintf("7:sha256=%x", sha256.Sum256([]byte{0xff, 0xff, 0xff, 0xff})))
		if got := chip.MustRun(dir, "tpm2_pcrread", "sha256:7"); !strings.Contains(got, "0x"+strings.TrimSpace(pcr7)) {
			t.Fatalf("PCR 7 is %s, want %s as in the machine", got, pcr7)
		}
		disk.reenrol(t, chip, key, append([]string{"--tpm2-pcrs=7"}, more...)...)
	}
	enrol()
	m.survived()

	// Its version names no storage key of the TPM, so no PIN is asked for.
	enrol("--tpm2-with-pin=yes")
	m.Config.Initrd = otherInitramfs(t, append(uncapped, "tpm_without_measured_boot: accept-theft-by-disk-edit", "pin: true"))
	vm = m.Boot()
	vm.Expect(`names no storage key`, probeTime)
	vm.Expect(`type the recovery key`, commandTime)
	vm.Never(`type the PIN`)
	vm.Kill()
}

// reenrol has systemd-cryptenroll put a token of its own in place of the volume's
// TPM token.
func (d *Disk) reenrol(t *testing.T, chip *tpmtest.Machine, recoveryKey string, args ...string) {
	t.Helper()
	d.editVolume(t, func(volume string) {
		dir := filepath.Dir(volume)
		writeFile(t, filepath.Join(dir, "key"), []byte(recoveryKey), 0o600)
		// Ours goes first: its area on the disk has been written to, and the next one
		// has no block that editVolume could change.
		chip.MustRun(dir, "cryptsetup", "luksKillSlot", "-q", "--key-file", "key", volume, "0")
		chip.MustRun(dir, "cryptsetup", "token", "remove", "--token-id", "0", volume)
		args := append([]string{"--tpm2-device=" + chip.TCTI(), "--unlock-key-file=key"}, args...)
		chip.MustRun(dir, "systemd-cryptenroll", append(args, volume)...)
	})
	if dump := tool(t, "cryptsetup", "luksDump", d.EncryptedImage(t)); strings.Count(dump, "systemd-tpm2\n") != 1 {
		t.Fatalf("cryptsetup finds not one TPM token:\n%s", dump)
	}
}

// editVolume changes the beginning of encrypted.img.
func (d *Disk) editVolume(t *testing.T, edit func(path string)) {
	t.Helper()
	d.editState(t, func(state string) {
		const block = 4096
		path := encryptedImage(t, state)
		before := readFile(t, path)
		edit(path)
		after := readFile(t, path)
		if len(after) != len(before) {
			t.Fatalf("the volume had %d bytes and has %d", len(before), len(after))
		}
		for at := 0; at < len(after); at += block {
			if bytes.Equal(before[at:at+block], after[at:at+block]) {
				continue
			}
			where := strings.Fields(tool(t, "debugfs", "-R", fmt.Sprintf("bmap /encrypted.img %d", at/block), state))
			physical, err := strconv.ParseInt(where[len(where)-1], 10, 64)
			if err != nil || physical == 0 {
				t.Fatalf("debugfs does not know where block %d of encrypted.img lies: %q", at/block, where)
			}
			(&Disk{Path: state}).writeAt(t, physical*block, after[at:at+block])
		}
	})
}
