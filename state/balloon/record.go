package balloon

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrRecord: what is read is no record.
var ErrRecord = errors.New("no record of what was given back")

const (
	recordMagic = "SRGIVEN1"
	volumeBytes = 36 // the UUID of a LUKS2 header, as text
	headBytes   = len(recordMagic) + 8 + volumeBytes + 4
	rangeBytes  = 16
	// SlotBytes is the room of a record. The file has two, of which the older one is
	// written over in place: that needs no room in a file system that is full.
	SlotBytes = 256 << 10
	FileBytes = 2 * SlotBytes
	// MaxRanges is how many ranges fit.
	MaxRanges = (SlotBytes - headBytes - sha256.Size) / rangeBytes
)

// Record says which ranges of encrypted.img nobody need hold: balloons in it have
// them, unless a power cut came between.
type Record struct {
	Serial uint64 // the one that comes after the other counts, also where it begins anew at 0
	Volume string // UUID in the LUKS2 header: 36 characters
	Given  []Range
}

// Encode makes a slot of the file: magic, serial number, volume, number of ranges,
// their starts and ends (little endian), SHA-256 of all before it, zeros.
func (r Record) Encode() ([]byte, error) {
	if len(r.Volume) != volumeBytes {
		return nil, fmt.Errorf("cannot record what was given back: volume %q", r.Volume)
	}
	if len(r.Given) > MaxRanges {
		return nil, fmt.Errorf("cannot record what was given back: %d ranges, at most %d", len(r.Given), MaxRanges)
	}
	le := binary.LittleEndian
	b := make([]byte, 0, SlotBytes)
	b = append(b, recordMagic...)
	b = le.AppendUint64(b, r.Serial)
	b = append(b, r.Volume...)
	b = le.AppendUint32(b, uint32(len(r.Given)))
	for _, g := range r.Given {
		b = le.AppendUint64(b, uint64(g.Start))
		b = le.AppendUint64(b, uint64(g.End))
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)[:SlotBytes], nil
}

// Decode reads a slot. Errors: ErrRecord.
func Decode(b []byte) (Record, error) {
	le := binary.LittleEndian
	if len(b) != SlotBytes || string(b[:len(recordMagic)]) != recordMagic {
		return Record{}, ErrRecord
	}
	n := int64(le.Uint32(b[headBytes-4:]))
	if n > int64(MaxRanges) {
		return Record{}, fmt.Errorf("%w: %d ranges", ErrRecord, n)
	}
	end := headBytes + int(n)*rangeBytes
	if sum := sha256.Sum256(b[:end]); !bytes.Equal(sum[:], b[end:][:sha256.Size]) {
		return Record{}, fmt.Errorf("%w: wrong checksum", ErrRecord)
	}
	r := Record{Serial: le.Uint64(b[len(recordMagic):]), Volume: string(b[len(recordMagic)+8:][:volumeBytes])}
	last := int64(0)
	for i := range int(n) {
		at := b[headBytes+i*rangeBytes:]
		g := Range{int64(le.Uint64(at)), int64(le.Uint64(at[8:]))}
		if g.Start <= last || g.End <= g.Start || g.Start%BlockSize != 0 || g.End%BlockSize != 0 {
			return Record{}, fmt.Errorf("%w: range %d is from %d to %d", ErrRecord, i, g.Start, g.End)
		}
		r.Given, last = append(r.Given, g), g.End
	}
	return r, nil
}

// Latest is the record of the volume that counts in a file, and its slot, 0 or 1.
// Without one it is empty, and of slot 1.
func Latest(file []byte, volume string) (r Record, slot int) {
	r, slot = Record{Volume: volume}, 1
	found := false
	for i := range 2 {
		if len(file) < (i+1)*SlotBytes {
			break
		}
		s, err := Decode(file[i*SlotBytes:][:SlotBytes])
		if err == nil && s.Volume == volume && (!found || int64(s.Serial-r.Serial) > 0) {
			r, slot, found = s, i, true
		}
	}
	return r, slot
}
