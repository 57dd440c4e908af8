package verity

import (
	"fmt"
	"io"
)

// Build hashes p.DataBlocks blocks of data, writes the tree to hash from block
// p.HashStart on, and returns the root hash. It works on all processors; both
// ends must allow calls at the same time, as files do. Memory is a few hundred
// KiB for each processor and 32 bytes for each 512 KiB of data.
func Build(data io.ReaderAt, p Params, hash io.WriterAt) (rootHash []byte, err error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	levels := p.levels()
	if len(levels) == 0 {
		digests := make([]byte, p.Algorithm.Size())
		w := newWorker(p)
		if err := w.hashData(data, 0, digests); err != nil {
			return nil, err
		}
		return digests, nil
	}
	// below holds the digests of the blocks of the level before; the data's own
	// digests go straight into the hash blocks of the first level.
	var below []byte
	for i, l := range levels {
		above := make([]byte, l.blocks*uint64(p.Algorithm.Size()))
		err := forEach(l.blocks, p, func(w *worker, n uint64) error {
			clear(w.block)
			if i == 0 {
				first := n * p.perBlock()
				count := min(p.perBlock(), p.DataBlocks-first)
				if err := w.hashData(data, first, w.block[:count*uint64(w.size)]); err != nil {
					return err
				}
			} else {
				copy(w.block, below[n*uint64(p.HashBlockSize):])
			}
			if _, err := hash.WriteAt(w.block, int64(l.first+n)*int64(p.HashBlockSize)); err != nil {
				return fmt.Errorf("cannot write hash block %d: %w", l.first+n, err)
			}
			w.digest(w.block, above[n*uint64(w.size):])
			return nil
		})
		if err != nil {
			return nil, err
		}
		below = above
	}
	return below, nil
}

// Format writes a whole hash device: superblock and tree, without parity. The
// result is byte for byte that of `veritysetup format` with the same salt and UUID.
func Format(data io.ReaderAt, p Params, hash io.WriterAt) (rootHash []byte, err error) {
	sb, err := p.Superblock()
	if err != nil {
		return nil, err
	}
	first := make([]byte, p.HashBlockSize)
	copy(first, sb)
	if _, err := hash.WriteAt(first, 0); err != nil {
		return nil, fmt.Errorf("cannot write verity superblock: %w", err)
	}
	return Build(data, p, hash)
}
