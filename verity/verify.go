package verity

import (
	"bytes"
	"fmt"
	"io"
)

// BlockError names the first block that does not match. It wraps ErrCorrupt.
type BlockError struct {
	// Level is 0 for the data, 1 for the hash blocks over the data, and so on
	// to the top.
	Level int
	// Block is counted in blocks of its own device: data blocks from the start
	// of the data, hash blocks from the start of the hash device.
	Block uint64
}

// Error says which block it is.
func (e *BlockError) Error() string {
	if e.Level == 0 {
		return fmt.Sprintf("data block %d: %v", e.Block, ErrCorrupt)
	}
	return fmt.Sprintf("hash block %d (level %d): %v", e.Block, e.Level, ErrCorrupt)
}

// Unwrap returns ErrCorrupt.
func (e *BlockError) Unwrap() error { return ErrCorrupt }

// Verify reads the whole tree and all data and compares them with rootHash, from
// the top down. A mismatch is a *BlockError for the first bad block on that way;
// below a bad hash block nothing is looked at.
func Verify(data, hash io.ReaderAt, p Params, rootHash []byte) error {
	if err := p.Validate(); err != nil {
		return err
	}
	if len(rootHash) != p.Algorithm.Size() {
		return fmt.Errorf("%w: root hash of %d bytes for %s", ErrParams, len(rootHash), p.Algorithm)
	}
	levels := p.levels()
	if len(levels) == 0 {
		return newWorker(p).verifyData(data, 0, rootHash)
	}
	expected := bytes.Clone(rootHash)
	for i := len(levels) - 1; i >= 0; i-- {
		l := levels[i]
		var below []byte
		if i > 0 {
			// Room for whole blocks: the last hash block is zero padded.
			below = make([]byte, l.blocks*uint64(p.HashBlockSize))
		}
		err := forEach(l.blocks, p, func(w *worker, n uint64) error {
			if err := w.readHash(hash, l.first+n, i+1, expected[n*uint64(w.size):]); err != nil {
				return err
			}
			if i > 0 {
				copy(below[n*uint64(p.HashBlockSize):], w.block)
				return nil
			}
			first := n * p.perBlock()
			count := min(p.perBlock(), p.DataBlocks-first)
			return w.verifyData(data, first, w.block[:count*uint64(w.size)])
		})
		if err != nil {
			return err
		}
		expected = below
	}
	return nil
}

// readHash reads hash block n into w.block and compares it with the digest at
// the start of expected.
func (w *worker) readHash(hash io.ReaderAt, n uint64, level int, expected []byte) error {
	if got, err := hash.ReadAt(w.block, int64(n)*int64(len(w.block))); got < len(w.block) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("cannot read hash block %d: %w", n, err)
	}
	got := make([]byte, w.size)
	w.digest(w.block, got)
	if !bytes.Equal(got, expected[:w.size]) {
		return &BlockError{Level: level, Block: n}
	}
	return nil
}

// verifyData compares data blocks from block first on with their digests.
func (w *worker) verifyData(data io.ReaderAt, first uint64, expected []byte) error {
	got := make([]byte, len(expected))
	if err := w.hashData(data, first, got); err != nil {
		return err
	}
	for i := 0; i < len(got); i += w.size {
		if !bytes.Equal(got[i:i+w.size], expected[i:i+w.size]) {
			return &BlockError{Block: first + uint64(i/w.size)}
		}
	}
	return nil
}
