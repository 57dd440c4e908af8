package qemutests

import (
	"bytes"
	"crypto/aes"
	"crypto/rand"
	"crypto/sha256"
	"debug/pe"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/crypto/xts"

	"sealroot/state/luks2"
	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/tpmtest"
)

// A volume of somebody else's that our own TPM unlocks is not unlocked; the
// control, an init without that defence, shows the theft. A machine whose pin was
// taken away asks for the recovery key and pins its volume anew. And a second
// system on the machine that replays PCR 11 does not get the key.
func TestStatePinnedVolume(t *testing.T) {
	t.Parallel()
	im := Image{Config: "uki", SecureBoot: true}
	withSystemd := im
	withSystemd.Extra = newerSystemd(t).programs(t)
	withSystemd.Extra["pcr.pub"] = string(readFile(t, filepath.Join(keysDir(t), "pcr.pub")))
	own := withSystemd.Build(t)
	im.Edit = []string{"on_failure: [prompt, degraded]", "on_failure: [degraded]"}
	unattended := im.Build(t)
	im.Unpinned = true
	undefended := im.Build(t)

	m := NewMachine(t, UEFISecure, own).WithTPM().Hold().oneBank()
	vm := m.Boot()
	if r := vm.UpIn("a"); r.State.Unlocked != "created" || r.State.Pinned != "yes" {
		t.Errorf("first boot: state %+v, want created and pinned", r.State)
	}
	key := vm.recoveryKey()
	vm.keepSomething()
	vm.Run("mount securityfs /sys/kernel/security")
	log := firmwareEvents(t, vm.bytes("/sys/kernel/security/tpm0/binary_bios_measurements"))
	vm.PowerOff()
	header := own.header(t)

	t.Run("second_system", func(t *testing.T) { replaysPCR11(t, own, m.Config.TPM, header, log) })

	state := own.Extract(t, "state")
	putVolume(t, state, theirVolume(t, m.Config.TPM, header, log.value(7)))
	for _, tc := range []struct {
		name string
		disk *Disk
	}{{"refused", unattended}, {"control", undefended}} {
		t.Run(tc.name, func(t *testing.T) {
			tc.disk.put(t, "state", state)
			before := tc.disk.Slot(t, "a")
			m.Config.Disk = tc.disk.Path
			vm := m.Boot()
			r := vm.UpIn("a")
			etc, _ := vm.TryRun("cat /etc/theirs")
			reasons := strings.Join(r.State.Attempts, "\n")
			if tc.disk == undefended {
				if r.State.Unlocked != "tpm2" || etc != "code as root" {
					t.Errorf("an init that does not look at the pin: state %+v, /etc/theirs holds %q, want their volume", r.State, etc)
				}
			} else if r.State.Unlocked != "degraded" || etc == "code as root" || !strings.Contains(reasons, "tpm2, token 0: this is not the volume that the TPM remembers") {
				t.Errorf("state %+v, /etc/theirs holds %q, want a degraded boot that says why", r.State, etc)
			}
			for _, mount := range r.Mounts {
				if tc.disk == unattended && mount.Where == "/state/encrypted" && strings.HasPrefix(mount.What, "/dev/") {
					t.Errorf("their volume is mounted: %+v", mount)
				}
			}
			if len(r.TPM.Capped) == 0 || strings.Trim(vm.Run("cat /sys/class/tpm/tpm0/pcr-sha256/15"), "0\n") == "" {
				t.Errorf("TPM %+v, want capped PCRs", r.TPM)
			}
			vm.PowerOff()
			if after := tc.disk.Slot(t, "a"); after != before {
				t.Errorf("slot a is %+v, was %+v", after, before)
			}
		})
	}

	// The owner of the TPM puts an index of their own in place of the pin.
	redefinePin(t, m.Config.TPM)
	m.Config.Disk = own.Path
	vm = m.Boot()
	vm.Expect(`tpm2, token 0: it is not known which volume is this machine's`, probeTime)
	vm.Expect(`type the recovery key`, commandTime)
	vm.Send(key + "\r")
	if r := vm.UpIn("a"); r.State.Unlocked != "recovery-key" || r.State.Pinned != "anew" || !strings.Contains(strings.Join(r.Warnings, "\n"), "is pinned in the TPM now") {
		t.Errorf("state %+v, warnings %q, want unlocked by recovery-key and pinned anew", r.State, r.Warnings)
	}
	// systemd-cryptenroll 254 seals to the signed PCR 11 too, and PID 1 unlocks by that.
	vm.cryptenroll("--tpm2-pcrs=7", "--tpm2-public-key=/pcr.pub", "--tpm2-public-key-pcrs=11")
	vm.PowerOff()
	m.survived()

	// Debian 12's does it too; its token opens (on the host, by what PID 1 calls).
	chip := tpmtest.StartAt(t, m.Config.TPM)
	log.replay(chip, 7)
	log.replay(chip, 11)
	chip.MustRun("", "tpm2_pcrextend", fmt.Sprintf("11:sha256=%x", sha256.Sum256([]byte(pcrsig.PhaseEnterInitrd))))
	own.reenrol(t, chip, key, "--tpm2-pcrs=7", "--tpm2-public-key="+absolute(t, filepath.Join(keysDir(t), "pcr.pub")), "--tpm2-public-key-pcrs=11")
	if _, err := tpm.New(chip).Unseal(t.Context(), tpmToken(t, own.header(t).Tokens()), publicSignature(t, own), nil); err != nil {
		t.Errorf("the token of Debian 12's systemd-cryptenroll: %v", err)
	}
}

