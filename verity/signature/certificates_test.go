package signature_test

import (
	"crypto/elliptic"
	"errors"
	"os"
	"testing"
	"testing/fstest"

	"sealroot/verity/signature"
)

func TestLoadCertificates(t *testing.T) {
	read := func(file string) []byte {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	a := newSigner(t, ecKey(t, elliptic.P256()), 1, later())
	b := newSigner(t, ecKey(t, elliptic.P384()), 2, later())
	weak := newSigner(t, rsaKey(t, 1024), 3, later())
	curve := newSigner(t, ecKey(t, elliptic.P224()), 4, later())
	crtA, crtB := read(a.certFile), read(b.certFile)
	both := append(append([]byte{}, crtB...), crtA...)
	for _, test := range []struct {
		name  string
		files map[string][]byte
		want  []signer
		err   error
	}{
		{"one", map[string][]byte{"image.crt": crtA}, []signer{a}, nil},
		{"by_file_name", map[string][]byte{"2.crt": crtA, "1.crt": crtB}, []signer{b, a}, nil},
		{"two_in_one_file_and_one_again", map[string][]byte{"1.crt": both, "2.crt": crtA}, []signer{b, a}, nil},
		{"others_are_not_read", map[string][]byte{"1.crt": crtA, "README": []byte("x"), "dir/2.crt": crtB}, []signer{a}, nil},
		{"none", map[string][]byte{"image.pem": crtA}, nil, signature.ErrCertificate},
		{"empty_file", map[string][]byte{"1.crt": crtA, "2.crt": {}}, nil, signature.ErrCertificate},
		{"garbage", map[string][]byte{"1.crt": []byte("garbage")}, nil, signature.ErrCertificate},
		{"garbage_behind", map[string][]byte{"1.crt": append(append([]byte{}, crtA...), "x"...)}, nil, signature.ErrCertificate},
		{"private_key", map[string][]byte{"1.crt": append(append([]byte{}, crtA...), read(a.keyFile)...)}, nil, signature.ErrCertificate},
		{"too_large", map[string][]byte{"1.crt": make([]byte, 64<<10+1)}, nil, signature.ErrCertificate},
		{"rsa_1024", map[string][]byte{"1.crt": read(weak.certFile)}, nil, signature.ErrWeak},
		{"p224", map[string][]byte{"1.crt": read(curve.certFile)}, nil, signature.ErrCertificate},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := fstest.MapFS{}
			for name, data := range test.files {
				dir[name] = &fstest.MapFile{Data: data}
			}
			got, err := signature.LoadCertificates(dir)
			if !errors.Is(err, test.err) || len(got) != len(test.want) {
				t.Fatalf("LoadCertificates = %d certificates, %v; want %d, %v", len(got), err, len(test.want), test.err)
			}
			for i, want := range test.want {
				if !got[i].Equal(want.parsed) {
					t.Errorf("certificate %d is not that of serial %s", i, want.cert.SerialNumber)
				}
			}
		})
	}
}

func FuzzParseCertificates(f *testing.F) {
	s := newSigner(f, ecKey(f, elliptic.P256()), 1, later())
	text, err := os.ReadFile(s.certFile)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		certs, err := signature.ParseCertificates(text)
		if (err == nil) != (len(certs) > 0) {
			t.Fatalf("ParseCertificates = %d certificates, %v", len(certs), err)
		}
	})
}
