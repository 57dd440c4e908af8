package signature

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/subtle"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
)

// Verify returns the root hash of s and the one of certs whose key signed it.
// The certificates are the ones of a role, and nothing else is trusted: no
// chain is built, certificates inside the message are ignored, and so are
// validity dates, because nothing vouches for the clock.
// Errors: ErrFormat, ErrUnknownSigner, ErrBadSignature, ErrWeak.
func Verify(s Signature, certs []*x509.Certificate) (rootHash []byte, signer *x509.Certificate, err error) {
	info, err := parseMessage(s.PKCS7)
	if err != nil {
		return nil, nil, err
	}
	// No confusion between the two forms of message is possible: signed
	// attributes begin with a SET and its length, and no text in hex does
	// ('1' is the tag of a SET, but no hex digit is a fitting length).
	text := []byte(hex.EncodeToString(s.RootHash))
	signed, algorithm, err := info.signedBytes(text)
	if err != nil {
		return nil, nil, err
	}
	err = unknownSigner(info, s.CertificateFingerprint)
	for _, cert := range certs {
		if !bytes.Equal(cert.RawIssuer, info.SID.Issuer.FullBytes) || cert.SerialNumber.Cmp(info.SID.Serial) != 0 {
			continue
		}
		// Nothing makes a serial number unique: try all that match.
		if err = checkSignature(cert, algorithm, signed, info.Signature); err == nil {
			return bytes.Clone(s.RootHash), cert, nil
		}
	}
	return nil, nil, err
}

func unknownSigner(info signerInfo, fingerprint []byte) error {
	hint := "none given"
	if fingerprint != nil {
		hint = hex.EncodeToString(fingerprint)
	}
	return fmt.Errorf("%w: %.200q, serial %.40s, fingerprint %s",
		ErrUnknownSigner, nameOf(info.SID.Issuer.FullBytes), info.SID.Serial.Text(16), hint)
}

// nameOf is the issuer for a person to read; for the self-signed certificates
// that are usual here it is the subject too.
func nameOf(der []byte) string {
	var rdn pkix.RDNSequence
	if _, err := asn1.Unmarshal(der, &rdn); err != nil {
		return "unreadable name"
	}
	return rdn.String()
}

// checkSignature checks with the certificate's own kind of key; what the message
// says about the kind of key is not needed.
func checkSignature(cert *x509.Certificate, hash hashAlgorithm, signed, sig []byte) error {
	if err := checkKey(cert); err != nil {
		return err
	}
	algorithm := hash.rsa
	if _, ok := cert.PublicKey.(*ecdsa.PublicKey); ok {
		algorithm = hash.ecdsa
	}
	if err := cert.CheckSignature(algorithm, signed, sig); err != nil {
		return fmt.Errorf("%w: certificate %.200q: %v", ErrBadSignature, cert.Subject, err)
	}
	return nil
}

// checkKey accepts RSA from 2048 bits and the NIST curves from P-256 (ErrWeak).
func checkKey(cert *x509.Certificate) error {
	switch key := cert.PublicKey.(type) {
	case *rsa.PublicKey:
		if key.N.BitLen() < 2048 {
			return fmt.Errorf("%w: RSA key of %d bits in %.200q", ErrWeak, key.N.BitLen(), cert.Subject)
		}
		return nil
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() || key.Curve == elliptic.P384() || key.Curve == elliptic.P521() {
			return nil
		}
	}
	return fmt.Errorf("%w: key type of %.200q", ErrWeak, cert.Subject)
}

// signedBytes returns what the signature is over: the text itself, or the signed
// attributes, which must then hold the digest of the text.
func (info signerInfo) signedBytes(text []byte) ([]byte, hashAlgorithm, error) {
	algorithm, err := hashByOID(info.Digest.Algorithm)
	if err != nil {
		return nil, hashAlgorithm{}, err
	}
	if len(info.SignedAttrs.FullBytes) == 0 {
		return text, algorithm, nil
	}
	digest, err := messageDigest(info.SignedAttrs.Bytes)
	if err != nil {
		return nil, hashAlgorithm{}, err
	}
	h := algorithm.hash.New()
	h.Write(text)
	if subtle.ConstantTimeCompare(h.Sum(nil), digest) != 1 {
		return nil, hashAlgorithm{}, fmt.Errorf("%w: it is over something else", ErrBadSignature)
	}
	// RFC 5652, 5.4: signed is the SET OF itself, not its [0] tag.
	signed := bytes.Clone(info.SignedAttrs.FullBytes)
	signed[0] = 0x31
	return signed, algorithm, nil
}
