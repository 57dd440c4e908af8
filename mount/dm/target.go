package dm

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/anatol/devmapper.go"
)

// OnCorruption says what dm-verity does with a block that does not match.
type OnCorruption string

// The answers to corruption. There is none that goes on with wrong data, and none
// that checks a block only once: a disk that changes while the machine runs would
// get away with it.
const (
	CorruptionEIO     OnCorruption = "eio"     // the read fails
	CorruptionRestart OnCorruption = "restart" // the machine restarts
	CorruptionPanic   OnCorruption = "panic"   // the kernel panics
)

// VerityTarget is a dm-verity table of one line that covers the whole device
// (kernel: Documentation/admin-guide/device-mapper/verity.rst).
type VerityTarget struct {
	DataDevice    string // "major:minor"
	HashDevice    string // "major:minor"
	DataBlockSize uint32 // bytes
	HashBlockSize uint32 // bytes
	DataBlocks    uint64 // in data blocks
	HashStart     uint64 // first block of the tree on the hash device, in hash blocks
	Algorithm     string // sha256 or sha512
	RootHash      []byte
	Salt          []byte // may be empty
	OnCorruption  OnCorruption
	FEC           VerityFEC // zero: nothing is repaired
}

// VerityFEC is parity on the hash device.
type VerityFEC struct {
	Roots  int    // 2 to 24, 0 for none
	Blocks uint64 // data and hash blocks that it covers
	Start  uint64 // its first block
}

// table is the table of the target. errorsToo adds the option that has the
// kernel answer a read that fails as it answers corruption, repairs those of
// parity.
func (t VerityTarget) table(errorsToo, repairs bool) (devmapper.VerityTable, error) {
	if err := t.validate(); err != nil {
		return devmapper.VerityTable{}, err
	}
	salt := "-"
	if len(t.Salt) > 0 {
		salt = hex.EncodeToString(t.Salt)
	}
	table := devmapper.VerityTable{
		Length:         t.DataBlocks * uint64(t.DataBlockSize),
		HashType:       1,
		DataDevice:     t.DataDevice,
		HashDevice:     t.HashDevice,
		DataBlockSize:  uint64(t.DataBlockSize),
		HashBlockSize:  uint64(t.HashBlockSize),
		NumDataBlocks:  t.DataBlocks,
		HashStartBlock: t.HashStart,
		Algorithm:      t.Algorithm,
		Digest:         hex.EncodeToString(t.RootHash),
		Salt:           salt,
	}
	var words []string
	if t.OnCorruption != CorruptionEIO {
		words = []string{string(t.OnCorruption) + "_on_corruption"}
		if errorsToo {
			words = append(words, string(t.OnCorruption)+"_on_error")
		}
	}
	if f := t.FEC; repairs {
		words = append(words, "use_fec_from_device", t.HashDevice, "fec_roots", strconv.Itoa(f.Roots),
			"fec_blocks", strconv.FormatUint(f.Blocks, 10), "fec_start", strconv.FormatUint(f.Start, 10))
	}
	if len(words) > 0 { // they come behind their number
		table.Params = append([]string{strconv.Itoa(len(words))}, words...)
	}
	return table, nil
}

