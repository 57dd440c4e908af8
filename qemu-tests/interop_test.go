package qemutests

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/mkinitramfs/keys"
	"sealroot/state/enrol"
	"sealroot/state/luks2"
	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/tpmtest"
)

// systemdOpens has Debian's systemd unlock a copy of the volume of the running
// guest by its recovery key: the same file system comes out. (By the TPM only
// systemd 254 and later do: older ones know no tpm2_srk.)
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
// PIN of versions before 254; and systemd-cryptsetup 254 unlocks ours by the TPM. (A
// signed PCR 11 that systemd-cryptenroll enrolled: TestStatePinnedVolume.)
func TestStateSystemdEnrolsOurVolume(t *testing.T) {
	t.Parallel()
	newer := newerSystemd(t)
	edit := []string{"    policy: pcrs\n", "    policy: pcrs\n    allow_uncapped: true\n", "pcrs: []", "pcrs: [7]"}
	disk := Image{Edit: edit, Extra: newer.programs(t)}.Build(t)
	m := directMachine(t, disk).WithTPM()
	vm := m.Boot()
	vm.UpIn("a")
	key := vm.recoveryKey()
	pcr7, err := hex.DecodeString(strings.TrimSpace(vm.Run("cat /sys/class/tpm/tpm0/pcr-sha256/7")))
	if err != nil {
		t.Fatal(err)
	}
	vm.PowerOff()
	ours := disk.EncryptedImage(t) // sealed to PCR 7 by PID 1

	enrol := func(more ...string) {
		chip := tpmtest.StartAt(t, m.Config.TPM)
		defer chip.PowerOff()
		// SeaBIOS ends every PCR of the firmware by a separator.
		dir := t.TempDir()
		chip.MustRun(dir, "tpm2_pcrextend", fmt.Sprintf("7:sha256=%x", sha256.Sum256([]byte{0xff, 0xff, 0xff, 0xff})))
		if got := chip.MustRun(dir, "tpm2_pcrread", "sha256:7"); !strings.Contains(got, fmt.Sprintf("0x%X", pcr7)) {
			t.Fatalf("PCR 7 is %s, want %X as in the machine", got, pcr7)
		}
		disk.reenrol(t, chip, key, append([]string{"--tpm2-pcrs=7"}, more...)...)
	}
	opens := func(what string, pin bool) *VM {
		t.Helper()
		vm := m.Boot()
		if pin {
			vm.Expect(`type the PIN of this machine`, probeTime)
			vm.Send(tpmtest.NewPIN + "\r")
		}
		if r := vm.UpIn("a"); r.State.Unlocked != "tpm2" || r.State.Pinned != "yes" || r.TPM.PIN != pin {
			t.Errorf("%s: state %+v, TPM %+v, want the pinned volume unlocked by tpm2, with a PIN: %v", what, r.State, r.TPM, pin)
		}
		return vm
	}
	enrol()
	vm = opens("the token of systemd 252", false)
	vm.cryptenroll("--tpm2-pcrs=7")
	vm.PowerOff()
	vm = opens("the token of systemd 254", false)
	vm.cryptenroll("--tpm2-pcrs=7", "--tpm2-with-pin=yes")
	vm.PowerOff()
	m.Config.Initrd = otherInitramfs(t, append(edit, "tpm_without_measured_boot: accept-theft-by-disk-edit", "pin: true"))
	opens("the token of systemd 254 with a PIN", true).PowerOff()

	// Version 252 names no storage key of the TPM, so no PIN is asked for.
	enrol("--tpm2-with-pin=yes")
	vm = m.Boot()
	vm.Expect(`names no storage key`, probeTime)
	vm.Expect(`type the recovery key`, commandTime)
	vm.Never(`type the PIN`)
	vm.Kill()

	newer.opensOurs(t, m, ours, pcr7)
}

// newer is a systemd that knows tpm2_srk, which names the storage key in a token. It
// holds the folder that scripts/systemd made.
type newer string

func newerSystemd(t *testing.T) newer {
	t.Helper()
	return newer(script(t, "systemd"))
}

