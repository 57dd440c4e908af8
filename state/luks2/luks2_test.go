package luks2

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	luks "github.com/anatol/luks.go"
)

// TestOpensWhatCryptsetupFormats: the key must be the one that luks.go finds.
func TestOpensWhatCryptsetupFormats(t *testing.T) {
	tests := []struct {
		name   string
		args   []string
		kdf    KDF
		sector int
		key    int
	}{
		{"argon2id", []string{"--pbkdf", "argon2id", "--pbkdf-memory", "32768", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "2"},
			KDF{Type: "argon2id", Time: 4, MemoryKiB: 32768, CPUs: 2}, 4096, 64},
		{"argon2i", []string{"--pbkdf", "argon2i", "--pbkdf-memory", "4096", "--pbkdf-force-iterations", "5", "--pbkdf-parallel", "1"},
			KDF{Type: "argon2i", Time: 5, MemoryKiB: 4096, CPUs: 1}, 4096, 64},
		{"pbkdf2_sha512", []string{"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--hash", "sha512"},
			KDF{Type: "pbkdf2", Hash: "sha512", Iterations: 1000}, 4096, 64},
		{"argon2i_aes_128_sector_512", []string{"--pbkdf", "argon2i", "--pbkdf-memory", "1024", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1", "--key-size", "256", "--sector-size", "512"},
			KDF{Type: "argon2i", Time: 4, MemoryKiB: 1024, CPUs: 1}, 512, 32},
		{"sector_512", []string{"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--sector-size", "512"},
			KDF{Type: "pbkdf2", Hash: "sha256", Iterations: 1000}, 512, 64},
		{"aes_128", []string{"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-size", "256"},
			KDF{Type: "pbkdf2", Hash: "sha256", Iterations: 1000}, 4096, 32},
		{"large_header", []string{"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--luks2-metadata-size", "64k"},
			KDF{Type: "pbkdf2", Hash: "sha256", Iterations: 1000}, 4096, 64},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(path, make([]byte, testSize), 0o600); err != nil {
				t.Fatal(err)
			}
			args := append([]string{"luksFormat", "-q", "--type", "luks2", "--sector-size", "4096", "--key-file", "-", path}, tt.args...)
			if out, code := cryptsetup(t, "secret", args...); code != 0 {
				t.Fatalf("cryptsetup luksFormat: %s", out)
			}
			f := must[*os.File](t)(os.Open(path))
			defer f.Close()
			h := must[*Header](t)(Read(f, testSize))
			key := must[[]byte](t)(h.Unlock(0, []byte("secret")))
			if got := h.Keyslots(); len(got) != 1 || got[0].KDF != tt.kdf {
				t.Errorf("got keyslots %+v, want one of %+v", got, tt.kdf)
			}
			checkKey(t, path, h, key)
			if want := dumpedKey(t, path, "secret"); !bytes.Equal(key, want) {
				t.Error("cryptsetup shows another volume key")
			}
			target := must[CryptTarget](t)(h.CryptTarget(testSize))
			want := CryptTarget{UUID: h.UUID(), Encryption: "aes-xts-plain64", KeySize: tt.key, SectorSize: tt.sector,
				OffsetBytes: 16 << 20, LengthBytes: 16 << 20}
			if target != want {
				t.Errorf("got target %+v, want %+v", target, want)
			}
			if key, err := h.Unlock(0, []byte("Secret")); !errors.Is(err, ErrPassphrase) || key != nil {
				t.Errorf("wrong passphrase: got %v, want ErrPassphrase", err)
			}
			if key, err := h.Unlock(1, []byte("secret")); !errors.Is(err, ErrNoSuchKeyslot) || key != nil {
				t.Errorf("missing keyslot: got %v, want ErrNoSuchKeyslot", err)
			}
		})
	}
}

// checkKey compares a volume key with the one luks.go derives but does not
// show: by its HMAC, which also is how systemd identifies it.
func checkKey(t *testing.T, path string, h *Header, key []byte) {
	t.Helper()
	d := must[luks.Device](t)(luks.Open(path))
	defer d.Close()
	v := must[*luks.Volume](t)(d.UnsealVolume(0, []byte("secret")))
	want := must[[]byte](t)(v.HMAC(crypto.SHA256, fmt.Appendf(nil, "cryptsetup:state:%s", h.UUID())))
	if got := VolumeKeyID(key, "state", h.UUID()); !bytes.Equal(got, want) {
		t.Errorf("volume key differs from luks.go's: id %x, want %x", got, want)
	}
}

