// Package voucher is how root of a degraded boot says to the next boot which volume
// is this machine's, where only PID 1 can write that into the TPM: its PCRs are closed
// by then. PID 1 of the degraded boot seals a secret under the state's policy, has the
// TPM remember the secret's digest in a record that only such a PID 1 writes, and
// leaves the voucher to root. Whoever has shown a key of the volume there spends it:
// it names the volume then, and lies on the state partition.
//
// The secret tells root from everybody else who can write to the disk, and the record
// tells it from one that somebody else has sealed: sealing needs no secret.
package voucher

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
)

// MaxSize bounds a spent voucher, in bytes.
const MaxSize = 16 << 10

// ErrFormat: bytes that are no voucher.
var ErrFormat = errors.New("not a voucher")

// secretBytes is the length of tpm.Passphrase of a sealed secret.
const secretBytes = 44

// label keeps what is computed here from meaning anything elsewhere.
const label = "sealroot voucher\x00"

// New is the voucher that the running system gets: the secret, then the token that
// it is sealed in. The caller wipes it.
func New(secret, token []byte) []byte {
	v := make([]byte, 0, len(secret)+len(token))
	return append(append(v, secret...), token...)
}

// Record is the digest of a secret that the TPM keeps.
func Record(secret []byte) []byte {
	h := sha256.New()
	io.WriteString(h, label)
	h.Write(secret)
	return h.Sum(nil)
}

// Spend gives a voucher for the volume of that identity (luks2.VolumeKeyID). What it
// returns, a MAC and the token, is no secret. Errors: ErrFormat.
func Spend(v, volume []byte) ([]byte, error) {
	if len(v) <= secretBytes || len(v) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrFormat, len(v))
	}
	return append(mac(v[:secretBytes], volume), v[secretBytes:]...), nil
}

// Token is the token of a spent voucher, which anybody may have written. Errors:
// ErrFormat, those of r.
func Token(r io.Reader) (spent, token []byte, err error) {
	spent, err = io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err == nil && (len(spent) <= sha256.Size || len(spent) > MaxSize) {
		err = fmt.Errorf("%w: %d bytes or more", ErrFormat, len(spent))
	}
	if err != nil {
		return nil, nil, err
	}
	return spent, spent[sha256.Size:], nil
}

// For tells whether a spent voucher is for the volume; secret is what its token holds.
func For(spent, secret, volume []byte) bool {
	return len(spent) > sha256.Size && hmac.Equal(spent[:sha256.Size], mac(secret, volume))
}

func mac(secret, volume []byte) []byte {
	h := hmac.New(sha256.New, secret)
	io.WriteString(h, label)
	h.Write(volume)
	return h.Sum(nil)
}
