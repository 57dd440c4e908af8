package verity

import (
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
)

// readSize is how much data a worker reads at once; a block may be larger.
const readSize = 256 << 10

// worker is what one goroutine needs; nothing is shared between them.
type worker struct {
	h       hash.Hash
	salt    []byte
	size    int    // of a digest
	dataLen int    // of a data block
	block   []byte // one hash block
	data    []byte // whole data blocks
}

func newWorker(p Params) *worker {
	return &worker{
		h:       p.Algorithm.new(),
		salt:    p.Salt,
		size:    p.Algorithm.Size(),
		dataLen: p.DataBlockSize,
		block:   make([]byte, p.HashBlockSize),
		data:    make([]byte, max(readSize, p.DataBlockSize)),
	}
}

// digest puts the salted hash of block at the start of dst.
func (w *worker) digest(block, dst []byte) {
	w.h.Reset()
	w.h.Write(w.salt)
	w.h.Write(block)
	w.h.Sum(dst[:0])
}

// hashData hashes as many data blocks from block first on as dst has room for.
func (w *worker) hashData(data io.ReaderAt, first uint64, dst []byte) error {
	for len(dst) > 0 {
		want := min(len(w.data)/w.dataLen, len(dst)/w.size) * w.dataLen
		off := int64(first) * int64(w.dataLen)
		if n, err := data.ReadAt(w.data[:want], off); n < want {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("cannot read data block %d: %w", first+uint64(n/w.dataLen), err)
		}
		for at := 0; at < want; at += w.dataLen {
			w.digest(w.data[at:at+w.dataLen], dst)
			dst = dst[w.size:]
			first++
		}
	}
	return nil
}

// forEach calls f for 0..n-1 on all processors. Numbers are handed out in order
// and none after a failure, so that the error returned is always that of the
// lowest number that fails.
func forEach(n uint64, p Params, f func(w *worker, i uint64) error) error {
	var (
		next   atomic.Uint64
		failed atomic.Bool
		mu     sync.Mutex
		lowest = n
		result error
		wg     sync.WaitGroup
	)
	for range min(uint64(runtime.GOMAXPROCS(0)), n) {
		wg.Go(func() {
			w := newWorker(p)
			for !failed.Load() {
				i := next.Add(1) - 1
				if i >= n {
					return
				}
				if err := f(w, i); err != nil {
					mu.Lock()
					if i < lowest {
						lowest, result = i, err
					}
					mu.Unlock()
					failed.Store(true)
				}
			}
		})
	}
	wg.Wait()
	return result
}
