// Package writes reads the record that QEMU's block driver blklogwrites keeps
// of what a machine wrote to its disk, and makes from it the disks that a power
// cut could have left.
//
// The format is that of Linux's dm-log-writes (Documentation/admin-guide/
// device-mapper/log-writes.rst, drivers/md/dm-log-writes.c), as QEMU writes it:
// a super block in the first sector, then for each entry one sector of header
// and its data. All numbers are little-endian.
package writes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrFormat says that a record is none, is cut off, or cannot be true.
var ErrFormat = errors.New("not a record of writes")

const (
	magic      = 0x6a736677736872
	version    = 1
	headerSize = 32 // of an entry: sector, sectors, flags, length of a text
	superSize  = 28 // magic, version, entries, bytes in a sector
	// MaxEntries bounds what one record may hold.
	MaxEntries = 1 << 20
)

// Flag says what kind of request an entry is.
type Flag uint64

// The flags of an entry. An entry without Flush, Discard and Mark is a write.
const (
	Flush    Flag = 1 << iota // what was written before is durable
	FUA                       // this write is durable when it is done
	Discard                   // the range's content is not needed any more
	Mark                      // a remark
	allFlags = Flush | FUA | Discard | Mark
)

// Entry is one request.
type Entry struct {
	Offset, Length int64 // bytes on the disk
	Flags          Flag
	at             int64 // where the record holds the data
}

// Writes says that the request changed the disk's content.
func (e Entry) Writes() bool { return e.Length > 0 && e.Flags&(Discard|Mark) == 0 }

// Overlaps says that the request lies at least partly in a range of the disk.
func (e Entry) Overlaps(offset, length int64) bool {
	return e.Length > 0 && e.Offset < offset+length && offset < e.Offset+e.Length
}

// Record is what a machine asked of its disk, in order.
type Record struct {
	Entries []Entry
	data    io.ReaderAt
}

// Read reads a record of size bytes. Errors wrap ErrFormat or are those of r,
// which must stay open as long as the record's data is read.
func Read(r io.ReaderAt, size int64) (*Record, error) {
	super := make([]byte, superSize)
	if _, err := r.ReadAt(super, 0); err != nil {
		return nil, fmt.Errorf("cannot read the record's super block: %w", noEOF(err))
	}
	number := func(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	entries, sector := number(super, 2), int64(binary.LittleEndian.Uint32(super[24:]))
	switch {
	case number(super, 0) != magic || number(super, 1) != version:
		return nil, fmt.Errorf("cannot read the record: magic %#x, version %d: %w", number(super, 0), number(super, 1), ErrFormat)
	case sector < 512 || sector > 65536 || sector&(sector-1) != 0:
		return nil, fmt.Errorf("cannot read the record: %d bytes in a sector: %w", sector, ErrFormat)
	case entries > MaxEntries || int64(entries) > size/sector:
		return nil, fmt.Errorf("cannot read the record: %d entries in %d bytes: %w", entries, size, ErrFormat)
	}
	record := &Record{data: r, Entries: make([]Entry, 0, entries)}
	at := sector
	header := make([]byte, headerSize)
	for i := range entries {
		if _, err := r.ReadAt(header, at); err != nil {
			return nil, fmt.Errorf("cannot read entry %d of the record: %w", i, noEOF(err))
		}
		first, count, flags := number(header, 0), number(header, 1), Flag(number(header, 2))
		const limit = 1 << 44 // bytes: larger than any disk of a test
		if first > limit/uint64(sector) || count > limit/uint64(sector) || flags&^allFlags != 0 {
			return nil, fmt.Errorf("cannot read entry %d of the record: sector %d, %d sectors, flags %#x: %w", i, first, count, flags, ErrFormat)
		}
		e := Entry{Offset: int64(first) * sector, Length: int64(count) * sector, Flags: flags, at: at + sector}
		at += sector
		if e.Writes() {
			at += e.Length
		}
		if at > size {
			return nil, fmt.Errorf("cannot read entry %d of the record: it ends at %d of %d bytes: %w", i, at, size, ErrFormat)
		}
		record.Entries = append(record.Entries, e)
	}
	return record, nil
}

// noEOF makes the early end of a record an error of its format.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("it ends early: %w", ErrFormat)
	}
	return err
}

// Before returns how many entries begin before a place in the record, such as
// its size at some time while it grew.
func (r *Record) Before(at int64) int {
	for i, e := range r.Entries {
		if e.at > at {
			return i
		}
	}
	return len(r.Entries)
}

// Epochs returns the entries between flushes, in order: when a flush is done,
// all of the epochs before it are on the disk, and of the one after it any
// part. A last epoch that no flush ended is there too, when it is not empty.
func Epochs(entries []Entry) [][]Entry {
	var epochs [][]Entry
	var epoch []Entry
	for _, e := range entries {
		if e.Flags&Flush != 0 {
			if len(epoch) > 0 {
				epochs = append(epochs, epoch)
			}
			epoch = nil
		}
		if e.Writes() {
			epoch = append(epoch, e)
		}
	}
	if len(epoch) > 0 {
		epochs = append(epochs, epoch)
	}
	return epochs
}