// validate refuses what could turn into another table: the line is text, and
// every field of ours in it has a closed form.
func (t VerityTarget) validate() error {
	digest := map[string]int{"sha256": 32, "sha512": 64}[t.Algorithm]
	switch {
	case !isDevNo(t.DataDevice) || !isDevNo(t.HashDevice):
		return fmt.Errorf("%w: devices %q and %q, want major:minor", ErrTarget, t.DataDevice, t.HashDevice)
	case digest == 0:
		return fmt.Errorf("%w: hash algorithm %q", ErrTarget, t.Algorithm)
	case len(t.RootHash) != digest:
		return fmt.Errorf("%w: root hash of %d bytes for %s", ErrTarget, len(t.RootHash), t.Algorithm)
	case len(t.Salt) > 256:
		return fmt.Errorf("%w: salt of %d bytes", ErrTarget, len(t.Salt))
	case !isBlockSize(t.DataBlockSize) || !isBlockSize(t.HashBlockSize):
		return fmt.Errorf("%w: block sizes %d and %d", ErrTarget, t.DataBlockSize, t.HashBlockSize)
	case t.DataBlocks == 0 || t.DataBlocks > 1<<40:
		return fmt.Errorf("%w: %d data blocks", ErrTarget, t.DataBlocks)
	case t.HashStart > 1<<40:
		return fmt.Errorf("%w: tree at hash block %d", ErrTarget, t.HashStart)
	case t.FEC != VerityFEC{} && (t.FEC.Roots < 2 || t.FEC.Roots > 24 || t.FEC.Blocks <= t.DataBlocks || t.FEC.Start <= t.HashStart):
		return fmt.Errorf("%w: parity %+v", ErrTarget, t.FEC)
	}
	switch t.OnCorruption {
	case CorruptionEIO, CorruptionRestart, CorruptionPanic:
		return nil
	}
	return fmt.Errorf("%w: on corruption %q", ErrTarget, t.OnCorruption)
}

// CryptTarget is a dm-crypt table of one line (kernel:
// Documentation/admin-guide/device-mapper/dm-crypt.rst).
type CryptTarget struct {
	Device      string // "major:minor"
	OffsetBytes uint64 // where the encrypted data begin
	LengthBytes uint64 // how many of them
	SectorSize  uint32 // bytes: 512 or 4096
	Encryption  string // aes-xts-plain64
	KeyBytes    int    // size of the volume key: 32 or 64
	ReadOnly    bool   // as Device is
}

func (t CryptTarget) table(keyDescription string) (devmapper.CryptTable, error) {
	if err := t.validate(); err != nil {
		return devmapper.CryptTable{}, err
	}
	if keyDescription == "" || strings.ContainsFunc(keyDescription, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return devmapper.CryptTable{}, fmt.Errorf("%w: key description %q", ErrTarget, keyDescription)
	}
	return devmapper.CryptTable{
		Length:        t.LengthBytes,
		BackendDevice: t.Device,
		BackendOffset: t.OffsetBytes,
		Encryption:    t.Encryption,
		KeyID:         fmt.Sprintf(":%d:logon:%s", t.KeyBytes, keyDescription),
		SectorSize:    uint64(t.SectorSize),
	}, nil
}

func (t CryptTarget) validate() error {
	switch {
	case !isDevNo(t.Device):
		return fmt.Errorf("%w: device %q, want major:minor", ErrTarget, t.Device)
	case t.Encryption != "aes-xts-plain64":
		return fmt.Errorf("%w: cipher %q", ErrTarget, t.Encryption)
	case t.KeyBytes != 32 && t.KeyBytes != 64:
		return fmt.Errorf("%w: key of %d bytes", ErrTarget, t.KeyBytes)
	case t.SectorSize != 512 && t.SectorSize != 4096:
		return fmt.Errorf("%w: sector size %d", ErrTarget, t.SectorSize)
	case t.LengthBytes == 0 || t.LengthBytes%uint64(t.SectorSize) != 0:
		return fmt.Errorf("%w: length %d for sectors of %d", ErrTarget, t.LengthBytes, t.SectorSize)
	case t.OffsetBytes%devmapper.SectorSize != 0:
		return fmt.Errorf("%w: offset %d", ErrTarget, t.OffsetBytes)
	}
	return nil
}

func isBlockSize(n uint32) bool { return n >= 512 && n <= 65536 && n&(n-1) == 0 }

func isDevNo(s string) bool {
	major, minor, ok := strings.Cut(s, ":")
	return ok && isNumber(major) && isNumber(minor)
}

func isNumber(s string) bool {
	if s == "" || len(s) > 7 {
		return false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}