// programs are its systemd-cryptsetup and systemd-cryptenroll for the probe's root, with
// all that they load, and what goes with them. (On this machine cryptsetup would load
// the plug-in of another systemd, and crash.)
func (n newer) programs(t *testing.T) map[string]string {
	t.Helper()
	const libraries = "/usr/lib/x86_64-linux-gnu/"
	in := map[string]string{
		filepath.Join(string(n), "systemd-cryptsetup"):                      "/usr/bin",
		filepath.Join(string(n), "systemd-cryptenroll"):                     "/usr/bin",
		filepath.Join(string(n), "lib/libcryptsetup-token-systemd-tpm2.so"): libraries + "cryptsetup",
	}
	shared, err := filepath.Glob(filepath.Join(string(n), "lib/libsystemd-shared-*.so"))
	if err != nil || len(shared) != 1 {
		t.Fatalf("%s has the libraries %v, %v", n, shared, err)
	}
	in[shared[0]] = libraries + "systemd"
	files := hostPrograms(t, append(slices.Collect(maps.Keys(in)), "/usr/bin/env", "/usr/bin/tpm2", "/usr/sbin/blkid",
		// What is loaded by name.
		libraries+"libtss2-esys.so.0", libraries+"libtss2-mu.so.0", libraries+"libtss2-rc.so.0", libraries+"libtss2-tcti-device.so.0")...)
	for path, dir := range in {
		from := strings.TrimPrefix(path, "/")
		files[strings.TrimPrefix(filepath.Join(dir, filepath.Base(path)), "/")] = files[from]
		delete(files, from)
	}
	return files
}

// cryptenroll has the newer systemd-cryptenroll, which is in the image, enrol a token of
// its own in place of the TPM token of the volume that is open.
func (vm *VM) cryptenroll(args ...string) {
	vm.t.Helper()
	vm.Run("env NEWPIN=" + tpmtest.NewPIN + " systemd-cryptenroll --wipe-slot=tpm2 --tpm2-device=auto" +
		" --unlock-key-file=/state/encrypted/.sealroot/recovery.key " + strings.Join(args, " ") + " /state/encrypted.img")
}

// opensOurs starts a system of the probe and systemd-cryptsetup on a machine and has it
// unlock volumes that were made here: one by PID 1 to literal PCR 7, and as PID 1 makes
// them, by the same functions, one with a PIN and one under a signed PCR 11. What the
// policies want must be so: the controls.
func (n newer) opensOurs(t *testing.T, m *Machine, literal string, pcr7 []byte) {
	t.Helper()
	const pin = "2580"
	values := tpm.Values{7: pcr7, pcrsig.PCRVolume: nil}
	chip := tpmtest.StartAt(t, m.Config.TPM)
	like := (&Disk{Path: m.Config.Disk}).header(t)
	volume := func(c config.TPM2, publicKey, pin []byte) string {
		policy, err := enrol.Policy(c, publicKey)
		if err != nil {
			t.Fatal(err)
		}
		policy.Values, policy.Bank, policy.PIN = values, pcrsig.SHA256, pin != nil
		return sealedVolume(t, chip, like, policy, pin)
	}
	withPIN := volume(config.TPM2{Policy: config.PolicyPCRs, PCRs: []int{7}}, nil, []byte(pin))
	signed := volume(config.TPM2{Policy: config.PolicySignedPCR11And7}, readFile(t, filepath.Join(keysDir(t), "pcr.pub")), nil)
	chip.PowerOff()

	// The word that PID 1 extends PCR 11 by, as if no stub had been before.
	key, err := keys.LoadKey(filepath.Join(keysDir(t), "pcr.key"))
	if err != nil {
		t.Fatal(err)
	}
	word := sha256.Sum256([]byte(pcrsig.PhaseEnterInitrd))
	after := sha256.Sum256(append(make([]byte, sha256.Size), word[:]...))
	entry, err := pcrsig.Sign(key, pcrsig.SHA256, []int{pcrsig.PCRKernel}, tpm.Values{pcrsig.PCRKernel: after[:]})
	if err != nil {
		t.Fatal(err)
	}
	signature, err := pcrsig.File{pcrsig.SHA256: {entry}}.Encode()
	if err != nil {
		t.Fatal(err)
	}

	judge := NewMachine(t, DirectKernel, &Disk{Path: literal}).WithDisk(withPIN).WithDisk(signed)
	judge.boots = m.boots // a log of its own
	judge.place, judge.Config.TPM, judge.Config.Kernel, judge.Config.Cmdline = m.place, m.Config.TPM, m.Config.Kernel, "console=ttyS0"
	judge.Config.Initrd = n.initramfs(t, signature)
	vm := judge.Boot()
	vm.WaitReady(probeTime)
	for _, module := range []string{"virtio_pci", "virtio_blk", "dm_crypt"} {
		vm.Run("/sbin/modprobe " + module)
	}
	opens := func(what, device, pin, options string, want bool) {
		t.Helper()
		out, status := vm.TryRun("env PIN=" + pin + " systemd-cryptsetup attach judged " + device + " - headless,read-only,tpm2-device=auto" + options)
		if (status == 0) != want {
			t.Errorf("systemd-cryptsetup opens a volume under %s: exit status %d, want success %v:\n%s", what, status, want, out)
		}
		if status != 0 {
			return
		}
		if got := vm.Run("blkid -p -o value -s TYPE /dev/mapper/judged"); got != "ext4" {
			t.Errorf("systemd-cryptsetup finds %q in the volume under %s, want ext4", got, what)
		}
		vm.Run("systemd-cryptsetup detach judged")
	}
	extend := func(pcr int) {
		t.Helper()
		vm.Run(fmt.Sprintf("tpm2 pcrextend -T device:/dev/tpmrm0 %d:sha256=%x", pcr, word))
	}
	const sig = ",tpm2-signature=/signature.json"
	opens("PCR 7", "/dev/vda", "", "", true)
	opens("PCR 7 and a PIN", "/dev/vdb", pin, "", true)
	opens("a PCR 11 that is not signed", "/dev/vdc", "", sig, false)
	extend(pcrsig.PCRKernel)
	opens("PCR 7 and signed PCR 11", "/dev/vdc", "", sig, true)
	opens("signed PCR 11 without the signature", "/dev/vdc", "", "", false)
	opens("PCR 7 and another PIN", "/dev/vdb", "2581", "", false)
	vm.Run("tpm2 dictionarylockout -T device:/dev/tpmrm0 --clear-lockout") // it tries more than once
	extend(7)
	opens("another PCR 7", "/dev/vda", "", "", false)
	opens("another PCR 7 with the PIN", "/dev/vdb", pin, "", false)
	opens("another PCR 7 and signed PCR 11", "/dev/vdc", "", sig, false)
	vm.PowerOff()
}

