package luks2

import (
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/pbkdf2"
)

// Bounds of a key derivation. The upper ones keep a hostile header from
// hanging or starving PID 1, and leave room for what cryptsetup's benchmark
// chooses by default (argon2id, 1 GiB, 4 lanes, about 2 seconds).
const (
	minIterations = 1000 // cryptsetup's minimum
	maxIterations = 10_000_000
	maxMemoryKiB  = 1 << 20 // 1 GiB
	maxTime       = 1000
	maxCPUs       = 4
	// maxWorkKiB bounds passes times memory: 16 passes over 1 GiB.
	maxWorkKiB = 16 << 20
)

// The key derivations.
const (
	KDFPBKDF2   = "pbkdf2"
	KDFArgon2i  = "argon2i"
	KDFArgon2id = "argon2id"
)

// KDF is a key derivation with its cost; its salt is the header's business.
type KDF struct {
	Type       string // KDFPBKDF2, KDFArgon2i or KDFArgon2id
	Hash       string // pbkdf2: sha256 or sha512
	Iterations int    // pbkdf2
	Time       int    // argon2: passes over the memory
	MemoryKiB  int    // argon2
	CPUs       int    // argon2: lanes
}

// RandomSecretKDF is for a secret that is random anyway (sealed by a TPM, a
// recovery key): pbkdf2-sha512 with 1000 iterations, as systemd-cryptenroll
// does. Slower would protect nothing.
func RandomSecretKDF() KDF {
	return KDF{Type: KDFPBKDF2, Hash: "sha512", Iterations: minIterations}
}

// PassphraseKDF is for what a person remembers: argon2id, 4 passes over
// 256 MiB in 4 lanes.
func PassphraseKDF() KDF {
	return KDF{Type: KDFArgon2id, Time: 4, MemoryKiB: 256 << 10, CPUs: 4}
}

// kdf reads a key derivation and checks its cost.
func (r *reader) kdf(path string, v value) (KDF, []byte) {
	k := KDF{Type: r.text(object{path, v.members}, "type", KDFPBKDF2, KDFArgon2i, KDFArgon2id)}
	var o object
	if k.Type == KDFPBKDF2 {
		o = r.object(path, v, "type", "hash", "iterations", "salt")
		k.Hash = r.text(o, "hash", hashNames()...)
		k.Iterations = r.iterations(o)
	} else {
		o = r.object(path, v, "type", "time", "memory", "cpus", "salt")
		k.Time = r.number(o, "time", 1, maxTime, ErrKDFCost)
		k.CPUs = r.number(o, "cpus", 1, maxCPUs, ErrKDFCost)
		k.MemoryKiB = r.number(o, "memory", 8*max(k.CPUs, 1), maxMemoryKiB, ErrKDFCost)
		if k.Time*k.MemoryKiB > maxWorkKiB {
			r.failf(ErrKDFCost, path, "%d passes over %d KiB", k.Time, k.MemoryKiB)
		}
	}
	return k, r.bytes(o, "salt", 8, 64)
}

func (r *reader) iterations(o object) int {
	return r.number(o, "iterations", minIterations, maxIterations, ErrKDFCost)
}

// derive turns a passphrase into a key of n bytes. The cost was checked when
// the header was read.
func (k KDF) derive(passphrase, salt []byte, n int) ([]byte, error) {
	switch k.Type {
	case KDFPBKDF2:
		h, err := hashByName(k.Hash)
		if err != nil {
			return nil, err
		}
		return pbkdf2.Key(passphrase, salt, k.Iterations, n, h), nil
	case KDFArgon2i:
		return argon2.Key(passphrase, salt, uint32(k.Time), uint32(k.MemoryKiB), uint8(k.CPUs), uint32(n)), nil
	case KDFArgon2id:
		return argon2.IDKey(passphrase, salt, uint32(k.Time), uint32(k.MemoryKiB), uint8(k.CPUs), uint32(n)), nil
	}
	return nil, fmt.Errorf("%w: key derivation %q", ErrUnsupported, k.Type)
}

// hashNames are the hashes accepted anywhere in a header.
func hashNames() []string { return []string{"sha256", "sha512"} }

func hashByName(name string) (func() hash.Hash, error) {
	switch name {
	case "sha256":
		return sha256.New, nil
	case "sha512":
		return sha512.New, nil
	}
	return nil, fmt.Errorf("%w: hash %q", ErrUnsupported, name)
}