// TestCryptsetupOpensWhatWeWrite: header, keyslots of each kind, tokens.
func TestCryptsetupOpensWhatWeWrite(t *testing.T) {
	d, h := written(t)
	rand := &testRand{state: 3}
	recovery := must[[]byte](t)(GenerateRecoveryKey(rand))
	n := must[*Header](t)(h.AddKeyslot(1, testKey(), recovery, RandomSecretKDF(), rand))
	n = must[*Header](t)(n.AddKeyslot(7, testKey(), []byte("human"), KDF{Type: KDFArgon2id, Time: 4, MemoryKiB: 32 << 10, CPUs: 2}, rand))
	n = must[*Header](t)(n.AddToken(0, []byte(`{ "type":"systemd-tpm2", "keyslots":["0"], "tpm2-pcrs":[7], "odd":"a<b&c" }`)))
	n = must[*Header](t)(n.AddToken(1, RecoveryToken(1)))
	must[*Header](t)(Update(d, h, n, rand))

	path := d.file(t)
	for passphrase, want := range map[string]bool{"secret": true, string(recovery): true, "human": true, "wrong": false} {
		if got := opens(t, path, passphrase); got != want {
			t.Errorf("cryptsetup opens with %q: got %v, want %v", passphrase, got, want)
		}
	}
	dump, code := cryptsetup(t, "", "luksDump", path)
	for _, want := range []string{
		testUUID, "sealroot-state", "systemd-tpm2", "systemd-recovery", "aes-xts-plain64", "sector: 4096", "argon2id",
		"Epoch:         \t2\n",
	} {
		if !strings.Contains(dump, want) {
			t.Errorf("luksDump (exit status %d) does not show %q:\n%s", code, want, dump)
		}
	}
	if out, code := cryptsetup(t, "secret", "luksAddKey", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
		"--key-file", "-", path, writeFile(t, "fourth")); code != 0 {
		t.Fatalf("cryptsetup luksAddKey: %s", out)
	}
	f := must[*os.File](t)(os.Open(path))
	defer f.Close()
	after := must[*Header](t)(Read(f, testSize))
	if key := must[[]byte](t)(after.Unlock(2, []byte("fourth"))); !bytes.Equal(key, testKey()) {
		t.Error("keyslot added by cryptsetup holds another key")
	}
	if got := after.Tokens(); len(got) != 2 || got[1].Type != RecoveryTokenType || !slices.Equal(got[1].Keyslots, []int{1}) {
		t.Errorf("got tokens %+v", got)
	}
	checkKey(t, path, after, testKey())
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestJudgeSeesDamage is the red control of the two tests above.
func TestJudgeSeesDamage(t *testing.T) {
	d, _ := written(t)
	d.b[2*minHeaderBytes+1000] ^= 1 // one bit of keyslot 0's material
	if opens(t, d.file(t), "secret") {
		t.Error("cryptsetup opens a damaged keyslot")
	}
	h := must[*Header](t)(Read(d, testSize))
	if _, err := h.Unlock(0, []byte("secret")); !errors.Is(err, ErrPassphrase) {
		t.Errorf("damaged keyslot: got %v, want ErrPassphrase", err)
	}
}

func TestEditing(t *testing.T) {
	d, h := written(t)
	rand := &testRand{state: 4}
	if _, err := h.AddKeyslot(1, make([]byte, 64), []byte("x"), RandomSecretKDF(), rand); !errors.Is(err, ErrVolumeKey) {
		t.Errorf("other volume key: got %v, want ErrVolumeKey", err)
	}
	if _, err := h.AddKeyslot(0, testKey(), []byte("x"), RandomSecretKDF(), rand); !errors.Is(err, ErrFull) {
		t.Errorf("keyslot in use: got %v, want ErrFull", err)
	}
	if _, err := h.AddKeyslot(1, testKey(), []byte("x"), KDF{Type: KDFPBKDF2, Hash: "sha256", Iterations: 999}, rand); !errors.Is(err, ErrKDFCost) {
		t.Errorf("too cheap: got %v, want ErrKDFCost", err)
	}
	if _, err := h.AddToken(0, RecoveryToken(5)); !errors.Is(err, ErrHeader) {
		t.Errorf("token of a missing keyslot: got %v, want ErrHeader", err)
	}
	if _, err := h.AddToken(0, fmt.Appendf(nil, `{"type":"x","keyslots":[],"big":%q}`, strings.Repeat("x", 12<<10))); !errors.Is(err, ErrFull) {
		t.Errorf("token too large: got %v, want ErrFull", err)
	}
	if _, err := h.AddToken(0, []byte(`{"type":"x","type":"y","keyslots":[]}`)); !errors.Is(err, ErrHeader) {
		t.Errorf("duplicate key in token: got %v, want ErrHeader", err)
	}
	withToken := must[*Header](t)(h.AddToken(0, RecoveryToken(0)))
	if _, err := withToken.RemoveKeyslot(0); !errors.Is(err, ErrHeader) {
		t.Errorf("keyslot that a token names: got %v, want ErrHeader", err)
	}
	if len(h.Tokens()) != 0 {
		t.Error("AddToken changed the header it was called on")
	}

	// Replace keyslot 0 in one update: the new one must not use its area.
	n := must[*Header](t)(h.RemoveKeyslot(0))
	n = must[*Header](t)(n.AddKeyslot(0, testKey(), []byte("second"), RandomSecretKDF(), rand))
	n = must[*Header](t)(Update(d, h, n, rand))
	back := must[*Header](t)(Read(d, testSize))
	if _, err := back.Unlock(0, []byte("second")); err != nil {
		t.Error(err)
	}
	if bytes.Contains(d.b, h.material[0][:512]) {
		t.Error("material of the removed keyslot is still on the disk")
	}
	// The freed area is used again.
	n2 := must[*Header](t)(n.AddKeyslot(1, testKey(), []byte("third"), RandomSecretKDF(), rand))
	if got := n2.meta.keyslots[1].area.offset; got != 2*minHeaderBytes {
		t.Errorf("new keyslot at %d, want %d", got, 2*minHeaderBytes)
	}
	if _, err := Update(d, h, n2, rand); err == nil {
		t.Error("Update from a header that is not on the disk any more succeeded")
	}
}

func TestAllKeyslotsFit(t *testing.T) {
	_, h := written(t)
	rand := &testRand{state: 5}
	for id := 1; id < MaxKeyslots; id++ {
		if free := must[int](t)(h.FreeKeyslot()); free != id {
			t.Fatalf("got free keyslot %d, want %d", free, id)
		}
		h = must[*Header](t)(h.AddKeyslot(id, testKey(), []byte("x"), RandomSecretKDF(), rand))
	}
	if _, err := h.FreeKeyslot(); !errors.Is(err, ErrFull) {
		t.Errorf("got %v, want ErrFull", err)
	}
}

func TestCryptTargetBounds(t *testing.T) {
	_, h := written(t)
	for _, size := range []int64{-1, 0, 16 << 20, 16<<20 + 4095} {
		if target, err := h.CryptTarget(size); !errors.Is(err, ErrHeader) || target != (CryptTarget{}) {
			t.Errorf("device of %d bytes: got %+v, %v, want ErrHeader", size, target, err)
		}
	}
	if got := must[CryptTarget](t)(h.CryptTarget(16<<20 + 8191)).LengthBytes; got != 4096 {
		t.Errorf("got length %d, want whole sectors only", got)
	}
}

func TestRecoveryKey(t *testing.T) {
	key := must[[]byte](t)(GenerateRecoveryKey(&testRand{state: 6}))
	if len(key) != 71 || bytes.Count(key, []byte("-")) != 7 {
		t.Fatalf("got %d bytes, want 8 groups of 8", len(key))
	}
	// The example that systemd-cryptenroll 252 printed, in reference/state.md.
	const seen = "bhniktnl-becjtikj-khjecvfh-jtghielh-fjihnnug-evijrkun-vclfitng-hchghtke"
	same := []string{
		seen, strings.ToUpper(seen), strings.ReplaceAll(seen, "-", ""), strings.ReplaceAll(seen, "-", " "),
		" " + seen + "\r\n", strings.Replace(seen, "-b", "--b", 1),
	}
	for _, typed := range same {
		if got, err := NormalizeRecoveryKey([]byte(typed)); err != nil || string(got) != seen {
			t.Errorf("%q: got %q, %v", typed, got, err)
		}
	}
	for _, typed := range []string{"", "-", seen[:70], seen + "c", strings.Replace(seen, "b", "a", 1), strings.Repeat("ü", 64)} {
		if got, err := NormalizeRecoveryKey([]byte(typed)); !errors.Is(err, ErrRecoveryKey) || got != nil {
			t.Errorf("%q: got %q, %v, want ErrRecoveryKey", typed, got, err)
		}
	}
	if _, err := GenerateRecoveryKey(strings.NewReader("short")); err == nil {
		t.Error("key made of too few random bytes")
	}
	zero := must[[]byte](t)(GenerateRecoveryKey(bytes.NewReader(append([]byte{0x01, 0xef}, make([]byte, 30)...))))
	if !bytes.HasPrefix(zero, []byte("cbuvcccc-")) {
		t.Errorf("got %q, want the high nibble first", zero)
	}
}
