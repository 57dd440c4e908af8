package uki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"debug/pe"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"sealroot/mkinitramfs/keys"
	"sealroot/mkinitramfs/keys/keystest"
	"sealroot/mkinitramfs/tools"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/predict"
	"sealroot/state/tpm/tpmtest"
)

func testImage(t *testing.T) Image {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return Image{
		OSRelease: []byte("ID=test\n"), Cmdline: Cmdline(" console=ttyS0  quiet "),
		Kernel: bytes.Repeat([]byte("kernel"), 50001), Initrd: bytes.Repeat([]byte("initrd"), 30001),
		PCRPublicKey: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), PCRKey: key,
	}
}

func TestCmdline(t *testing.T) {
	got, want := testImage(t).Cmdline, "ro gpt panic=10 console=ttyS0 quiet"
	if got != want {
		t.Errorf("Cmdline = %q, want %q", got, want)
	}
}

func TestSectionsDoNotOverlap(t *testing.T) {
	out := filepath.Join(t.TempDir(), "x.efi")
	im := testImage(t)
	if err := Build(t.Context(), tools.New(), im, nil, out, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	f, err := pe.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	end := uint32(0)
	for _, s := range f.Sections {
		if s.VirtualAddress < end {
			t.Errorf("section %s at %#x begins before %#x", s.Name, s.VirtualAddress, end)
		}
		end = s.VirtualAddress + s.VirtualSize
	}
	got, err := f.Section(".initrd").Data()
	if err != nil || !bytes.Equal(got[:len(im.Initrd)], im.Initrd) {
		t.Errorf(".initrd does not hold the initramfs (%v)", err)
	}
}

func TestEqualImagesFromEqualInputs(t *testing.T) {
	dir := t.TempDir()
	im := testImage(t)
	build := func(name string, when time.Time) []byte {
		im.Time = when
		path := filepath.Join(dir, name)
		if err := Build(t.Context(), tools.New(), im, nil, path, t.TempDir()); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	first := build("1", time.Unix(1000, 0))
	time.Sleep(1100 * time.Millisecond) // objcopy writes the present second
	if second := build("2", time.Unix(1000, 0)); !bytes.Equal(first, second) {
		t.Error("two images from the same inputs differ")
	}
	if third := build("3", time.Unix(2000, 0)); bytes.Equal(first, third) {
		t.Error("the time given does not stand in the image")
	}
}

// TestPCR11AsSystemdComputesIt compares the value that was signed with what
// systemd-measure says the stub will measure.
func TestPCR11AsSystemdComputesIt(t *testing.T) {
	im := testImage(t)
	list, err := im.sections()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	args := []string{"calculate", "--phase=enter-initrd"}
	for _, s := range list {
		if s.Name == ".pcrsig" {
			continue // not measured
		}
		file := filepath.Join(dir, s.Name)
		if err := os.WriteFile(file, s.Data, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--"+strings.TrimPrefix(s.Name, ".")+"="+file)
	}
	for _, bank := range pcrsig.Banks() {
		args = append(args, "--bank="+string(bank))
	}
	out, err := exec.Command("/usr/lib/systemd/systemd-measure", args...).Output()
	if err != nil {
		t.Fatalf("systemd-measure: %v", err)
	}
	// The same by the finished image, as who predicts the PCRs reads it.
	image := filepath.Join(dir, "x.efi")
	if err := Build(t.Context(), tools.New(), im, nil, image, dir); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	read, err := predict.ReadUKI(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, bank := range pcrsig.Banks() {
		again, err := pcrsig.PCR11(bank, read, pcrsig.PhaseEnterInitrd)
		if want := "11:" + string(bank) + "=" + hex.EncodeToString(again); err != nil || !strings.Contains(string(out), want) {
			t.Errorf("systemd-measure says\n%sthe finished image gives %s, %v", out, want, err)
		}
		pcr, err := pcrsig.PCR11(bank, list, pcrsig.PhaseEnterInitrd)
		if err != nil {
			t.Fatal(err)
		}
		if want := "11:" + string(bank) + "=" + hex.EncodeToString(pcr); !strings.Contains(string(out), want) {
			t.Errorf("systemd-measure says\n%swant %s", out, want)
		}
	}
}

// TestTwoKeysAsSystemdSigns: .pcrsig holds what systemd-measure signs with one key and
// with the other, entry by entry.
func TestTwoKeysAsSystemdSigns(t *testing.T) {
	im := testImage(t)
	previous, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	im.PCRPrevious = []crypto.Signer{previous}
	list, err := im.sections()
	if err != nil {
		t.Fatal(err)
	}
	dir, m := t.TempDir(), tpmtest.Start(t)
	args := []string{"-c", `/usr/lib/systemd/systemd-measure "$@" 2>/dev/null`, "sh", "sign", "--tpm2-device=" + m.TCTI(), "--phase=enter-initrd", "--bank=sha256"}
	type file map[string][]map[string]any
	var got, want file
	for _, s := range list {
		if s.Name == ".pcrsig" {
			if err := json.Unmarshal(s.Data, &got); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if s.Name == ".pcrpkey" && !bytes.Equal(s.Data, im.PCRPublicKey) {
			t.Error(".pcrpkey is not the present key")
		}
		path := filepath.Join(dir, s.Name)
		if err := os.WriteFile(path, s.Data, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--"+strings.TrimPrefix(s.Name, ".")+"="+path)
	}
	for i, key := range []crypto.Signer{im.PCRKey, previous} {
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		public, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		names := []string{filepath.Join(dir, "private"), filepath.Join(dir, "public")}
		for j, block := range []*pem.Block{{Type: "PRIVATE KEY", Bytes: private}, {Type: "PUBLIC KEY", Bytes: public}} {
			if err := os.WriteFile(names[j], pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out := m.MustRun(dir, "sh", append(args, "--private-key="+names[0], "--public-key="+names[1])...)
		var one file
		if err := json.Unmarshal([]byte(out), &one); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			want = one
			continue
		}
		for bank, entries := range one {
			want[bank] = append(want[bank], entries...)
		}
	}
	// Of the other banks version 252 makes signatures that no systemd accepts.
	if len(want["sha256"]) != 2 || !reflect.DeepEqual(got["sha256"], want["sha256"]) || len(got) != len(pcrsig.Banks()) {
		t.Errorf(".pcrsig holds\n%v\nsystemd-measure signs\n%v", got, want)
	}
}

func TestSecureBootSignature(t *testing.T) {
	dir := t.TempDir()
	keystest.Write(t, filepath.Join(dir, "k"))
	keystest.WriteOther(t, filepath.Join(dir, "other"))
	sb := &SecureBoot{Key: filepath.Join(dir, "k", keys.DBKey), Cert: filepath.Join(dir, "k", keys.DBCert)}
	out := filepath.Join(dir, "x.efi")
	if err := Build(t.Context(), tools.New(), testImage(t), sb, out, dir); err != nil {
		t.Fatal(err)
	}
	verify := func(cert string) error { return exec.Command("sbverify", "--cert", cert, out).Run() }
	if err := verify(sb.Cert); err != nil {
		t.Errorf("sbverify: %v", err)
	}
	if verify(filepath.Join(dir, "other", keys.DBCert)) == nil {
		t.Error("sbverify accepts another certificate")
	}
}

func TestStubThatIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stub")
	if err := os.WriteFile(path, []byte("MZ nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := firstFree(path); !errors.Is(err, ErrStub) {
		t.Errorf("firstFree = %v, want ErrStub", err)
	}
	r := tools.Runner{Root: t.TempDir()}
	if err := Build(t.Context(), r, Image{}, nil, path, t.TempDir()); !errors.Is(err, tools.ErrMissing) {
		t.Errorf("Build without stub = %v, want ErrMissing", err)
	}
}
