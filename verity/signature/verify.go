package signature

import (
	"bytes"
	"crypto"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
)

// Verify returns the root hash of s and the one of certs whose key signed it.
// The certificates are the ones of a role, and nothing else is trusted: no
// chain is built, certificates inside the message are ignored, and so are
// validity dates, because nothing vouches for the clock.
// Errors: ErrFormat, ErrUnknownSigner, ErrBadSignature, ErrWeak.
func Verify(s Signature, certs []*Certificate) (rootHash []byte, signer *Certificate, err error) {
	signer, err = verifyText([]byte(hex.EncodeToString(s.RootHash)), s.PKCS7, s.CertificateFingerprint, certs)
	if err != nil {
		return nil, nil, err
	}
	return bytes.Clone(s.RootHash), signer, nil
}

// VerifyDetached returns the one of certs whose key signed content: message is
// a detached PKCS#7 message in DER. The certificates count as they do for
// Verify, and its errors are the same.
//
// content begins with '{', else it is ErrFormat: the same key signs root hashes,
// and so neither kind of signature can pass for the other.
func VerifyDetached(content, message []byte, certs []*Certificate) (*Certificate, error) {
	if len(content) == 0 || content[0] != '{' {
		return nil, fmt.Errorf("%w: it is not over a JSON object", ErrFormat)
	}
	if len(message) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrFormat, len(message))
	}
	return verifyText(content, message, nil, certs)
}

// verifyText returns the one of certs whose key signed text. fingerprint is for
// the message of ErrUnknownSigner.
//
// No confusion between the two forms of message is possible: signed attributes
// begin with a SET and its length, and neither a text in hex ('1' is the tag of
// a SET, but no hex digit is a fitting length) nor a JSON object does.
func verifyText(text, message, fingerprint []byte, certs []*Certificate) (*Certificate, error) {
	info, err := parseMessage(message)
	if err != nil {
		return nil, err
	}
	hash, err := hashByOID(info.digest)
	if err != nil {
		return nil, err
	}
	signed, err := info.signedBytes(hash, text)
	if err != nil {
		return nil, err
	}
	h := hash.New()
	h.Write(signed)
	digest := h.Sum(nil)
	err = unknownSigner(info, fingerprint)
	for _, cert := range certs {
		if !bytes.Equal(cert.Issuer, info.issuer) || !bytes.Equal(cert.Serial, info.serial) {
			continue
		}
		// Nothing makes a serial number unique: try all that match. What the
		// message says about the kind of key is not needed.
		if cert.verify(hash, digest, info.signature) {
			return cert, nil
		}
		err = fmt.Errorf("%w: certificate %.200q", ErrBadSignature, cert.Subject)
	}
	return nil, err
}

func unknownSigner(info signerInfo, fingerprint []byte) error {
	hint := "none given"
	if fingerprint != nil {
		hint = hex.EncodeToString(fingerprint)
	}
	return fmt.Errorf("%w: %.200q, serial %.40x, fingerprint %s", ErrUnknownSigner, nameOf(info.issuer), info.serial, hint)
}

// signedBytes returns what the signature is over: the text itself, or the signed
// attributes, which must then hold the digest of the text.
func (info signerInfo) signedBytes(hash crypto.Hash, text []byte) ([]byte, error) {
	if info.signedAttrs == nil {
		return text, nil
	}
	digest, err := messageDigest(info.signedAttrs)
	if err != nil {
		return nil, err
	}
	h := hash.New()
	h.Write(text)
	if subtle.ConstantTimeCompare(h.Sum(nil), digest) != 1 {
		return nil, fmt.Errorf("%w: it is over something else", ErrBadSignature)
	}
	// RFC 5652, 5.4: signed is the SET OF itself, not its [0] tag.
	signed := bytes.Clone(info.signedAttrs)
	signed[0] = 0x31
	return signed, nil
}
