package verity

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// OnCorruption is what the kernel does when a block does not match its hash.
type OnCorruption string

// The policies. There is none that goes on with wrong data, and none that
// checks a block only once: a disk that changes while the machine runs would
// get away with it.
const (
	EIO     OnCorruption = "eio"     // the read fails
	Restart OnCorruption = "restart" // the machine restarts at once
	Panic   OnCorruption = "panic"   // the kernel panics
)

// SectorSize is the unit of Target.Start and Target.Length in bytes.
const SectorSize = 512

// Target is one dm-verity target in the fields of the kernel's table (version
// 1, Documentation/admin-guide/device-mapper/verity.rst).
type Target struct {
	Start, Length uint64 // in sectors of SectorSize
	DataDev       string // "major:minor"
	HashDev       string // "major:minor"
	DataBlockSize int
	HashBlockSize int
	DataBlocks    uint64
	HashStart     uint64 // in hash blocks
	Algorithm     Algorithm
	RootHash      []byte
	Salt          []byte
	FEC           FEC      // zero: none
	Options       []string // optional parameters of the table
}

// Table returns the target that shows dataDev, checked by the tree on hashDev
// against rootHash. Devices are "major:minor": a path could come to mean
// another device before the kernel looks it up. Errors: ErrAlgorithm, ErrParams.
func (p Params) Table(dataDev, hashDev string, rootHash []byte, policy OnCorruption) (Target, error) {
	if err := p.Validate(); err != nil {
		return Target{}, err
	}
	for _, dev := range []string{dataDev, hashDev} {
		if !isDeviceNumber(dev) {
			return Target{}, fmt.Errorf("%w: %.40q is not a device number", ErrParams, dev)
		}
	}
	if len(rootHash) != p.Algorithm.Size() {
		return Target{}, fmt.Errorf("%w: root hash of %d bytes for %s", ErrParams, len(rootHash), p.Algorithm)
	}
	t := Target{
		Length:        uint64(p.DataSize()) / SectorSize,
		DataDev:       dataDev,
		HashDev:       hashDev,
		DataBlockSize: p.DataBlockSize,
		HashBlockSize: p.HashBlockSize,
		DataBlocks:    p.DataBlocks,
		HashStart:     p.HashStart,
		Algorithm:     p.Algorithm,
		RootHash:      bytes.Clone(rootHash),
		Salt:          bytes.Clone(p.Salt),
		FEC:           p.FEC(),
	}
	switch policy {
	case EIO: // what the kernel does without an option
	case Restart:
		t.Options = []string{"restart_on_corruption"}
	case Panic:
		t.Options = []string{"panic_on_corruption"}
	default:
		return Target{}, fmt.Errorf("%w: policy %.20q on corruption", ErrParams, string(policy))
	}
	if f := t.FEC; f.Roots > 0 {
		t.Options = append(t.Options, "use_fec_from_device", hashDev, "fec_roots", strconv.Itoa(f.Roots),
			"fec_blocks", strconv.FormatUint(f.Blocks, 10), "fec_start", strconv.FormatUint(f.Start, 10))
	}
	return t, nil
}

// String is the line that `dmsetup table` prints for the target.
func (t Target) String() string {
	salt := "-"
	if len(t.Salt) > 0 {
		salt = hex.EncodeToString(t.Salt)
	}
	line := fmt.Sprintf("%d %d verity 1 %s %s %d %d %d %d %s %x %s",
		t.Start, t.Length, t.DataDev, t.HashDev, t.DataBlockSize, t.HashBlockSize,
		t.DataBlocks, t.HashStart, t.Algorithm, t.RootHash, salt)
	if len(t.Options) > 0 {
		line += fmt.Sprintf(" %d %s", len(t.Options), strings.Join(t.Options, " "))
	}
	return line
}

func isDeviceNumber(s string) bool {
	major, minor, ok := strings.Cut(s, ":")
	return ok && isNumber(major) && isNumber(minor)
}

func isNumber(s string) bool {
	n, err := strconv.ParseUint(s, 10, 32)
	return err == nil && strconv.FormatUint(n, 10) == s
}
