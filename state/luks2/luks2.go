// Package luks2 reads and writes LUKS2 headers (LUKS2 On-Disk Format
// Specification 1.1.x; struct luks2_hdr_disk and the JSON objects of
// cryptsetup's lib/luks2).
//
// A LUKS2 header carries checksums but no signature: whoever writes the disk
// writes the header. This package therefore reads everything it will ever need
// from the disk once, refuses what is not on its allow-list, and answers every
// later question from that one copy in memory. The disk layout:
//
//	0            primary: 4096 byte binary header, then the JSON area
//	hdr_size     secondary: the same with its own salt and checksum
//	2*hdr_size   keyslot area: encrypted, anti-forensically split volume keys
//	offset       the data segment
//
// A *Header is never changed after it was made: AddKeyslot, AddToken and so on
// return a new one, and Update brings the difference to the disk in an order
// that survives a power cut.
package luks2

import (
	"errors"
	"io"
)

var (
	// ErrNotLUKS2 says that no copy of a LUKS2 header was found: another
	// format (LUKS1 too), zeros, or both copies destroyed.
	ErrNotLUKS2 = errors.New("not a LUKS2 header")
	// ErrHeader says that the newest intact copy holds something that is
	// malformed or contradicts itself; the text around it says what.
	ErrHeader = errors.New("invalid LUKS2 header")
	// ErrUnsupported says that the header is well formed but asks for
	// something this package refuses on purpose (another cipher, integrity,
	// re-encryption, a linear segment, …).
	ErrUnsupported = errors.New("unsupported LUKS2 feature")
	// ErrKDFCost says that a key derivation would cost more memory or time
	// than PID 1 is willing to spend, or less than is secure.
	ErrKDFCost = errors.New("key derivation cost out of bounds")
	// ErrPassphrase says that a passphrase does not open the keyslot.
	ErrPassphrase = errors.New("wrong passphrase")
	// ErrVolumeKey says that a volume key is not the one of this header.
	ErrVolumeKey = errors.New("wrong volume key")
	// ErrNoSuchKeyslot says that the keyslot is not in use.
	ErrNoSuchKeyslot = errors.New("no such keyslot")
	// ErrNoSuchToken says that the token is not in use.
	ErrNoSuchToken = errors.New("no such token")
	// ErrFull says that no keyslot, token or room for it is left.
	ErrFull = errors.New("no room left in the LUKS2 header")
	// ErrRecoveryKey says that a text does not have the form of a recovery key.
	ErrRecoveryKey = errors.New("not a recovery key")
)

// Encryption is the only cipher that data segments and keyslot areas may name.
const Encryption = "aes-xts-plain64"

// MinHeader and MaxHeader are the smallest and the largest size of a header copy,
// in bytes; the second copy lies at one of their powers of two.
const (
	MinHeader = minHeaderBytes
	MaxHeader = maxHeaderBytes
)

// MaxKeyslots is the number of keyslots and of tokens that a header can hold.
const MaxKeyslots = 32

// Writer is the disk that a header is written to; an *os.File is one.
type Writer interface {
	io.WriterAt
	// Sync returns when everything written before is on stable storage.
	Sync() error
}

// CryptTarget is what dm-crypt has to be told, taken from a validated header
// only: no byte of it was ever free text on the disk.
type CryptTarget struct {
	UUID        string // volume UUID, lower case
	Encryption  string // always "aes-xts-plain64"
	KeySize     int    // bytes, 32 or 64
	SectorSize  int    // bytes, 512 or 4096; the IV still counts 512-byte sectors
	OffsetBytes uint64 // start of the data on the device
	LengthBytes uint64 // whole sectors of SectorSize
}

// KeyslotInfo describes a keyslot without any secret.
type KeyslotInfo struct {
	ID       int
	Priority int // 0 ignore, 1 normal, 2 prefer
	KDF      KDF
	// Cost is about what one try takes, in microseconds on a slow machine: the
	// iterations of PBKDF2 (of the digest too), passes times KiB of Argon2.
	Cost int
}

// Token is one token of the header. JSON is the whole object as it stood on
// the disk (compacted when it was added here); the package that owns the type
// interprets it.
type Token struct {
	ID       int
	Type     string
	Keyslots []int
	JSON     []byte
}
