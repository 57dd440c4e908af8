// Package signaturetest makes keys with certificates, for tests of what is
// signed.
package signaturetest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"testing"
	"time"

	"sealroot/verity/signature"
)

// Signer is a key with its self-signed certificate.
type Signer struct {
	Cert   *x509.Certificate
	Parsed *signature.Certificate // nil when sealroot refuses the key
	Key    crypto.Signer
}

// New makes a signer with a new key on P-256 and a certificate that is valid.
func New(t testing.TB) Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return Of(t, key, 7, time.Now().Add(time.Hour))
}

// Of makes a certificate of a key that is valid until end.
func Of(t testing.TB, key crypto.Signer, serial int64, end time.Time) Signer {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		Subject:      pkix.Name{CommonName: "sealroot test image key"},
		NotBefore:    time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     end,
		SubjectKeyId: []byte{1, 2, 3, 4},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := signature.ParseCertificate(der)
	if err != nil && !errors.Is(err, signature.ErrWeak) && !errors.Is(err, signature.ErrCertificate) {
		t.Fatal(err)
	}
	return Signer{cert, parsed, key}
}

// PEM is the certificate as a file.
func (s Signer) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Cert.Raw})
}
