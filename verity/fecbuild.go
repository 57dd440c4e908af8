package verity

import (
	"fmt"
	"io"
)

// BuildFEC reads data and the tree that is built over them, and writes the
// parity behind the tree. It works on all processors, as Build does.
func BuildFEC(data, hash io.ReaderAt, p Params, parity io.WriterAt) error {
	if err := p.Validate(); err != nil {
		return err
	}
	if p.FECRoots == 0 {
		return fmt.Errorf("%w: no parity is asked for", ErrParams)
	}
	const chunk = 32 << 10 // positions at a time
	stretch := p.stretch()
	table := fecTable(p.FECRoots)
	return forEach(uint64((stretch+chunk-1)/chunk), p, func(w *worker, i uint64) error {
		at := int64(i) * chunk
		in := w.data[:min(chunk, stretch-at)]
		out := make([]byte, len(in)*p.FECRoots)
		for k := range int64(fecWord - p.FECRoots) {
			if err := p.readCovered(data, hash, in, at+k*stretch); err != nil {
				return err
			}
			encode(table, p.FECRoots, in, out)
		}
		_, err := parity.WriteAt(out, p.HashSize()+at*int64(p.FECRoots))
		if err != nil {
			return fmt.Errorf("cannot write parity: %w", err)
		}
		return nil
	})
}

// OfArea returns the parameters with the parity that fills a hash area of size
// bytes exactly, or with none. ErrParams: it has another size.
func (p Params) OfArea(size int64) (Params, error) {
	p.FECRoots = 0
	if p.HashSize() == size {
		return p, nil
	}
	for roots := minFECRoots; roots <= maxFECRoots; roots++ {
		if p.FECRoots = roots; p.Validate() == nil && p.AreaSize() == size {
			return p, nil
		}
	}
	return Params{}, fmt.Errorf("%w: a hash area of %d bytes is neither a tree alone nor one with parity", ErrParams, size)
}

// readCovered reads what the parity covers: the data, behind them the tree,
// and zeros for ever.
func (p Params) readCovered(data, hash io.ReaderAt, b []byte, off int64) error {
	clear(b)
	tree := int64(p.HashStart) * int64(p.HashBlockSize)
	for _, part := range []struct {
		name       string
		from       io.ReaderAt
		start, end int64 // in what is covered
		at         int64 // of start, on its device
	}{
		{"data", data, 0, p.DataSize(), 0},
		{"hash tree", hash, p.DataSize(), p.DataSize() + p.TreeSize(), tree},
	} {
		from, to := max(off, part.start), min(off+int64(len(b)), part.end)
		if from >= to {
			continue
		}
		want := b[from-off : to-off]
		if n, err := part.from.ReadAt(want, part.at+from-part.start); n < len(want) {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("cannot read %s for the parity: %w", part.name, err)
		}
	}
	return nil
}

// encode adds one byte to the code word of each position: out holds roots bytes
// of each, the remainder so far, highest coefficient first.
func encode(table *[256][maxFECRoots]byte, roots int, in, out []byte) {
	for i, d := range in {
		word := out[i*roots : i*roots+roots]
		row := table[d^word[0]][:roots]
		last := len(word) - 1
		for j := range last {
			word[j] = word[j+1] ^ row[j]
		}
		word[last] = row[last]
	}
}

// fecTable is, for each value of the byte that leaves the remainder, that byte
// times the generator polynomial, whose roots are the first powers of 2 in
// GF(256) modulo x⁸+x⁴+x³+x²+1.
func fecTable(roots int) *[256][maxFECRoots]byte {
	generator := []byte{1} // highest coefficient first
	root := byte(1)
	for range roots {
		next := append(generator, 0)
		for j := len(generator) - 1; j >= 0; j-- {
			next[j+1] ^= gfMul(generator[j], root)
		}
		generator, root = next, gfMul(root, 2)
	}
	table := new([256][maxFECRoots]byte)
	for v := range table {
		for j := range roots {
			table[v][j] = gfMul(byte(v), generator[j+1])
		}
	}
	return table
}

// gfMul multiplies in GF(256).
func gfMul(a, b byte) byte {
	var product byte
	for ; b != 0; b >>= 1 {
		if b&1 != 0 {
			product ^= a
		}
		high := a & 0x80
		a <<= 1
		if high != 0 {
			a ^= 0x1d
		}
	}
	return product
}
