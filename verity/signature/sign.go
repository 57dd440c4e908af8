package signature

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
)

// Sign returns the JSON for a signature partition, without padding: a detached
// signature with SHA-256 and without signed attributes, as systemd-repart makes
// it and as the kernel accepts it for dm-verity. key must belong to cert. The
// result has passed Verify.
func Sign(rootHash []byte, cert *x509.Certificate, key crypto.Signer) ([]byte, error) {
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
	s, err := Parse(text)
	if err == nil {
		_, _, err = Verify(s, []*x509.Certificate{cert})
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
