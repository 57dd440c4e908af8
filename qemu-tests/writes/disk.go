package writes

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
)

// blockSize is what a disk writes whole or not at all.
const blockSize = 512

// Disk is a disk's content at some time: a base that is not changed, and what
// was written to it since. It reads and writes in whole blocks of 512 bytes for
// writes, of any bytes for reads.
type Disk struct {
	base   io.ReaderAt
	blocks map[int64][]byte // what was written, by block
}

// NewDisk returns a disk with base's content.
func NewDisk(base io.ReaderAt) *Disk { return &Disk{base: base, blocks: map[int64][]byte{}} }

// Clone returns a disk with the same content, whose writes are its own.
func (d *Disk) Clone() *Disk { return &Disk{base: d.base, blocks: maps.Clone(d.blocks)} }

// ReadAt implements io.ReaderAt.
func (d *Disk) ReadAt(b []byte, off int64) (n int, err error) {
	for n < len(b) {
		number, in := (off+int64(n))/blockSize, (off+int64(n))%blockSize
		if block, ok := d.blocks[number]; ok {
			n += copy(b[n:], block[in:])
			continue
		}
		// As much of the base as no write covers.
		end := n + int(blockSize-in)
		for end < len(b) && d.blocks[(off+int64(end))/blockSize] == nil {
			end += blockSize
		}
		got, err := d.base.ReadAt(b[n:min(end, len(b))], off+int64(n))
		n += got
		if err != nil && n < len(b) {
			return n, err
		}
	}
	return n, nil
}

// WriteAt implements io.WriterAt.
func (d *Disk) WriteAt(b []byte, off int64) (int, error) {
	for done := 0; done < len(b); {
		number, in := (off+int64(done))/blockSize, (off+int64(done))%blockSize
		block := make([]byte, blockSize)
		if in != 0 || len(b)-done < blockSize {
			if _, err := d.ReadAt(block, number*blockSize); err != nil {
				return done, err
			}
		}
		done += copy(block[in:], b[done:])
		d.blocks[number] = block
	}
	return len(b), nil
}

// Sync does nothing: what is in a Disk is on the disk.
func (d *Disk) Sync() error { return nil }

// Apply writes the first n bytes of an entry's data.
func (d *Disk) Apply(r *Record, e Entry, n int64) error {
	data := make([]byte, min(n, e.Length))
	if _, err := r.data.ReadAt(data, e.at); err != nil {
		return fmt.Errorf("cannot read the data of a write at %d: %w", e.Offset, noEOF(err))
	}
	_, err := d.WriteAt(data, e.Offset)
	return err
}

// Digest is a digest of what was written to a range: equal digests, equal
// content.
func (d *Disk) Digest(offset, length int64) [sha256.Size]byte {
	var numbers []int64
	for number := range d.blocks {
		if at := number * blockSize; at >= offset && at < offset+length {
			numbers = append(numbers, number)
		}
	}
	slices.Sort(numbers)
	sum := sha256.New()
	for _, number := range numbers {
		binary.Write(sum, binary.LittleEndian, number)
		sum.Write(d.blocks[number])
	}
	return [sha256.Size]byte(sum.Sum(nil))
}

// ApplyAll writes the data of all entries that are writes.
func (d *Disk) ApplyAll(r *Record, entries []Entry) error {
	for _, e := range entries {
		if !e.Writes() {
			continue
		}
		if err := d.Apply(r, e, e.Length); err != nil {
			return err
		}
	}
	return nil
}

// Torn writes what a power cut in the middle of an epoch may leave: the cut is
// after a random entry; each write before it is on the disk, or is not, and of the one
// that the disk was just at only the beginning may be. The writes that a disk promised to
// keep (FUA) are.
func (d *Disk) Torn(r *Record, epoch []Entry, random *rand.Rand) error {
	done := epoch[:1+random.IntN(len(epoch))]
	at := random.IntN(len(done))
	for i, e := range done {
		n := e.Length
		switch {
		case e.Flags&FUA != 0:
		case i == at && e.Writes():
			n = random.Int64N(e.Length/blockSize+1) * blockSize
		case random.IntN(2) == 0:
			continue
		}
		if err := d.Apply(r, e, n); err != nil {
			return err
		}
	}
	return nil
}

// Save writes what differs from the base into a file that holds the base.
func (d *Disk) Save(path string) error { return d.SaveRange(path, 0, math.MaxInt64) }

// SaveRange writes what differs from the base in a range, of whole blocks, into a file
// that holds the base's range.
func (d *Disk) SaveRange(path string, offset, length int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("cannot save the disk: %w", err)
	}
	defer f.Close()
	for number, block := range d.blocks {
		at := number*blockSize - offset
		if at < 0 || at >= length {
			continue
		}
		if _, err := f.WriteAt(block, at); err != nil {
			return fmt.Errorf("cannot save the disk: %w", err)
		}
	}
	return f.Close()
}