// initramfs is that system: the probe, the modules it can load, and the programs.
func (n newer) initramfs(t *testing.T, signature []byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range n.programs(t) {
		writeFile(t, filepath.Join(dir, name), []byte(content), 0o755)
	}
	writeFile(t, filepath.Join(dir, "signature.json"), signature, 0o644)
	if err := os.Rename(probe(t), filepath.Join(dir, "init")); err != nil {
		t.Fatal(err)
	}
	for _, empty := range []string{"run", "sbin", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, empty), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"lib": "usr/lib", "sbin/modprobe": "../init"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	tool(t, "cp", "-a", filepath.Join(kernel(t, "6.1").modules(t, Probe), "lib/modules"), filepath.Join(dir, "usr/lib"))
	return packInitramfs(t, dir)
}

// reenrol has systemd-cryptenroll (of this machine) put a token of its own in place of
// the volume's TPM token.
func (d *Disk) reenrol(t *testing.T, chip *tpmtest.Machine, recoveryKey string, args ...string) {
	t.Helper()
	tokens := slices.DeleteFunc(d.header(t).Tokens(), func(token luks2.Token) bool { return token.Type != tpm.TokenType })
	if len(tokens) != 1 || len(tokens[0].Keyslots) != 1 {
		t.Fatalf("the volume has the TPM tokens %+v, want one with a keyslot", tokens)
	}
	d.editVolume(t, func(volume string) {
		dir := filepath.Dir(volume)
		writeFile(t, filepath.Join(dir, "key"), []byte(recoveryKey), 0o600)
		// Ours goes first: its area on the disk has been written to, and the next one
		// has no block that editVolume could change.
		chip.MustRun(dir, "cryptsetup", "luksKillSlot", "-q", "--key-file", "key", volume, strconv.Itoa(tokens[0].Keyslots[0]))
		chip.MustRun(dir, "cryptsetup", "token", "remove", "--token-id", strconv.Itoa(tokens[0].ID), volume)
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
