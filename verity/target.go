package verity

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// Target is one dm-verity target in the fields of the kernel's table (version
// 1, Documentation/admin-guide/device-mapper/verity.rst); mount/dm makes the
// table of it.
type Target struct {
	DataDev       string // "major:minor"
	HashDev       string // "major:minor"
	DataBlockSize int
	HashBlockSize int
	DataBlocks    uint64
	HashStart     uint64 // in hash blocks
	Algorithm     Algorithm
	RootHash      []byte
	Salt          []byte
	FEC           FEC // zero: none
}

// Table returns the target that shows dataDev, checked by the tree on hashDev
// against rootHash. Devices are "major:minor": a path could come to mean
// another device before the kernel looks it up. Errors: ErrAlgorithm, ErrParams.
func (p Params) Table(dataDev, hashDev string, rootHash []byte) (Target, error) {
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
	return Target{
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
	}, nil
}

func isDeviceNumber(s string) bool {
	major, minor, ok := strings.Cut(s, ":")
	return ok && isNumber(major) && isNumber(minor)
}

func isNumber(s string) bool {
	n, err := strconv.ParseUint(s, 10, 32)
	return err == nil && strconv.FormatUint(n, 10) == s
}
