// Package slotstest is a disk in memory that loses power on request, for the
// tests of everything that writes what the next boot depends on.
package slotstest

import (
	"errors"
	"io"
	"math/rand/v2"
)

// ErrPowerCut is what every operation after the cut returns.
var ErrPowerCut = errors.New("power cut")

// Sector is the unit in which a write can be torn.
const Sector = 512

// Disk is a device of fixed size. Writes are seen at once by reads, and are
// durable after Sync only.
type Disk struct {
	durable []byte
	current []byte
	pending []piece
	ops     int // done so far
	limit   int // operations that still succeed; -1: no limit
}

// piece is an unsynced part of a write inside one sector.
type piece struct {
	off  int64
	data []byte
}

// NewDisk returns a disk with the content given, without a limit.
func NewDisk(content []byte) *Disk {
	return &Disk{durable: clone(content), current: clone(content), limit: -1}
}

// CutAfter lets n more writes and syncs succeed and cuts the power then. The
// operation that meets the cut may have happened in part: a write is pending,
// a sync made nothing durable for certain.
func (d *Disk) CutAfter(n int) { d.limit = d.ops + n }

// Ops is how many writes and syncs succeeded.
func (d *Disk) Ops() int { return d.ops }

// Size is the size in bytes.
func (d *Disk) Size() int64 { return int64(len(d.current)) }

// Bytes returns a copy of what reads see.
func (d *Disk) Bytes() []byte { return clone(d.current) }

// ReadAt reads; it works until the power is cut.
func (d *Disk) ReadAt(b []byte, off int64) (int, error) {
	if d.dead() {
		return 0, ErrPowerCut
	}
	if off < 0 || off > d.Size() {
		return 0, io.EOF
	}
	n := copy(b, d.current[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt writes; the bytes are pending until the next Sync.
func (d *Disk) WriteAt(b []byte, off int64) (int, error) {
	if d.limit >= 0 && d.ops > d.limit {
		return 0, ErrPowerCut
	}
	if off < 0 || off+int64(len(b)) > d.Size() {
		return 0, io.ErrShortWrite
	}
	for rest, at := b, off; len(rest) > 0; {
		n := min(len(rest), Sector-int(at%Sector))
		d.pending = append(d.pending, piece{at, clone(rest[:n])})
		rest, at = rest[n:], at+int64(n)
	}
	if d.cut() {
		return 0, ErrPowerCut
	}
	copy(d.current[off:], b)
	return len(b), nil
}

// Sync makes all pending writes durable.
func (d *Disk) Sync() error {
	if d.dead() || d.cut() {
		return ErrPowerCut
	}
	copy(d.durable, d.current)
	d.pending = nil
	return nil
}

// cut counts an operation and says whether the power goes off in it.
func (d *Disk) cut() bool {
	if d.limit >= 0 && d.ops >= d.limit {
		d.ops = d.limit + 1
		return true
	}
	d.ops++
	return false
}

func (d *Disk) dead() bool { return d.limit >= 0 && d.ops > d.limit }

// Outcomes returns what the disk may hold after the cut: the durable bytes
// with any subset of the pending sectors. All subsets when these are at most
// 2^8, else none, all, each alone, all but each, and random ones.
func (d *Disk) Outcomes(random int, seed uint64) [][]byte {
	n := len(d.pending)
	var out [][]byte
	add := func(keep func(int) bool) {
		b := clone(d.durable)
		for i, p := range d.pending {
			if keep(i) {
				copy(b[p.off:], p.data)
			}
		}
		out = append(out, b)
	}
	if n <= 8 {
		for set := range 1 << n {
			add(func(i int) bool { return set>>i&1 == 1 })
		}
		return out
	}
	add(func(int) bool { return false })
	add(func(int) bool { return true })
	for k := range n {
		add(func(i int) bool { return i == k })
		add(func(i int) bool { return i != k })
	}
	r := rand.New(rand.NewPCG(seed, 1))
	for range random {
		add(func(int) bool { return r.IntN(2) == 1 })
	}
	return out
}

func clone(b []byte) []byte { return append([]byte(nil), b...) }
