package signature_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"sealroot/verity/signature"
	"sealroot/verity/signature/sign"
	"sealroot/verity/signature/signaturetest"
)

// signer is a certificate with its key, and both as files for openssl.
type signer struct {
	cert              *x509.Certificate
	parsed            *signature.Certificate // nil when the key is refused
	key               crypto.Signer
	certFile, keyFile string
}

// newSigner makes a self-signed certificate that is valid until end.
func newSigner(t testing.TB, key crypto.Signer, serial int64, end time.Time) signer {
	t.Helper()
	of := signaturetest.Of(t, key, serial, end)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := signer{of.Cert, of.Parsed, key, filepath.Join(dir, "crt"), filepath.Join(dir, "key")}
	write(t, s.certFile, of.PEM())
	write(t, s.keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	return s
}

func write(t testing.TB, file string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func rsaKey(t testing.TB, bits int) crypto.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func ecKey(t testing.TB, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func later() time.Time { return time.Now().Add(24 * time.Hour) }

func testHash() []byte {
	sum := sha256.Sum256([]byte("root"))
	return sum[:]
}

// openssl runs the tool that is the judge here.
func openssl(t testing.TB, args ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command("openssl", args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return out
}

// opensslSign lets openssl sign the text of hash, detached, DER.
func opensslSign(t testing.TB, s signer, hash []byte, args ...string) signature.Signature {
	t.Helper()
	text := write(t, filepath.Join(t.TempDir(), "text"), []byte(hex.EncodeToString(hash)))
	args = append(args, "-sign", "-binary", "-outform", "DER", "-in", text, "-signer", s.certFile, "-inkey", s.keyFile)
	return signature.Signature{RootHash: hash, PKCS7: openssl(t, args...)}
}

func TestVerifyAcceptsOpenssl(t *testing.T) {
	keys := map[string]crypto.Signer{
		"rsa2048": rsaKey(t, 2048),
		"p256":    ecKey(t, elliptic.P256()),
		"p384":    ecKey(t, elliptic.P384()),
	}
	forms := map[string][]string{
		"as_systemd_repart":       {"smime", "-nocerts", "-noattr"},
		"certificate_inside":      {"smime", "-noattr"},
		"attributes":              {"smime", "-nocerts"},
		"attributes_and_cert":     {"smime"},
		"cms_attributes_sha512":   {"cms", "-md", "sha512"},
		"cms_without_attr_sha384": {"cms", "-noattr", "-nocerts", "-md", "sha384"},
	}
	for keyName, key := range keys {
		// Expired long ago: validity dates must not matter.
		s := newSigner(t, key, 77, time.Date(2002, 1, 1, 0, 0, 0, 0, time.UTC))
		other := newSigner(t, key, 78, later())
		for formName, form := range forms {
			t.Run(keyName+"_"+formName, func(t *testing.T) {
				hash := testHash()
				sig := opensslSign(t, s, hash, form...)
				got, by, err := signature.Verify(sig, []*signature.Certificate{other.parsed, s.parsed})
				if err != nil || !bytes.Equal(got, hash) || by != s.parsed {
					t.Fatalf("Verify = %x, %v, %v; want %x by the second certificate", got, by, err, hash)
				}
				sig.RootHash = bytes.Clone(hash)
				sig.RootHash[0] ^= 1
				if got, by, err := signature.Verify(sig, []*signature.Certificate{s.parsed}); !errors.Is(err, signature.ErrBadSignature) || got != nil || by != nil {
					t.Errorf("Verify of another hash = %x, %v, %v; want %v", got, by, err, signature.ErrBadSignature)
				}
			})
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	s := newSigner(t, rsaKey(t, 2048), 1, later())
	twin := newSigner(t, rsaKey(t, 2048), 1, later()) // same name and serial, another key
	hash := testHash()
	plain := []string{"smime", "-nocerts", "-noattr"}
	good := opensslSign(t, s, hash, plain...)
	withPKCS7 := func(change func(der []byte) []byte) signature.Signature {
		return signature.Signature{RootHash: hash, PKCS7: change(bytes.Clone(good.PKCS7))}
	}
	trusted := []*signature.Certificate{s.parsed}
	for _, test := range []struct {
		name  string
		sig   signature.Signature
		certs []*signature.Certificate
		want  error
	}{
		{"good", good, trusted, nil},
		{"twin_before_it", good, []*signature.Certificate{twin.parsed, s.parsed}, nil},
		{"no_certificates", good, nil, signature.ErrUnknownSigner},
		{"another_serial", opensslSign(t, newSigner(t, s.key, 2, later()), hash, plain...), trusted, signature.ErrUnknownSigner},
		{"another_serial_certificate_inside", opensslSign(t, newSigner(t, s.key, 2, later()), hash, "smime"), trusted, signature.ErrUnknownSigner},
		{"wrong_key", opensslSign(t, twin, hash, plain...), trusted, signature.ErrBadSignature},
		{"wrong_key_certificate_inside", opensslSign(t, twin, hash, "smime"), trusted, signature.ErrBadSignature},
		{"sha1", opensslSign(t, s, hash, "smime", "-nocerts", "-noattr", "-md", "sha1"), trusted, signature.ErrWeak},
		{"sha1_attributes", opensslSign(t, s, hash, "smime", "-md", "sha1"), trusted, signature.ErrWeak},
		{"not_detached", opensslSign(t, s, hash, "smime", "-nodetach"), trusted, signature.ErrFormat},
		{"key_identifier_instead_of_issuer", opensslSign(t, s, hash, "cms", "-keyid"), trusted, signature.ErrFormat},
		{"empty", signature.Signature{RootHash: hash}, trusted, signature.ErrFormat},
		{"text", signature.Signature{RootHash: hash, PKCS7: []byte("not DER")}, trusted, signature.ErrFormat},
		// The library that sign.go uses panics on this one.
		{"tag_without_end", signature.Signature{RootHash: hash, PKCS7: []byte{0x1f, 0x80}}, trusted, signature.ErrFormat},
		{"cut", withPKCS7(func(b []byte) []byte { return b[:len(b)-1] }), trusted, signature.ErrFormat},
		{"trailing_byte", withPKCS7(func(b []byte) []byte { return append(b, 0) }), trusted, signature.ErrFormat},
		{"flipped_last_bit", withPKCS7(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }), trusted, signature.ErrBadSignature},
		{"other_type", withPKCS7(func(b []byte) []byte { b[bytes.IndexByte(b, 6)+10] ^= 1; return b }), trusted, signature.ErrFormat},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, by, err := signature.Verify(test.sig, test.certs)
			if !errors.Is(err, test.want) {
				t.Fatalf("Verify = %v; want %v", err, test.want)
			}
			if (err == nil) != (got != nil && by != nil) {
				t.Errorf("Verify = %x, %v with error %v", got, by, err)
			}
		})
	}
	_, _, err := signature.Verify(good, nil)
	if err == nil || !strings.Contains(err.Error(), "sealroot test image key") {
		t.Errorf("Verify without certificates = %v; want the signer's name", err)
	}
}

// TestVerifyRefusesTwoSigners: with two signers, readers differ on whom to ask.
func TestVerifyRefusesTwoSigners(t *testing.T) {
	s := newSigner(t, ecKey(t, elliptic.P256()), 1, later())
	sd, err := pkcs7.NewSignedData([]byte(hex.EncodeToString(testHash())))
	if err != nil {
		t.Fatal(err)
	}
	sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	for range 2 {
		if err := sd.SignWithoutAttr(s.cert, s.key, pkcs7.SignerInfoConfig{}); err != nil {
			t.Fatal(err)
		}
	}
	sd.Detach()
	der, err := sd.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := signature.Verify(signature.Signature{RootHash: testHash(), PKCS7: der}, []*signature.Certificate{s.parsed}); !errors.Is(err, signature.ErrFormat) {
		t.Errorf("Verify = %v; want %v", err, signature.ErrFormat)
	}
}

func TestSign(t *testing.T) {
	for name, key := range map[string]crypto.Signer{"rsa": rsaKey(t, 2048), "ecdsa": ecKey(t, elliptic.P256())} {
		t.Run(name, func(t *testing.T) {
			s := newSigner(t, key, 5, later())
			text, err := sign.RootHash(testHash(), s.cert, s.key)
			if err != nil {
				t.Fatal(err)
			}
			sig, err := signature.Parse(append(text, make([]byte, 100)...))
			if err != nil {
				t.Fatal(err)
			}
			if want := sha256.Sum256(s.cert.Raw); !bytes.Equal(sig.CertificateFingerprint, want[:]) {
				t.Errorf("fingerprint = %x; want %x", sig.CertificateFingerprint, want)
			}
			if got, by, err := signature.Verify(sig, []*signature.Certificate{s.parsed}); err != nil || by != s.parsed || !bytes.Equal(got, testHash()) {
				t.Errorf("Verify = %x, %v, %v; want our hash and certificate", got, by, err)
			}
			dir := t.TempDir()
			message := write(t, filepath.Join(dir, "p7"), sig.PKCS7)
			content := write(t, filepath.Join(dir, "text"), []byte(hex.EncodeToString(testHash())))
			for _, tool := range []string{"smime", "cms"} {
				verify := []string{tool, "-verify", "-binary", "-inform", "DER", "-in", message, "-content", content,
					"-certfile", s.certFile, "-nointern", "-noverify"}
				openssl(t, verify...)
				write(t, content, []byte(strings.Repeat("0", 64)))
				if err := exec.Command("openssl", verify...).Run(); err == nil {
					t.Errorf("red control: openssl %s accepted another hash", tool)
				}
				write(t, content, []byte(hex.EncodeToString(testHash())))
			}
		})
	}
	s := newSigner(t, ecKey(t, elliptic.P256()), 5, later())
	if text, err := sign.RootHash(testHash(), s.cert, ecKey(t, elliptic.P256())); !errors.Is(err, signature.ErrBadSignature) || text != nil {
		t.Errorf("Sign with another key = %s, %v; want %v", text, err, signature.ErrBadSignature)
	}
}

func FuzzVerify(f *testing.F) {
	s := newSigner(f, ecKey(f, elliptic.P256()), 9, later())
	for _, form := range [][]string{{"smime", "-nocerts", "-noattr"}, {"smime"}, {"cms", "-nodetach"}} {
		f.Add(opensslSign(f, s, testHash(), form...).PKCS7)
	}
	f.Add([]byte{0x1f, 0x80})
	f.Fuzz(func(t *testing.T, der []byte) {
		got, by, err := signature.Verify(signature.Signature{RootHash: testHash(), PKCS7: der}, []*signature.Certificate{s.parsed})
		if err != nil && (got != nil || by != nil) {
			t.Fatalf("error %v with result %x, %v", err, got, by)
		}
		if err == nil && (by != s.parsed || !bytes.Equal(got, testHash())) {
			t.Fatalf("Verify = %x, %v without an error", got, by)
		}
	})
}

// A key signs root hashes and manifests; no signature of one kind passes for the
// other, with signed attributes or without.
func TestDetachedIsNoRootHash(t *testing.T) {
	s := newSigner(t, ecKey(t, elliptic.P256()), 1, later())
	certs := []*signature.Certificate{s.parsed}
	content := []byte(`{"schema":1}`)
	message, err := sign.Detached(content, s.cert, s.key)
	if err != nil {
		t.Fatal(err)
	}
	if by, err := signature.VerifyDetached(content, message, certs); err != nil || by != s.parsed {
		t.Fatalf("VerifyDetached() = %v, %v; want the signer", by, err)
	}
	if _, _, err := signature.Verify(signature.Signature{RootHash: testHash(), PKCS7: message}, certs); !errors.Is(err, signature.ErrBadSignature) {
		t.Errorf("as a root hash's: got error %v, want %v", err, signature.ErrBadSignature)
	}
	text := []byte(hex.EncodeToString(testHash()))
	hash := opensslSign(t, s, testHash(), "cms", "-noattr", "-nosmimecap")
	if _, err := signature.VerifyDetached(text, hash.PKCS7, certs); !errors.Is(err, signature.ErrFormat) {
		t.Errorf("a root hash as content: got error %v, want %v", err, signature.ErrFormat)
	}
	if _, err := sign.Detached(text, s.cert, s.key); !errors.Is(err, signature.ErrFormat) {
		t.Errorf("sign.Detached(root hash): got error %v, want %v", err, signature.ErrFormat)
	}
	for _, content := range [][]byte{nil, []byte("["), []byte("\x31{")} {
		if _, err := signature.VerifyDetached(content, message, certs); !errors.Is(err, signature.ErrFormat) {
			t.Errorf("content %q: got error %v, want %v", content, err, signature.ErrFormat)
		}
	}
	if _, err := signature.VerifyDetached([]byte(`{"schema":2}`), message, certs); !errors.Is(err, signature.ErrBadSignature) {
		t.Errorf("other content: got error %v, want %v", err, signature.ErrBadSignature)
	}
	if _, err := signature.VerifyDetached(content, make([]byte, signature.MaxSize+1), certs); !errors.Is(err, signature.ErrFormat) {
		t.Errorf("a huge message: got error %v, want %v", err, signature.ErrFormat)
	}
}
