package qemutests

import (
	"bytes"
	"crypto/aes"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/crypto/pbkdf2"
	"golang.org/x/crypto/xts"

	"sealroot/state/tpm"
	"sealroot/state/tpm/tpmtest"
)

// After the hand-over the machine's memory holds no trace of what opens the state:
// not the sealed secret nor its passphrase, not the recovery key that was shown or
// typed, nothing of the keyslot; and the volume key only where dm-crypt works with
// it. The control, an init that wipes nothing, shows that the search finds them.
func TestStateMemoryAfterHandOver(t *testing.T) {
	t.Parallel()
	show := []string{"recovery: later", "recovery: show"}
	disk := Image{Edit: show}.Build(t)
	m := directMachine(t, disk).WithTPM()
	m.Config.MemoryMiB = memoryMiB
	var wanted secrets
	recovery := ""
	look(t, "created", func() traces {
		if recovery != "" { // another volume
			disk = Image{Edit: show}.Build(t)
			m.WithTPM().Config.Disk = disk.Path
		}
		vm := m.Boot()
		vm.Expect(`press any key`, probeTime)
		recovery = shownKey(vm.guest.Console())
		lines := codeLines(vm.guest.Console())
		if len(lines) < 12 {
			t.Fatalf("%d lines of a QR code on the console", len(lines))
		}
		vm.Send(" ")
		vm.UpIn("a")
		created := vm.memory()
		vm.PowerOff()
		wanted = disk.secrets(t, m.Config.TPM)
		wanted.hidden["recovery key"] = []byte(recovery)
		wanted.hidden["line of its QR code"] = []byte(lines[11])
		return wanted.find(t, created)
	})

	look(t, "unlocked by the TPM", func() traces {
		vm := m.Boot()
		vm.UpIn("a")
		defer vm.PowerOff()
		return wanted.find(t, vm.memory())
	})

	ours := m.Config.TPM
	m.WithTPM()
	look(t, "unlocked by the recovery key", func() traces {
		vm := m.Boot()
		vm.Expect(`type the recovery key`, probeTime)
		vm.Send(recovery + "\r")
		vm.Expect(`Type yes`, commandTime)
		vm.Send("no\r")
		vm.UpIn("a")
		defer vm.PowerOff()
		return wanted.find(t, vm.memory())
	})

	m.Config.TPM, m.Config.Initrd = ours, initramfsOf(t, unwipedInit(t), show)
	unwiped := traces{hidden: map[string]int{}}
	// What was freed is there until somebody needs the page: a boot may use one of them again.
	for range 5 {
		vm := m.Boot()
		vm.UpIn("a")
		got := wanted.find(t, vm.memory())
		vm.PowerOff()
		for what, n := range got.hidden {
			unwiped.hidden[what] = max(unwiped.hidden[what], n)
		}
		unwiped.keys = max(unwiped.keys, got.keys)
		if unwiped.complete() {
			return
		}
	}
	t.Errorf("control: an init that wipes nothing leaves %v and %d volume keys", unwiped.hidden, unwiped.keys)
}

// complete says whether there is some of each kind that a boot unlocked by the TPM has.
func (got traces) complete() bool {
	return got.hidden["sealed secret"]+got.hidden["passphrase"] > 0 && got.hidden["keyslot's key"] > 0 && got.keys > dmCryptKeys
}

// memoryMiB is small: all of it is looked through.
const memoryMiB = 512

// dmCryptKeys is how often each half of the volume key lies in memory: the key
// schedule of AES-256 begins with its key, and XTS has one for either half. dm-crypt
// wipes its own copy of a key out of the keyring.
const dmCryptKeys = 1

// memory writes the guest's memory to a file.
func (vm *VM) memory() string {
	vm.t.Helper()
	path := filepath.Join(vm.t.TempDir(), "memory")
	if err := vm.guest.Monitor("pmemsave", map[string]any{"val": 0, "size": memoryMiB << 20, "filename": path}); err != nil {
		vm.t.Fatal(err)
	}
	return path
}

// secrets are what opens the volume.
type secrets struct {
	hidden map[string][]byte
	key    []byte // the volume key
}