// absolute is the path of a file for a program that runs elsewhere.
func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// event is one extend of a PCR, of bank sha256, in a firmware's log.
type event struct {
	pcr    int
	kind   string // as EV_EFI_VARIABLE_AUTHORITY
	digest [32]byte
}

type events []event

// firmwareEvents are the extends that tpm2_eventlog finds in a log.
func firmwareEvents(t *testing.T, log []byte) events {
	t.Helper()
	path := filepath.Join(t.TempDir(), "binary_bios_measurements")
	writeFile(t, path, log, 0o644)
	text := tool(t, "tpm2_eventlog", path)
	re := regexp.MustCompile(`(?s)PCRIndex: (\d+)\n\s+EventType: (\w+)\n\s+DigestCount: \d+\n\s+Digests:\n\s+- AlgorithmId: sha256\n\s+Digest: "([0-9a-f]{64})"`)
	var all events
	for _, m := range re.FindAllStringSubmatch(text, -1) {
		e := event{kind: m[2]}
		if _, err := fmt.Sscan(m[1], &e.pcr); err != nil {
			t.Fatal(err)
		}
		if _, err := hex.Decode(e.digest[:], []byte(m[3])); err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	if len(all.of(7)) < 5 || len(all.of(11)) < 5 {
		t.Fatalf("%d events of PCR 7 and %d of PCR 11 in the firmware's log:\n%s", len(all.of(7)), len(all.of(11)), text)
	}
	return all
}

func (list events) of(pcr int) (some events) {
	for _, e := range list {
		if e.pcr == pcr {
			some = append(some, e)
		}
	}
	return some
}

// replay extends a PCR of a TPM that was switched on as the firmware did.
func (list events) replay(chip *tpmtest.Machine, pcr int) {
	for _, e := range list.of(pcr) {
		chip.MustRun("", "tpm2_pcrextend", fmt.Sprintf("%d:sha256=%x", pcr, e.digest))
	}
}

// value is what the PCR holds after the events.
func (list events) value(pcr int) []byte {
	value := make([]byte, sha256.Size)
	for _, e := range list.of(pcr) {
		sum := sha256.Sum256(append(value, e.digest[:]...))
		value = sum[:]
	}
	return value
}

// header reads the header of the encrypted volume on the disk.
func (d *Disk) header(t *testing.T) *luks2.Header {
	t.Helper()
	h, err := luks2.Read(bytes.NewReader(readFile(t, d.EncryptedImage(t))), 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// theirVolume makes what an attacker makes who knows what lies on the disk and
// what the TPM says to anybody: a volume with our UUID and label and a key of their
// own, which our TPM gives to our own genuine image.
func theirVolume(t *testing.T, state string, ours *luks2.Header, pcr7 []byte) string {
	t.Helper()
	chip := tpmtest.StartAt(t, copyTPM(t, state))
	defer chip.PowerOff()
	return sealedVolume(t, chip, ours, tpm.Policy{
		SignedPCRs: []int{11}, PublicKey: readFile(t, filepath.Join(keysDir(t), "pcr.pub")),
		PCRs: []int{7}, Values: tpm.Values{7: pcr7}, Bank: pcrsig.SHA256,
	}, nil)
}

// sealedVolume makes a volume with a key of its own that a TPM gives out under the
// policy and for the PIN, if it has one, with the UUID and label of another one, and an
// /etc of theirs.
func sealedVolume(t *testing.T, chip *tpmtest.Machine, like *luks2.Header, policy tpm.Policy, pin []byte) string {
	t.Helper()
	volumeKey, secret := make([]byte, 64), make([]byte, tpm.SecretSize)
	rand.Read(volumeKey)
	rand.Read(secret)
	token, err := tpm.New(chip).Seal(t.Context(), policy, secret, pin)
	if err != nil {
		t.Fatal(err)
	}
	token.Keyslots = []int{0}
	text, err := token.Encode()
	if err != nil {
		t.Fatal(err)
	}
	h, err := luks2.Format(luks2.FormatParams{UUID: like.UUID(), Label: like.Label(), VolumeKey: volumeKey, SectorSize: 4096, Rand: rand.Reader})
	if err == nil {
		h, err = h.AddKeyslot(0, volumeKey, tpm.Passphrase(secret), luks2.RandomSecretKDF(), rand.Reader)
	}
	if err == nil {
		h, err = h.AddToken(0, text)
	}
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "theirs.img")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if h, err = luks2.WriteNew(f, h, rand.Reader); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(encryptedFilesystem(t, volumeKey), int64(h.DataOffset())); err != nil {
		t.Fatal(err)
	}
	return path
}

// encryptedFilesystem is an ext4 with their /etc, as dm-crypt would have written it:
// aes-xts-plain64 in sectors of 4096 bytes, numbered in units of 512.
func encryptedFilesystem(t *testing.T, volumeKey []byte) []byte {
	t.Helper()
	root, image := t.TempDir(), filepath.Join(t.TempDir(), "ext4")
	writeFile(t, filepath.Join(root, "etc/theirs"), []byte("code as root"), 0o644)
	if err := os.Mkdir(filepath.Join(root, ".sealroot"), 0o700); err != nil {
		t.Fatal(err)
	}
	tool(t, "mkfs.ext4", "-q", "-b", "4096", "-d", root, image, "64M")
	data := readFile(t, image)
	cipher, err := xts.NewCipher(aes.NewCipher, volumeKey)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(data); at += 4096 {
		cipher.Encrypt(data[at:at+4096], data[at:at+4096], uint64(at/512))
	}
	return data
}

// putVolume puts a volume in place of encrypted.img into a state partition.
func putVolume(t *testing.T, state, volume string) {
	t.Helper()
	runTool("e2fsck", "-p", state) // not zero when it replayed the journal
	tool(t, "debugfs", "-w", "-R", "rm /encrypted.img", state)
	tool(t, "debugfs", "-w", "-R", "write "+volume+" encrypted.img", state)
	if names := tool(t, "debugfs", "-R", "ls -p /", state); !strings.Contains(names, "/encrypted.img/") {
		t.Fatalf("the state partition has no encrypted.img:\n%s", names)
	}
}

// redefinePin does what the owner of the TPM can: an index with the same content
// under the same number.
func redefinePin(t *testing.T, state string) {
	t.Helper()
	const index = "0x1c05ea3"
	chip := tpmtest.StartAt(t, state)
	defer chip.PowerOff()
	dir := t.TempDir()
	chip.MustRun(dir, "tpm2_nvread", index, "-C", index, "-o", "record")
	chip.MustRun(dir, "tpm2_nvundefine", index, "-C", "o")
	chip.MustRun(dir, "tpm2_nvdefine", index, "-C", "o", "-s", "36", "-g", "sha256", "-a", "ownerwrite|authwrite|authread|no_da")
	chip.MustRun(dir, "tpm2_nvwrite", index, "-C", index, "-i", "record")
}

// copyTPM copies a TPM's state: what is done with the copy, the machine forgets.
func copyTPM(t *testing.T, state string) string {
	t.Helper()
	dir := t.TempDir()
	tool(t, "cp", "-a", state+"/.", dir)
	return dir
}

// replaysPCR11 is a second system on the machine, as Debian is: its boot loader is
// vouched for by another certificate, and as root it extends PCR 11 by all that the
// log of the machine says, and uses the public signature in the UKI.
func replaysPCR11(t *testing.T, disk *Disk, state string, header *luks2.Header, log events) {
	chip := tpmtest.StartAt(t, copyTPM(t, state))
	defer chip.PowerOff()
	sigs := publicSignature(t, disk)
	ours := tpmToken(t, header.Tokens())

	// The control: a volume that systemd-cryptenroll sealed to signed PCR 11 alone.
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "pcr.pub"), readFile(t, filepath.Join(keysDir(t), "pcr.pub")), 0o644)
	writeFile(t, filepath.Join(dir, "pw"), []byte("pw"), 0o600)
	writeFile(t, filepath.Join(dir, "img"), nil, 0o600)
	chip.MustRun(dir, "truncate", "-s", "20M", "img")
	chip.MustRun(dir, "cryptsetup", "luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "img", "pw")
	chip.MustRun(dir, "systemd-cryptenroll", "--tpm2-device="+chip.TCTI(), "--tpm2-pcrs=", "--tpm2-public-key=pcr.pub", "--tpm2-public-key-pcrs=11", "img")
	alone := tpmToken(t, []luks2.Token{{Type: tpm.TokenType, JSON: []byte(chip.MustRun(dir, "cryptsetup", "token", "export", "--token-id", "0", "img"))}})

	for _, tc := range []struct {
		name        string
		firmware    bool // PCR 7 is ours, as under our own UKI
		ours, alone bool // what opens
	}{
		{"another_system", false, false, true},
		{"control_our_own_system", true, true, true},
	} {
		chip.Reset()
		for _, e := range log {
			switch {
			case e.pcr == 7 && e.kind == "EV_EFI_VARIABLE_AUTHORITY" && !tc.firmware:
				e.digest = sha256.Sum256([]byte("the certificate of Debian's shim"))
			case e.pcr != 7 && e.pcr != 11:
				continue
			}
			chip.MustRun(dir, "tpm2_pcrextend", fmt.Sprintf("%d:sha256=%x", e.pcr, e.digest))
		}
		chip.MustRun(dir, "tpm2_pcrextend", fmt.Sprintf("11:sha256=%x", sha256.Sum256([]byte(pcrsig.PhaseEnterInitrd))))
		for _, token := range []struct {
			name  string
			token tpm.Token
			opens bool
		}{{"our volume", ours, tc.ours}, {"a volume sealed to signed PCR 11 alone", alone, tc.alone}} {
			secret, err := tpm.New(chip).Unseal(t.Context(), token.token, sigs, nil)
			if opens := err == nil && len(secret) > 0; opens != token.opens {
				t.Errorf("%s: %s opens: %v (%v), want %v", tc.name, token.name, opens, err, token.opens)
			}
			if err != nil && !strings.Contains(err.Error(), "PCR 7 of bank sha256 changed") {
				t.Errorf("%s: %s: %v, want it to name PCR 7", tc.name, token.name, err)
			}
		}
	}
}

func tpmToken(t *testing.T, list []luks2.Token) tpm.Token {
	t.Helper()
	for _, text := range list {
		if text.Type == tpm.TokenType {
			token, err := tpm.ParseToken(text.JSON)
			if err != nil {
				t.Fatal(err)
			}
			return token
		}
	}
	t.Fatal("the volume has no TPM token")
	return tpm.Token{}
}

// publicSignature is the signature of PCR 11 that everybody finds in the UKI.
func publicSignature(t *testing.T, disk *Disk) pcrsig.File {
	t.Helper()
	uki, err := pe.NewFile(bytes.NewReader(disk.GetESP(t, "/EFI/Linux/sealroot-a.efi")))
	if err != nil {
		t.Fatal(err)
	}
	section := uki.Section(".pcrsig")
	if section == nil {
		t.Fatal("the UKI has no .pcrsig")
	}
	text, err := section.Data()
	if err != nil {
		t.Fatal(err)
	}
	sigs, err := pcrsig.Parse(bytes.TrimRight(text[:min(len(text), int(section.VirtualSize))], "\x00"))
	if err != nil {
		t.Fatal(err)
	}
	return sigs
}
