package boot

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"crypto/x509"

	"sealroot/init/config"
	"sealroot/state"
	"sealroot/state/escrow"
	"sealroot/state/luks2"
	"sealroot/verity/signature"
	"sealroot/verity/signature/signaturetest"
)

// The recovery key of a new volume is enrolled, and what lies on the unencrypted
// side is it, for the holder of the private key; no copy of it stays in the open.
func TestStateRecoveryKeyIsEscrowed(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	holder := signaturetest.Of(t, key, 7, time.Now().Add(time.Hour))
	dir := t.TempDir()
	crt, private := filepath.Join(dir, "escrow.crt"), filepath.Join(t.TempDir(), "escrow.key")
	for path, text := range map[string][]byte{
		crt:     holder.PEM(),
		private: pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}),
	} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, _ := testBoot(&person{}, config.State{Recovery: config.RecoveryEscrow})
	b.volume.outer = openTestDir(t)
	recovery, err := luks2.GenerateRecoveryKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// What a power cut left of a volume without a name is replaced.
	if err := state.WriteEscrow(b.volume.outer, []byte("left over")); err != nil {
		t.Fatal(err)
	}
	if err := b.escrowKey(t.Context(), recovery, dir); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("openssl", "cms", "-decrypt", "-inform", "DER", "-recip", crt, "-inkey", private,
		"-in", filepath.Join(b.volume.outer.Name(), state.EscrowName)).Output()
	if err != nil || !bytes.Equal(out, recovery) {
		t.Errorf("openssl decrypts %q, %v; want %q", out, err, recovery)
	}
	for _, tt := range []struct {
		there bool
		want  string
	}{{true, "escrowed"}, {false, "enrolled"}} {
		if !tt.there {
			if err := os.Remove(filepath.Join(b.volume.outer.Name(), state.EscrowName)); err != nil {
				t.Fatal(err)
			}
		}
		b.report.State.Recovery = "enrolled"
		b.escrowState()
		if got := b.report.State.Recovery; got != tt.want || tt.there != (len(b.report.Warnings) == 0) {
			t.Errorf("with the file: %t: %q and warnings %q, want %q", tt.there, got, b.report.Warnings, tt.want)
		}
	}
}

// What cannot be encrypted to ends the creation with a word about the key.
func TestEscrowRefusesCertificates(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		text []byte // nil: no file at all
		want error
	}{
		{"none", nil, signature.ErrCertificate},
		{"ecdsa", signaturetest.Of(t, ec, 7, time.Now()).PEM(), escrow.ErrKey},
		{"not_a_certificate", []byte("words"), signature.ErrCertificate},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if tt.text != nil {
				if err := os.WriteFile(filepath.Join(dir, "escrow.crt"), tt.text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			b, _ := testBoot(&person{}, config.State{Recovery: config.RecoveryEscrow})
			b.volume.outer = openTestDir(t)
			if err := b.escrowKey(t.Context(), []byte("key"), dir); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if state.HasEscrow(b.volume.outer) {
				t.Error("something was written")
			}
		})
	}
}

func openTestDir(t *testing.T) *os.File {
	t.Helper()
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return dir
}
