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
	stretch := p.FECSize() / int64(p.FECRoots)
	table := fecTable(p.FECRoots)
	return forEach(uint64((stretch+chunk-1)/chunk), p, func(w *worker, i uint64) error {
		at := int64(i) * chunk
		in := w.data[:min(chunk, stretch-at)]
		planes := make([][]byte, p.FECRoots)
		for j := range planes {
			planes[j] = make([]byte, len(in))
		}
		for k := range int64(fecWord - p.FECRoots) {
			if err := p.readCovered(data, hash, in, at+k*stretch); err != nil {
				return err
			}
			encode(table, in, planes)
		}
		out := make([]byte, 0, len(in)*p.FECRoots)
		for n := range in {
			for _, plane := range planes {
				out = append(out, plane[n])
			}
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

// encode adds a byte to the code word of each position: planes[j] holds the j-th
// coefficient of the remainders so far, the highest first. in is used up.
func encode(table [][256]byte, in []byte, planes [][]byte) {
	for n, r := range planes[0][:len(in)] {
		in[n] ^= r // what leaves the remainder
	}
	for j := range planes {
		row, to := &table[j], planes[j][:len(in)]
		if j == len(planes)-1 {
			for n, v := range in {
				to[n] = row[v]
			}
			return
		}
		from := planes[j+1][:len(in)]
		for n, v := range in {
			to[n] = from[n] ^ row[v]
		}
	}
}

// fecTable is, for each coefficient of the generator polynomial behind its
// highest one, that coefficient times every value. The polynomial's roots are the
// first powers of 2 in GF(256) modulo x⁸+x⁴+x³+x²+1.
func fecTable(roots int) [][256]byte {
	generator := []byte{1} // highest coefficient first
	root := byte(1)
	for range roots {
		next := append(generator, 0)
		for j := len(generator) - 1; j >= 0; j-- {
			next[j+1] ^= gfMul(generator[j], root)
		}
		generator, root = next, gfMul(root, 2)
	}
	table := make([][256]byte, roots)
	for j := range table {
		for v := range table[j] {
			table[j][v] = gfMul(byte(v), generator[j+1])
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
