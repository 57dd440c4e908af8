package verity

import "fmt"

// FEC is parity that lets dm-verity repair blocks, as the kernel's
// drivers/md/dm-verity-fec.c and veritysetup have it: Reed-Solomon over GF(256),
// 255 bytes of which Roots are parity. The bytes of a code word are spread as far
// as can be: byte i of the k-th of 255-Roots equal stretches of data and tree. It
// repairs and is never trusted: the kernel checks what it repaired against the
// tree.
type FEC struct {
	Roots  int
	Blocks uint64 // data and tree, which are covered
	Start  uint64 // first block of the parity on the hash device
}

// The kernel's bounds of roots (dm-verity-fec.h).
const (
	minFECRoots = 2
	maxFECRoots = 24
	fecWord     = 255 // bytes of a code word
)

func (p Params) validateFEC() error {
	switch {
	case p.FECRoots == 0:
	case p.FECRoots < minFECRoots || p.FECRoots > maxFECRoots:
		return fmt.Errorf("%w: %d roots of parity", ErrParams, p.FECRoots)
	case p.DataBlockSize != p.HashBlockSize:
		return fmt.Errorf("%w: parity needs equal block sizes, not %d and %d", ErrParams, p.DataBlockSize, p.HashBlockSize)
	}
	return nil
}

// FEC is where the parity lies, behind the tree; zero when there is none.
func (p Params) FEC() FEC {
	if p.FECRoots == 0 {
		return FEC{}
	}
	tree := uint64(p.TreeSize()) / uint64(p.HashBlockSize)
	return FEC{Roots: p.FECRoots, Blocks: p.DataBlocks + tree, Start: p.HashStart + tree}
}

// FECSize is the size of the parity in bytes.
func (p Params) FECSize() int64 {
	if p.FECRoots == 0 {
		return 0
	}
	stretches := uint64(fecWord - p.FECRoots)
	return int64((p.FEC().Blocks+stretches-1)/stretches) * int64(p.DataBlockSize) * int64(p.FECRoots)
}

// AreaSize is the room that superblock, tree and parity need on the hash
// device, in bytes.
func (p Params) AreaSize() int64 { return p.HashSize() + p.FECSize() }
