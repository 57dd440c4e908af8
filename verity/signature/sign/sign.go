// Package sign makes the signatures that package signature verifies. PID 1 does
// not link it.
package sign

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/smallstep/pkcs7"

	"sealroot/verity/signature"
)

// RootHash returns the JSON for a signature partition, without padding: a detached
// signature with SHA-256 and without signed attributes, as systemd-repart makes
// it and as the kernel accepts it for dm-verity. key must belong to cert. The
// result has passed signature.Verify.
func RootHash(rootHash []byte, cert *x509.Certificate, key crypto.Signer) ([]byte, error) {
	message, err := signText([]byte(hex.EncodeToString(rootHash)), cert, key)
	if err != nil {
		return nil, fmt.Errorf("cannot sign root hash: %w", err)
	}
	fingerprint := sha256.Sum256(cert.Raw)
	text, err := json.Marshal(struct {
		RootHash    string `json:"rootHash"`
		Fingerprint string `json:"certificateFingerprint"`
		Signature   string `json:"signature"`
	}{
		hex.EncodeToString(rootHash),
		hex.EncodeToString(fingerprint[:]),
		base64.StdEncoding.EncodeToString(message),
	})
	if err != nil {
		return nil, fmt.Errorf("cannot sign root hash: %w", err)
	}
	// A key that is not the certificate's, or a weak one, must show here and not
	// on a machine in the field.
	own, err := signature.ParseCertificate(cert.Raw)
	var s signature.Signature
	if err == nil {
		s, err = signature.Parse(text)
	}
	if err == nil {
		_, _, err = signature.Verify(s, []*signature.Certificate{own})
	}
	if err != nil {
		return nil, fmt.Errorf("cannot use the signature just made: %w", err)
	}
	return text, nil
}

func signText(text []byte, cert *x509.Certificate, key crypto.Signer) ([]byte, error) {
	sd, err := pkcs7.NewSignedData(text)
	if err != nil {
		return nil, err
	}
	sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	if _, ok := key.Public().(*rsa.PublicKey); ok {
		// The library would say sha256WithRSAEncryption, which the kernel's
		// crypto/asymmetric_keys/pkcs7_parser.c does not know in this place.
		sd.SetEncryptionAlgorithm(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1})
	}
	if err := sd.SignWithoutAttr(cert, key, pkcs7.SignerInfoConfig{}); err != nil {
		return nil, err
	}
	sd.Detach()
	return sd.Finish()
}

// Detached returns a detached PKCS#7 message (DER) over content, made as
// RootHash makes the one over a root hash. content is a JSON object, see
// signature.VerifyDetached. The result has passed it.
func Detached(content []byte, cert *x509.Certificate, key crypto.Signer) ([]byte, error) {
	message, err := signText(content, cert, key)
	if err != nil {
		return nil, err // the caller names what was to be signed
	}
	own, err := signature.ParseCertificate(cert.Raw)
	if err == nil {
		_, err = signature.VerifyDetached(content, message, []*signature.Certificate{own})
	}
	if err != nil {
		return nil, fmt.Errorf("cannot use the signature just made: %w", err)
	}
	return message, nil
}
