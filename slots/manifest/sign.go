package manifest

import (
	"crypto"
	"crypto/x509"
	"fmt"

	"sealroot/verity/signature"
	"sealroot/verity/signature/sign"
)

// Sign returns manifest.sig for the bytes of manifest.json. key belongs to cert
// and is the one that signs root hashes. The result has passed Verify.
func Sign(text []byte, cert *x509.Certificate, key crypto.Signer) ([]byte, error) {
	if _, err := Parse(text); err != nil {
		return nil, fmt.Errorf("cannot sign the manifest: %w", err)
	}
	message, err := sign.Detached(text, cert, key)
	if err != nil {
		return nil, fmt.Errorf("cannot sign the manifest: %w", err)
	}
	return message, nil
}

// Verify returns the one of certs whose key signed the bytes of manifest.json;
// certs are those of the role root. Errors: those of signature.VerifyDetached.
func Verify(text, message []byte, certs []*signature.Certificate) (*signature.Certificate, error) {
	signer, err := signature.VerifyDetached(text, message, certs)
	if err != nil {
		return nil, fmt.Errorf("cannot trust the manifest: %w", err)
	}
	return signer, nil
}

// Open is Verify, then Parse: nothing of the text is looked at before it is
// trusted.
func Open(text, message []byte, certs []*signature.Certificate) (Manifest, *signature.Certificate, error) {
	signer, err := Verify(text, message, certs)
	if err != nil {
		return Manifest{}, nil, err
	}
	m, err := Parse(text)
	if err != nil {
		return Manifest{}, nil, err
	}
	return m, signer, nil
}
