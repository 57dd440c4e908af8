package initramfs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sealroot/state/escrow"
	"sealroot/verity/signature"
	"sealroot/verity/signature/signaturetest"
)

// A certificate that PID 1 could not encrypt to never gets into an initramfs.
func TestEscrowCertificates(t *testing.T) {
	good, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		key  crypto.Signer
		want error
	}{{"rsa", good, nil}, {"rsa_1024", short, signature.ErrWeak}, {"ecdsa", curve, escrow.ErrKey}} {
		t.Run(tt.name, func(t *testing.T) {
			s := sources(t)
			s.Config.State.Recovery, s.Config.State.Escrow = "escrow", []string{"escrow.crt"}
			text := signaturetest.Of(t, tt.key, 7, time.Now().Add(time.Hour)).PEM()
			if err := os.WriteFile(filepath.Join(s.ConfigDir, "escrow.crt"), text, 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := Gather(t.Context(), s); !errors.Is(err, tt.want) {
				t.Fatalf("Gather() = %v, want %v", err, tt.want)
			}
			if tt.want != nil {
				return
			}
			got, err := os.ReadFile(filepath.Join(unpack(t, build(t, s, None)), "etc/sealroot/escrow/escrow.crt"))
			if err != nil || !bytes.Equal(got, text) {
				t.Errorf("the initramfs holds %q, %v", got, err)
			}
		})
	}
	s := sources(t)
	s.Config.State.Recovery, s.Config.State.Escrow = "escrow", []string{"escrow.crt"}
	if _, err := Gather(t.Context(), s); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without the file: got %v, want %v", err, os.ErrNotExist)
	}
}
