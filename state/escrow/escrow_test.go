package escrow_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	tag "golang.org/x/crypto/cryptobyte/asn1"

	"sealroot/state/escrow"
)

const secret = "cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv"

// holder is somebody with a private key and its certificate, as files.
type holder struct {
	key, crt       string
	issuer, serial []byte
	recipient      escrow.Recipient
}

func newHolder(t testing.TB, name string) holder {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(0xfedc), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	h := holder{key: filepath.Join(dir, "key"), crt: filepath.Join(dir, "crt"), issuer: cert.RawIssuer, serial: []byte{0, 0xfe, 0xdc}}
	for file, block := range map[string]pem.Block{
		h.key: {Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)},
		h.crt: {Type: "CERTIFICATE", Bytes: der},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(&block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if h.recipient, err = escrow.NewRecipient(h.issuer, h.serial, key.Public()); err != nil {
		t.Fatal(err)
	}
	return h
}

// decrypt has openssl open a message.
func (h holder) decrypt(message []byte) ([]byte, error) {
	cmd := exec.Command("openssl", "cms", "-decrypt", "-inform", "DER", "-recip", h.crt, "-inkey", h.key)
	cmd.Stdin = bytes.NewReader(message)
	return cmd.Output()
}

// Each of the recipients reads the secret with openssl, byte for byte, and nobody
// else does.
func TestOpenSSLDecrypts(t *testing.T) {
	one, two, other := newHolder(t, "one"), newHolder(t, "two"), newHolder(t, "other")
	for _, text := range []string{secret, "", "sixteen bytes ok"} {
		message, err := escrow.Seal(rand.Reader, []byte(text), []escrow.Recipient{one.recipient, two.recipient})
		if err != nil {
			t.Fatal(err)
		}
		for name, h := range map[string]holder{"one": one, "two": two} {
			if got, err := h.decrypt(message); err != nil || string(got) != text {
				t.Errorf("%s decrypts %q, %v; want %q", name, got, err, text)
			}
		}
		if got, err := other.decrypt(message); err == nil && string(got) == text {
			t.Errorf("a holder of another key decrypts %q", got)
		}
		if text != "" && bytes.Contains(message, []byte(text)) {
			t.Error("the message holds the secret as it is")
		}
		m, err := escrow.Parse(message)
		if err != nil || m.Recipients() != 2 || !m.Names(one.issuer, one.serial) || !m.Names(two.issuer, two.serial) || m.Names(other.issuer, other.serial) {
			t.Errorf("Parse() = %+v, %v; want the two it is for", m, err)
		}
	}
}

// openssl's own message for one of several recipients has the outline that Parse reads.
func TestParseReadsOpenSSLs(t *testing.T) {
	h := newHolder(t, "one")
	out, err := exec.Command("openssl", "cms", "-encrypt", "-aes256", "-outform", "DER", "-in", h.crt, h.crt).Output()
	if err != nil {
		t.Fatal(err)
	}
	if m, err := escrow.Parse(out); err != nil || !m.Names(h.issuer, h.serial) {
		t.Errorf("Parse() = %+v, %v; want one for the certificate", m, err)
	}
}

func TestNewRecipientRefusesKeys(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	short := &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 2046, 1), E: 65537}
	for name, key := range map[string]crypto.PublicKey{"ecdsa": ec.Public(), "rsa_2047": short, "none": nil} {
		if _, err := escrow.NewRecipient(nil, nil, key); !errors.Is(err, escrow.ErrKey) {
			t.Errorf("%s: got %v, want %v", name, err, escrow.ErrKey)
		}
	}
	if _, err := escrow.Seal(rand.Reader, []byte(secret), nil); !errors.Is(err, escrow.ErrKey) {
		t.Errorf("for nobody: got %v, want %v", err, escrow.ErrKey)
	}
}

func FuzzParse(f *testing.F) {
	h := newHolder(f, "one")
	message, err := escrow.Seal(rand.Reader, []byte(secret), []escrow.Recipient{h.recipient})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(message)
	f.Add(message[:len(message)-1])
	var b cryptobyte.Builder
	b.AddASN1(tag.SEQUENCE, func(*cryptobyte.Builder) {})
	f.Add(b.BytesOrPanic())
	f.Fuzz(func(t *testing.T, der []byte) {
		m, err := escrow.Parse(der)
		if err != nil && (m.Recipients() != 0 || !errors.Is(err, escrow.ErrFormat)) {
			t.Errorf("Parse() = %+v, %v", m, err)
		}
		if err == nil && m.Recipients() == 0 {
			t.Error("a message for nobody")
		}
	})
}