// secrets gets them as nobody else can: with the machine's TPM before its PCRs
// are closed.
func (d *Disk) secrets(t *testing.T, state string) secrets {
	t.Helper()
	volume, header := d.EncryptedImage(t), d.header(t)
	chip := tpmtest.StartAt(t, copyTPM(t, state))
	defer chip.PowerOff()
	secret, err := tpm.New(chip).Unseal(t.Context(), tpmToken(t, header.Tokens()), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	pass := tpm.Passphrase(secret)
	key, err := header.Unlock(0, pass)
	if err != nil {
		t.Fatal(err)
	}
	var dump struct {
		Keyslots map[string]struct {
			KDF struct {
				Salt       string
				Iterations int
			}
			Area struct{ Offset string }
		}
	}
	if err := json.Unmarshal([]byte(tool(t, "cryptsetup", "luksDump", "--dump-json-metadata", volume)), &dump); err != nil {
		t.Fatal(err)
	}
	slot := dump.Keyslots["0"]
	salt, err := base64.StdEncoding.DecodeString(slot.KDF.Salt)
	if err != nil {
		t.Fatal(err)
	}
	at, err := strconv.ParseInt(slot.Area.Offset, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	areaKey := pbkdf2.Key(pass, salt, slot.KDF.Iterations, 64, sha512.New)
	cipher, err := xts.NewCipher(aes.NewCipher, areaKey)
	if err != nil {
		t.Fatal(err)
	}
	stripes := bytes.Clone(readFile(t, volume)[at : at+512])
	cipher.Decrypt(stripes, stripes, 0)
	return secrets{map[string][]byte{
		"sealed secret": secret, "passphrase": pass, "keyslot's key": areaKey[:32], "keyslot's stripes": stripes[:64],
		"passphrase in a pad": pad(pass), "volume key in a pad": pad(key),
	}, key}
}

// pad is how HMAC keeps its key.
func pad(key []byte) []byte {
	out := bytes.Clone(key)
	for i := range out {
		out[i] ^= 0x36
	}
	return out
}

// traces are what a memory holds of secrets.
type traces struct {
	hidden map[string]int // how often, by what it is
	// keys is how often it holds the half of the volume key that there is more of.
	keys  int
	where []string // what lies beside each
}

// look holds the memory of a boot to what may be there. Where an interrupt comes while a CPU
// has the volume key in its registers, the kernel may save these: with more of the key than
// there should be, the same boot is done again, and a leak is there each time. Of all else,
// which dm-crypt never has, once is enough.
func look(t *testing.T, name string, boot func() traces) {
	t.Helper()
	got := boot()
	all := []traces{got}
	for len(all) < 4 && got.keys > dmCryptKeys {
		again := boot()
		all = append(all, again)
		got.keys = min(got.keys, again.keys)
	}
	for _, one := range all {
		for what, n := range one.hidden {
			if n > 0 {
				t.Errorf("%s: %d times the %s", name, n, what)
			}
		}
	}
	if got.keys != dmCryptKeys {
		t.Errorf("%s: %d times a half of the volume key, want %d", name, got.keys, dmCryptKeys)
	}
	for _, one := range all {
		if len(all) > 1 || t.Failed() {
			t.Logf("%s, %d times a half of the volume key:\n%s", name, one.keys, strings.Join(one.where, "\n"))
		}
	}
}

// find counts what is hidden in a memory, and either half of the volume key, and removes it.
func (s secrets) find(t *testing.T, memory string) (got traces) {
	t.Helper()
	f, err := os.Open(memory)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { f.Close(); os.Remove(memory) }()
	const step, most = 16 << 20, 128
	got.hidden = map[string]int{}
	var halves [2]int
	buf := make([]byte, step+most)
	for at := int64(0); ; at += step {
		n, err := f.ReadAt(buf, at)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		count := func(what string, needle []byte, n *int) {
			for from := 0; ; from++ {
				i := bytes.Index(buf[from:], needle)
				if from += i; i < 0 || from >= step {
					return
				}
				*n++
				got.where = append(got.where, fmt.Sprintf("%s at %#x: %q", what, at+int64(from), around(buf, from, len(needle))))
			}
		}
		clear(buf[n:])
		for what, needle := range s.hidden {
			n := got.hidden[what]
			count(what, needle, &n)
			got.hidden[what] = n
		}
		for i := range halves {
			count(fmt.Sprint("half ", i, " of the volume key"), s.key[32*i:][:32], &halves[i])
		}
		if err != nil {
			got.keys = max(halves[0], halves[1])
			return got
		}
	}
}

// around is what lies beside a secret: whose memory is it?
func around(buf []byte, at, n int) []byte {
	return bytes.Join([][]byte{buf[max(0, at-48):at], []byte("…"), buf[at+n : min(len(buf), at+n+48)]}, nil)
}

// unwipedInit is an init whose packages have a clear of their own, which does nothing,
// and whose collector leaves what it frees.
func unwipedInit(t *testing.T) string {
	t.Helper()
	replaced := map[string]string{}
	for _, pkg := range []string{"init/boot", "init/console", "state", "state/enrol", "state/tpm"} {
		replaced[pkg+"/unwiped.go"] = "package " + filepath.Base(pkg) + "\n\nfunc clear[T any](T) {}\n"
	}
	return goBuildReplaced(t, "../init", replaced)
}

// initramfsOf makes the test image's initramfs with another init.
func initramfsOf(t *testing.T, init string, edit []string) string {
	t.Helper()
	k, out := kernel(t, "6.1"), filepath.Join(t.TempDir(), "initrd")
	tool(t, filepath.Join(buildDir, "sealroot-mkinitramfs"), "-o", out, "--kernel-version", k.Release, "--init", init,
		"--modules-dir", k.Dir, "--config", Image{Edit: edit}.whole().config(t), "--keys", keysDir(t))
	return out
}
