package signature

import (
	"crypto"
	_ "crypto/sha256" // for hashAlgorithm.hash
	_ "crypto/sha512" // for hashAlgorithm.hash
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
)

// The message is PKCS#7 SignedData (RFC 2315, RFC 5652) in DER. This reader is
// our own because the bytes come from a disk that an attacker may write, and
// PID 1 must not panic: smallstep/pkcs7, which sign.go uses, turns BER into DER
// first and reads past the end of crafted input, and compares signing times
// with validity dates.

type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue `asn1:"explicit,tag:0"`
}

type signedData struct {
	Version          int
	DigestAlgorithms asn1.RawValue
	Content          struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"optional,tag:0"`
	}
	Certificates asn1.RawValue `asn1:"optional,tag:0"`
	CRLs         asn1.RawValue `asn1:"optional,tag:1"`
	SignerInfos  []signerInfo  `asn1:"set"`
}

type signerInfo struct {
	Version            int
	SID                issuerAndSerial
	Digest             pkix.AlgorithmIdentifier
	SignedAttrs        asn1.RawValue `asn1:"optional,tag:0"`
	SignatureAlgorithm pkix.AlgorithmIdentifier
	Signature          []byte
	UnsignedAttrs      asn1.RawValue `asn1:"optional,tag:1"`
}

type issuerAndSerial struct {
	Issuer asn1.RawValue
	Serial *big.Int
}

type attribute struct {
	Type   asn1.ObjectIdentifier
	Values asn1.RawValue `asn1:"set"`
}

// parseMessage returns the only signer of a detached message. Its error is
// ErrFormat.
func parseMessage(der []byte) (signerInfo, error) {
	var outer contentInfo
	if err := unmarshal(der, &outer); err != nil {
		return signerInfo{}, err
	}
	if !outer.Type.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}) {
		return signerInfo{}, fmt.Errorf("%w: not signed data", ErrFormat)
	}
	var sd signedData
	// encoding/asn1 keeps the [0] around an explicitly tagged RawValue.
	if err := unmarshal(outer.Content.Bytes, &sd); err != nil {
		return signerInfo{}, err
	}
	if len(sd.Content.Content.FullBytes) > 0 {
		return signerInfo{}, fmt.Errorf("%w: not detached", ErrFormat)
	}
	if len(sd.SignerInfos) != 1 {
		return signerInfo{}, fmt.Errorf("%w: %d signers", ErrFormat, len(sd.SignerInfos))
	}
	return sd.SignerInfos[0], nil
}

// messageDigest returns the digest in signed attributes (RFC 5652, 11): it must
// be there exactly once, as must the content type, which must be plain data.
func messageDigest(attributes []byte) ([]byte, error) {
	var digests, types int
	var digest []byte
	for len(attributes) > 0 {
		var a attribute
		rest, err := asn1.Unmarshal(attributes, &a)
		if err != nil {
			return nil, fmt.Errorf("%w: malformed signed attributes", ErrFormat)
		}
		attributes = rest
		switch {
		case a.Type.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}):
			digests++
			err = unmarshal(a.Values.Bytes, &digest)
		case a.Type.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}):
			types++
			var oid asn1.ObjectIdentifier
			err = unmarshal(a.Values.Bytes, &oid)
			if err == nil && !oid.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}) {
				err = fmt.Errorf("%w: signed content is not data", ErrFormat)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	if digests != 1 || types != 1 {
		return nil, fmt.Errorf("%w: signed attributes lack digest or content type", ErrFormat)
	}
	return digest, nil
}

// unmarshal reads one value and nothing behind it. Its error is ErrFormat.
func unmarshal(der []byte, v any) error {
	rest, err := asn1.Unmarshal(der, v)
	if err != nil {
		// What encoding/asn1 says of the shape helps nobody at a console.
		return fmt.Errorf("%w: malformed message", ErrFormat)
	}
	if len(rest) > 0 {
		return fmt.Errorf("%w: trailing bytes in the message", ErrFormat)
	}
	return nil
}

// hashAlgorithm is an accepted hash and what x509 calls its signatures.
type hashAlgorithm struct {
	hash       crypto.Hash
	rsa, ecdsa x509.SignatureAlgorithm
}

// hashByOID knows SHA-256, SHA-384 and SHA-512 (RFC 5754); others are ErrWeak.
func hashByOID(oid asn1.ObjectIdentifier) (hashAlgorithm, error) {
	switch oid.String() {
	case "2.16.840.1.101.3.4.2.1":
		return hashAlgorithm{crypto.SHA256, x509.SHA256WithRSA, x509.ECDSAWithSHA256}, nil
	case "2.16.840.1.101.3.4.2.2":
		return hashAlgorithm{crypto.SHA384, x509.SHA384WithRSA, x509.ECDSAWithSHA384}, nil
	case "2.16.840.1.101.3.4.2.3":
		return hashAlgorithm{crypto.SHA512, x509.SHA512WithRSA, x509.ECDSAWithSHA512}, nil
	}
	return hashAlgorithm{}, fmt.Errorf("%w: hash algorithm %.60s", ErrWeak, oid)
}
