package qemutests

import (
	"errors"
	"fmt"
	"image"
	"image/draw"
	"image/png"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The second boot unlocks by the TPM and finds what the first one wrote. It is a
// committed slot's boot: it writes nothing to slots, log and boot partition.
// (With Secure Boot: TestStatePinnedVolume.)
func TestStateSurvivesReboot(t *testing.T) {
	t.Parallel()
	m := NewMachine(t, BIOS, Image{}.Build(t)).WithTPM()
	vm := m.Boot()
	if r := vm.UpIn("a"); r.State.Unlocked != "created" {
		t.Errorf("first boot: state %+v, want created", r.State)
	}
	vm.keepSomething()
	vm.PowerOff()
	m.survived()

	// A power cut that tears the superblock of either file system, of which the kernel
	// writes two sectors, costs nothing: the second sector is that of before.
	vm = m.Boot()
	vm.UpIn("a")
	const checksum = 1024 + 0x3fc
	for _, device := range []string{deviceOf(vm, "/state"), deviceOf(vm, "/state/encrypted")} {
		vm.Run(fmt.Sprintf("poke %s %d 01020304", device, checksum))
	}
	vm.Kill()
	vm = m.Boot()
	r := vm.UpIn("a")
	if r.State.Unlocked != "tpm2" || strings.Count(strings.Join(r.Warnings, "\n"), "a power cut had torn") != 2 {
		t.Errorf("state %+v, warnings %q: want it unlocked, and both superblocks mended", r.State, r.Warnings)
	}
	vm.PowerOff()
}

// deviceOf is the device that is mounted there.
func deviceOf(vm *VM, where string) string {
	vm.t.Helper()
	for line := range strings.Lines(vm.Run("cat /proc/mounts")) {
		if words := strings.Fields(line); len(words) > 1 && words[1] == where {
			return words[0]
		}
	}
	vm.t.Fatalf("nothing is mounted on %s", where)
	return ""
}

// keepSomething writes what survived looks for.
func (vm *VM) keepSomething() {
	vm.t.Helper()
	vm.Run("write /var/lib/mine words that stay")
	vm.Run("write /etc/mine and a setting")
}

// survived boots the machine once more and expects all of its state, by the TPM.
func (m *Machine) survived() {
	t := m.t
	t.Helper()
	disk := &Disk{Path: m.Config.Disk}
	before := disk.bootDigest(t)
	vm := m.Boot()
	if r := vm.UpIn("a"); r.State.Unlocked != "tpm2" || r.State.Pinned != "yes" {
		t.Errorf("state %+v, want the pinned volume unlocked by tpm2", r.State)
	}
	if got := vm.Run("cat /var/lib/mine /etc/mine /etc/from-image"); got != "words that stay\nand a setting\netc of the image" {
		t.Errorf("the next boot reads %q", got)
	}
	vm.PowerOff()
	if after := disk.bootDigest(t); after != before {
		t.Errorf("a boot of a committed slot changed the disk: before\n%s\nafter\n%s", before, after)
	}
}

// bootDigest tells whether anything that boots was written.
func (d *Disk) bootDigest(t *testing.T) string {
	t.Helper()
	var all []string
	for _, name := range []string{"esp", "root-a", "root-a-verity", "root-a-verity-sig", "root-b", "sealroot-log"} {
		all = append(all, tool(t, "sha256sum", d.Extract(t, name))[:64])
	}
	return strings.Join(append(all, tool(t, "sfdisk", "--dump", d.Path)), "\n")
}

// Half a write of the partition table, as a power cut leaves it: the primary
// copy does not match its checksum, and the machine boots by the backup.
func TestDamagedTableBoots(t *testing.T) {
	t.Parallel()
	disk := Image{}.Build(t)
	const entries, entrySize, attributes = 2 * sectorSize, 128, 48
	at := int64(entries + (disk.Part(t, "root-a").Number-1)*entrySize + attributes)
	disk.writeAt(t, at, []byte{0xff})
	if tableProblem(t, disk.Path) == "" {
		t.Fatal("the judges find no damage")
	}
	vm := NewMachine(t, BIOS, disk).WithTPM().Boot()
	vm.UpIn("a")
	vm.PowerOff()
}

// With recovery: show the key is on the console and nowhere else, and is enrolled
// once somebody pressed a key.
func TestStateRecoveryKeyIsShown(t *testing.T) {
	t.Parallel()
	disk := Image{Edit: []string{"recovery: later", "recovery: show"}}.Build(t)
	vm := directMachine(t, disk).WithTPM().Boot()
	vm.Expect(`press any key`, probeTime)
	key := shownKey(vm.guest.Console())
	if key == "" {
		t.Fatal("no recovery key on the console")
	}
	if got := readCode(t, vm.guest.Console()); got != key {
		t.Errorf("the QR code says %q, the text %q", got, key)
	}
	vm.Send(" ")
	if r := vm.UpIn("a"); r.State.Recovery != "enrolled" {
		t.Errorf("recovery is %q, want enrolled", r.State.Recovery)
	}
	if log := vm.Run("kmsg") + vm.Run("cat /run/sealroot/boot.json"); strings.Contains(log, key) {
		t.Error("the kernel log or the boot report holds the recovery key")
	}
	vm.PowerOff()
	if output, err := opens(t, disk.EncryptedImage(t), key); err != nil {
		t.Errorf("cryptsetup refuses the key that was shown: %s", output)
	}
}

// shownKey is the recovery key that a console shows.
func shownKey(console string) string {
	return regexp.MustCompile(`[a-z]{8}(-[a-z]{8}){7}`).FindString(withoutKernel(console))
}

// codeLines are those of the QR code that a console shows; colours are not kept.
func codeLines(console string) []string {
	return regexp.MustCompile(`[█▀][█▀▄ ]{40}`).FindAllString(withoutKernel(console), -1)
}

// readCode has zbarimg read the QR code that a console shows.
func readCode(t *testing.T, console string) string {
	t.Helper()
	const scale = 8
	img := image.NewGray(image.Rect(0, 0, 60*scale, 60*scale))
	lines := codeLines(console)
	for n, line := range lines {
		y := 2 + 2*n
		for x, r := range []rune(line) {
			for i, drawn := range [...]bool{r == '█' || r == '▀', r == '█' || r == '▄'} {
				if drawn {
					at := image.Rect((x+2)*scale, (y+i)*scale, (x+3)*scale, (y+i+1)*scale)
					draw.Draw(img, at, image.White, image.Point{}, draw.Src)
				}
			}
		}
	}
	path := filepath.Join(t.TempDir(), "code.png")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(png.Encode(f, img), f.Close()); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("zbarimg", "--quiet", "--raw", "-Sdisable", "-Sqrcode.enable", path).Output()
	if err != nil {
		t.Errorf("zbarimg reads no code in %d lines: %v", len(lines), err)
	}
	return strings.TrimSpace(string(out))
}

// With recovery: escrow nobody sees the key at the machine; the holder of the
// private key (here that of images) gets it out of what lies on the state partition.
func TestStateRecoveryKeyIsEscrowed(t *testing.T) {
	t.Parallel()
	disk := Image{Edit: []string{"recovery: later", "recovery: escrow\n  escrow: [image.crt]"}}.Build(t)
	vm := directMachine(t, disk).WithTPM().Boot()
	if r := vm.UpIn("a"); r.State.Recovery != "escrowed" {
		t.Errorf("recovery is %q, want escrowed", r.State.Recovery)
	}
	text := filepath.Join(t.TempDir(), "escrow.pem")
	writeFile(t, text, []byte(vm.Run("sealroot state escrow")), 0o600)
	if kept := vm.Run("ls /state/encrypted/.sealroot"); strings.Contains(kept, "recovery") {
		t.Errorf("the volume keeps %s", kept)
	}
	vm.PowerOff()
	keys := keyFolder(t, "")
	key, err := exec.Command("openssl", "cms", "-decrypt", "-inform", "PEM", "-in", text,
		"-recip", filepath.Join(keys, "image.crt"), "-inkey", filepath.Join(keys, "image.key")).Output()
	if err != nil {
		t.Fatalf("openssl does not decrypt the escrow: %v", err)
	}
	volume := disk.EncryptedImage(t)
	if output, err := opens(t, volume, string(key)); err != nil {
		t.Errorf("cryptsetup refuses the escrowed key: %s", output)
	}
	if _, err := opens(t, volume, strings.ToUpper(string(key))); err == nil {
		t.Error("control: cryptsetup takes another key too")
	}
}

// opens has cryptsetup try a passphrase.
func opens(t *testing.T, volume, passphrase string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(passphrase), 0o600); err != nil {
		t.Fatal(err)
	}
	return runTool("cryptsetup", "open", "--test-passphrase", "--key-file", file, volume)
}

