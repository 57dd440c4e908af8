package publickey_test

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"testing"

	"sealroot/publickey"
)

type equaler interface{ Equal(crypto.PublicKey) bool }

func TestParseAgreesWithX509(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]crypto.PublicKey{"rsa_2048": &small.PublicKey}
	for name, curve := range map[string]elliptic.Curve{"p256": elliptic.P256(), "p384": elliptic.P384(), "p521": elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys[name] = &key.PublicKey
	}
	for name, want := range keys {
		t.Run(name, func(t *testing.T) {
			der, err := x509.MarshalPKIXPublicKey(want)
			if err != nil {
				t.Fatal(err)
			}
			got, err := publickey.Parse(der)
			if err != nil || !got.(equaler).Equal(want) {
				t.Fatalf("Parse() = %v, %v, want %v", got, err, want)
			}
			for i := range der {
				if got, err := publickey.Parse(der[:i]); !errors.Is(err, publickey.ErrFormat) || got != nil {
					t.Fatalf("cut at %d: got %v, %v, want %v", i, got, err, publickey.ErrFormat)
				}
			}
			if _, err := publickey.Parse(append(der, 0)); !errors.Is(err, publickey.ErrFormat) {
				t.Errorf("a byte behind it: got error %v, want %v", err, publickey.ErrFormat)
			}
		})
	}
	if got, want := publickey.PKCS1(&small.PublicKey), x509.MarshalPKCS1PublicKey(&small.PublicKey); !bytes.Equal(got, want) {
		t.Errorf("PKCS1() = %x, want %x", got, want)
	}
}

func TestParseRefusesOtherKeys(t *testing.T) {
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.PublicKey{"ed25519": ed, "p224": &p224.PublicKey, "x25519": x.PublicKey()} {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := publickey.Parse(der); !errors.Is(err, publickey.ErrFormat) || got != nil {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, publickey.ErrFormat)
		}
	}
}

func FuzzParse(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Fuzz(func(t *testing.T, der []byte) {
		if got, err := publickey.Parse(der); err != nil && got != nil {
			t.Fatalf("Parse() = %v with error %v", got, err)
		}
	})
}
