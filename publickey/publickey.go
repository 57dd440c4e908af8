// Package publickey reads public keys as certificates and PEM files hold them:
// SubjectPublicKeyInfo (RFC 5280, 4.1.2.7) in DER.
//
// crypto/x509 would do it too, and brings into PID 1 what nobody needs there:
// chains, constraints, CRLs, Ed25519, URLs, 330 KB. The reading is done by
// golang.org/x/crypto/cryptobyte, the reader under crypto/x509; mkinitramfs,
// which makes the initramfs that these keys lie in, checks them with crypto/x509.
package publickey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	tag "golang.org/x/crypto/cryptobyte/asn1"
)

// ErrFormat: the bytes are not a public key that this package knows.
var ErrFormat = errors.New("not a usable public key")

// maxModulus bounds an RSA modulus in bytes: 16384 bits.
const maxModulus = 2048

// Parse reads a SubjectPublicKeyInfo and nothing behind it: an *rsa.PublicKey, or
// an *ecdsa.PublicKey on P-256, P-384 or P-521. Its error is ErrFormat.
func Parse(der []byte) (crypto.PublicKey, error) {
	in := cryptobyte.String(der)
	var info, algorithm cryptobyte.String
	var bits asn1.BitString
	var kind asn1.ObjectIdentifier
	if !in.ReadASN1(&info, tag.SEQUENCE) || !in.Empty() ||
		!info.ReadASN1(&algorithm, tag.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&kind) ||
		!info.ReadASN1BitString(&bits) || !info.Empty() || bits.BitLength%8 != 0 {
		return nil, fmt.Errorf("%w: malformed", ErrFormat)
	}
	switch kind.String() {
	case "1.2.840.113549.1.1.1": // rsaEncryption
		return rsaKey(bits.Bytes)
	case "1.2.840.10045.2.1": // id-ecPublicKey
		return ecdsaKey(algorithm, bits.Bytes)
	}
	return nil, fmt.Errorf("%w: algorithm %.60s; RSA and ECDSA are known", ErrFormat, kind)
}

func rsaKey(der []byte) (crypto.PublicKey, error) {
	in := cryptobyte.String(der)
	var key cryptobyte.String
	var modulus []byte
	var exponent int
	if !in.ReadASN1(&key, tag.SEQUENCE) || !in.Empty() ||
		!key.ReadASN1Integer(&modulus) || !key.ReadASN1Integer(&exponent) || !key.Empty() ||
		len(modulus) == 0 || len(modulus) > maxModulus || exponent < 3 || exponent%2 == 0 || int(int32(exponent)) != exponent {
		return nil, fmt.Errorf("%w: malformed RSA key", ErrFormat)
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: exponent}, nil
}

func ecdsaKey(parameters cryptobyte.String, point []byte) (crypto.PublicKey, error) {
	var name asn1.ObjectIdentifier
	if !parameters.ReadASN1ObjectIdentifier(&name) || !parameters.Empty() {
		return nil, fmt.Errorf("%w: malformed ECDSA parameters", ErrFormat)
	}
	var curve elliptic.Curve
	switch name.String() {
	case "1.2.840.10045.3.1.7":
		curve = elliptic.P256()
	case "1.3.132.0.34":
		curve = elliptic.P384()
	case "1.3.132.0.35":
		curve = elliptic.P521()
	default:
		return nil, fmt.Errorf("%w: curve %.60s; P-256, P-384 and P-521 are known", ErrFormat, name)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		return nil, fmt.Errorf("%w: not a point of the curve", ErrFormat)
	}
	return key, nil
}

// PKCS1 is the RSAPublicKey of RFC 8017, A.1.1, in DER.
func PKCS1(key *rsa.PublicKey) []byte {
	var b cryptobyte.Builder
	b.AddASN1(tag.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(key.N)
		b.AddASN1Int64(int64(key.E))
	})
	return b.BytesOrPanic()
}