// recoveryKey reads the key that `recovery: later` keeps inside of the volume.
func (vm *VM) recoveryKey() string {
	vm.t.Helper()
	key := strings.TrimSpace(vm.Run("cat /state/encrypted/.sealroot/recovery.key"))
	if len(key) != 71 {
		vm.t.Fatalf("the recovery key has %d characters, want 71", len(key))
	}
	return key
}

// Power cuts while the volume is made: the next boot makes it, or finds it whole.
func TestStateKillDuringFirstBoot(t *testing.T) {
	t.Parallel()
	m := directMachine(t, Image{}.Build(t)).WithTPM()
	seed := 1
	if soaking() {
		seed = number(t, "SEALROOT_SOAK_SEED", int(time.Now().UnixNano()%1e6)+1)
	}
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	for i := range 3 {
		vm := m.Boot()
		if vm.Expect(`sealroot: state: (first boot, creating|unlocked by)`, probeTime)[1] == "unlocked by" {
			vm.Kill()
			break // the last cut came when the volume was whole
		}
		// Whole creation takes some seconds here.
		delay := time.Duration(random.IntN(2500)) * time.Millisecond
		time.Sleep(delay)
		vm.Kill()
		t.Logf("cut %d after %s", i+1, delay)
		if strings.Contains(vm.guest.Console(), "probe: up") {
			break // it was whole already
		}
	}
	vm := m.Boot()
	r := vm.UpIn("a")
	if r.State.Unlocked != "created" && r.State.Unlocked != "tpm2" {
		t.Errorf("after the cuts the state is %+v, want created or unlocked by tpm2", r.State)
	}
	vm.Run("write /var/lib/mine here")
	vm.PowerOff()
	vm = m.Boot()
	if r := vm.UpIn("a"); r.State.Unlocked != "tpm2" {
		t.Errorf("the boot after: state %+v, want unlocked by tpm2", r.State)
	}
	if got := vm.Run("cat /var/lib/mine"); got != "here" {
		t.Errorf("the boot after reads %q", got)
	}
	vm.PowerOff()
}

// A missing volume on a machine that had one is never made anew.
func TestStateMissingVolumeIsNotMadeAnew(t *testing.T) {
	t.Parallel()
	disk := Image{}.Build(t)
	m := directMachine(t, disk).WithTPM()
	vm := m.Boot()
	vm.UpIn("a")
	vm.PowerOff()
	before := disk.Slot(t, "a")
	disk.editState(t, func(state string) { debugfs(t, state, "rm /encrypted.img") })

	vm = m.Boot()
	if r := vm.UpIn("a"); r.State.Unlocked != "degraded" || !strings.Contains(failuresText(r), "state") {
		t.Errorf("state %+v, failures %q, want degraded and why", r.State, failuresText(r))
	}
	vm.PowerOff()
	if names := tool(t, "debugfs", "-R", "ls -p /", disk.Extract(t, "state")); strings.Contains(names, "encrypted.img") {
		t.Errorf("the volume was made anew: %s", names)
	}
	if got := disk.Slot(t, "a"); got != before {
		t.Errorf("slot a is %+v, was %+v", got, before)
	}
}
