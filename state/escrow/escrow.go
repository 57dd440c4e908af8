// Package escrow encrypts a recovery key to certificates, so that only whoever
// holds a private key of one of them can read it: CMS EnvelopedData (RFC 5652,
// 6) with AES-256-CBC (RFC 3565) under a key of its own, which RSAES-OAEP with
// SHA-256 (RFC 4055, RFC 3560) transports. `openssl cms -decrypt` opens it.
//
// PID 1 links what encrypts; what looks into such a file is in read.go, for the
// running system. Nothing authenticates the message: whoever can write to the
// disk can put another one in its place, also one with the key of a volume of their
// own; it does not read what was there.
package escrow

import (
	"crypto"
	"crypto/aes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
)

// ErrKey: the certificate's key cannot be used to encrypt to.
var ErrKey = errors.New("not a key that a recovery key can be encrypted to")

// minBits is the least length of an RSA key.
const minBits = 2048

// Recipient is a certificate that a recovery key is encrypted to.
type Recipient struct {
	id  identity
	key *rsa.PublicKey
}

// identity is how a message names a certificate.
type identity struct {
	issuer []byte // DER of the name
	serial []byte // content of the DER integer
}

// NewRecipient is the recipient whose certificate has this issuer (DER of the
// name), serial number (content of the DER integer) and key. Its error is ErrKey:
// only RSA, from 2048 bits on, encrypts.
func NewRecipient(issuer, serial []byte, key crypto.PublicKey) (Recipient, error) {
	rsaKey, ok := key.(*rsa.PublicKey)
	if !ok {
		return Recipient{}, fmt.Errorf("%w: not RSA; make one with an RSA key of 3072 bits", ErrKey)
	}
	if bits := rsaKey.N.BitLen(); bits < minBits {
		return Recipient{}, fmt.Errorf("%w: RSA of %d bits, at least %d are needed", ErrKey, bits, minBits)
	}
	return Recipient{identity{issuer, serial}, rsaKey}, nil
}

// Tags of DER (X.690), as far as a message needs them.
const (
	derInteger     = 0x02
	derOctets      = 0x04
	derSequence    = 0x30
	derSet         = 0x31
	derContext0    = 0x80 // [0] IMPLICIT, of a string
	derConstructed = 0xa0 // [0] EXPLICIT
)

// Parts of the message that are always the same, in DER. A writer for them costs
// PID 1 more than they do; openssl says whether they are right.
const (
	version0 = "\x02\x01\x00"
	// oidEnvelopedData and oidData are 1.2.840.113549.1.7.3 and .1.
	oidEnvelopedData = "\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03"
	oidData          = "\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01"
	// oidAES256CBC is 2.16.840.1.101.3.4.1.42.
	oidAES256CBC = "\x06\x09\x60\x86\x48\x01\x65\x03\x04\x01\x2a"
	// algSHA256 is the AlgorithmIdentifier 2.16.840.1.101.3.4.2.1, NULL.
	algSHA256 = "\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00"
	// algOAEP is that of RSAES-OAEP, 1.2.840.113549.1.1.7, with SHA-256 as its
	// hash and in MGF1, 1.2.840.113549.1.1.8.
	algOAEP = "\x30\x3c\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x07" +
		"\x30\x2f\xa0\x0f" + algSHA256 +
		"\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08" + algSHA256
)

// Seal returns the DER of a message that each of the recipients, one at least,
// can decrypt. The secret stays the caller's.
func Seal(random io.Reader, secret []byte, to []Recipient) ([]byte, error) {
	if len(to) == 0 {
		return nil, fmt.Errorf("cannot encrypt to nobody: %w", ErrKey)
	}
	var fresh [32 + aes.BlockSize]byte // key, initialization vector
	defer clear(fresh[:])
	if _, err := io.ReadFull(random, fresh[:]); err != nil {
		return nil, fmt.Errorf("cannot read randomness: %w", err)
	}
	key, iv := fresh[:32], fresh[32:]
	var recipients []byte
	for _, r := range to {
		wrapped, err := rsa.EncryptOAEP(sha256.New(), random, r.key, key, nil)
		if err != nil {
			return nil, fmt.Errorf("cannot encrypt to the key of a certificate: %w: %w", ErrKey, err)
		}
		// KeyTransRecipientInfo
		name := der(derSequence, r.id.issuer, der(derInteger, r.id.serial))
		recipients = append(recipients, der(derSequence, []byte(version0), name, []byte(algOAEP), der(derOctets, wrapped))...)
	}
	content, err := encrypt(key, iv, secret)
	if err != nil {
		return nil, err
	}
	algorithm := der(derSequence, []byte(oidAES256CBC), der(derOctets, iv))
	enveloped := der(derSequence, []byte(version0), der(derSet, recipients),
		der(derSequence, []byte(oidData), algorithm, der(derContext0, content)))
	return der(derSequence, []byte(oidEnvelopedData), der(derConstructed, enveloped)), nil
}

// encrypt pads (RFC 5652, 6.3) and encrypts in CBC mode.
func encrypt(key, iv, secret []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	out := make([]byte, (len(secret)/aes.BlockSize+1)*aes.BlockSize)
	n := copy(out, secret)
	for i := n; i < len(out); i++ {
		out[i] = byte(len(out) - n)
	}
	for at := 0; at < len(out); at += aes.BlockSize {
		b := out[at : at+aes.BlockSize]
		subtle.XORBytes(b, b, iv)
		block.Encrypt(b, b)
		iv = b
	}
	return out, nil
}

// der is an element of less than 16 MiB with this tag and content.
func der(tag byte, content ...[]byte) []byte {
	n := 0
	for _, c := range content {
		n += len(c)
	}
	b := []byte{tag, byte(n)}
	switch {
	case n >= 1<<16:
		b = []byte{tag, 0x83, byte(n >> 16), byte(n >> 8), byte(n)}
	case n >= 1<<8:
		b = []byte{tag, 0x82, byte(n >> 8), byte(n)}
	case n >= 1<<7:
		b = []byte{tag, 0x81, byte(n)}
	}
	for _, c := range content {
		b = append(b, c...)
	}
	return b
}
