// Package signature says who vouches for a root hash. The content of a verity
// signature partition is the JSON of the Discoverable Partitions Specification:
//
//	{"rootHash":"<hex>","certificateFingerprint":"<hex>","signature":"<base64>"}
//
// padded with NUL bytes. The signature is a detached PKCS#7 message (DER) over
// the text of the root hash in lower-case hex. Only the root hash is signed; the
// fingerprint is a hint, and certificates inside the message are not looked at.
//
// With the same key a builder signs the manifest of an image (VerifyDetached).
//
// PID 1 uses all of it; what signs is in package sign.
package signature

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// The errors of this package; each comes wrapped with what was wrong.
var (
	// ErrFormat: the bytes are no signature that this package accepts.
	ErrFormat = errors.New("not a usable signature")
	// ErrUnknownSigner: signed by a certificate that is not among the given ones.
	ErrUnknownSigner = errors.New("signer is not trusted here")
	// ErrBadSignature: the named certificate did not sign this root hash or content.
	ErrBadSignature = errors.New("signature does not match what it is over")
	// ErrWeak: a hash or a key below what is accepted.
	ErrWeak = errors.New("hash or key too weak")
	// ErrCertificate: a certificate file that cannot be used, or none at all.
	ErrCertificate = errors.New("no usable certificate")
)

// MaxSize is the most that is read of a signature partition, in bytes.
const MaxSize = 64 << 10

// Signature is the content of a verity signature partition. Nothing in it is
// checked against a certificate before Verify did.
type Signature struct {
	// RootHash is the claimed root hash, 32 or 64 bytes.
	RootHash []byte
	// CertificateFingerprint is the claimed SHA-256 of the signer's certificate
	// (DER), a hint for messages; nil when the partition names none.
	CertificateFingerprint []byte
	// PKCS7 is the message in DER.
	PKCS7 []byte
}

// Read reads a signature partition. Errors: ErrFormat, or that of the device.
func Read(r io.ReaderAt) (Signature, error) {
	data := make([]byte, MaxSize)
	n, err := r.ReadAt(data, 0)
	if err != nil && err != io.EOF {
		return Signature{}, fmt.Errorf("cannot read signature partition: %w", err)
	}
	return Parse(data[:n])
}

// ReadRootHash is the root hash that a signature partition names, on nobody's word
// yet.
func ReadRootHash(r io.ReaderAt) ([]byte, error) {
	sig, err := Read(r)
	return sig.RootHash, err
}

// Parse reads the content of a signature partition or its first MaxSize bytes.
// Its error is ErrFormat.
func Parse(data []byte) (Signature, error) {
	if len(data) > MaxSize {
		return Signature{}, fmt.Errorf("%w: %d bytes", ErrFormat, len(data))
	}
	text := bytes.TrimRight(data, "\x00")
	if len(text) == 0 {
		return Signature{}, fmt.Errorf("%w: the partition is empty", ErrFormat)
	}
	values, err := stringsOf(text)
	if err != nil {
		return Signature{}, fmt.Errorf("%w: %v", ErrFormat, err)
	}
	rootHash, err := lowerHex(values[keyRootHash])
	if err != nil || len(rootHash) != 32 && len(rootHash) != 64 {
		return Signature{}, fmt.Errorf("%w: rootHash is not a hash in lower-case hex", ErrFormat)
	}
	var fingerprint []byte
	if hint, ok := values[keyFingerprint]; ok {
		if fingerprint, err = lowerHex(hint); err != nil || len(fingerprint) != 32 {
			return Signature{}, fmt.Errorf("%w: certificateFingerprint is not a SHA-256 in lower-case hex", ErrFormat)
		}
	}
	message, err := base64.StdEncoding.Strict().DecodeString(values[keySignature])
	if err != nil || len(message) == 0 {
		return Signature{}, fmt.Errorf("%w: signature is not base64", ErrFormat)
	}
	return Signature{RootHash: rootHash, CertificateFingerprint: fingerprint, PKCS7: message}, nil
}

const (
	keyRootHash    = "rootHash"
	keyFingerprint = "certificateFingerprint"
	keySignature   = "signature"
)

// stringsOf reads a JSON object and returns the strings of our keys. Other keys
// are skipped, as a later version of the format may bring them. A key given
// twice, or ours in another case, is an error: readers would differ on which
// one counts (encoding/json alone takes both).
func stringsOf(text []byte) (map[string]string, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	token, err := dec.Token()
	if err != nil || token != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	values := map[string]string{}
	seen := map[string]bool{}
	for dec.More() {
		token, err := dec.Token()
		key, ok := token.(string)
		if err != nil || !ok {
			return nil, errors.New("not JSON")
		}
		if folded := strings.ToLower(key); seen[folded] {
			return nil, fmt.Errorf("key %.40q is given twice", key)
		} else {
			seen[folded] = true
		}
		ours, err := isOurs(key)
		if err != nil {
			return nil, err
		}
		if !ours {
			var skipped json.RawMessage
			if err := dec.Decode(&skipped); err != nil {
				return nil, errors.New("not JSON")
			}
			continue
		}
		token, err = dec.Token()
		value, ok := token.(string)
		if err != nil || !ok {
			return nil, fmt.Errorf("%s is not a string", key)
		}
		values[key] = value
	}
	if _, err := dec.Token(); err != nil {
		return nil, errors.New("the JSON object does not end")
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("text behind the JSON object")
	}
	return values, nil
}

func isOurs(key string) (bool, error) {
	for _, ours := range []string{keyRootHash, keyFingerprint, keySignature} {
		if key == ours {
			return true, nil
		}
		if strings.EqualFold(key, ours) {
			return false, fmt.Errorf("key %.40q is not spelled %s", key, ours)
		}
	}
	return false, nil
}

// lowerHex refuses upper case: the signature is over the lower-case text, and
// one hash has one spelling.
func lowerHex(s string) ([]byte, error) {
	if s != strings.ToLower(s) {
		return nil, errors.New("upper case")
	}
	return hex.DecodeString(s)
}
