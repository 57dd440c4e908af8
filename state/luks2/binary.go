package luks2

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// The binary header, big endian (struct luks2_hdr_disk, lib/luks2/luks2.h):
//
//	  0  magic, 6 bytes        "LUKS\xba\xbe", secondary "SKUL\xba\xbe"
//	  6  version, u16          2
//	  8  hdr_size, u64         with the JSON area
//	 16  seqid, u64            the higher copy is the newer one
//	 24  label, 48 bytes
//	 72  csum_alg, 32 bytes    "sha256"
//	104  salt, 64 bytes        differs between the copies
//	168  uuid, 40 bytes        text
//	208  subsystem, 48 bytes
//	256  hdr_offset, u64       where this copy lies
//	264  padding
//	448  csum, 64 bytes        of binary header (csum zero) and JSON area
//	512  padding up to 4096
const (
	binaryBytes    = 4096
	minHeaderBytes = 16 << 10
	maxHeaderBytes = 4 << 20

	offVersion    = 6
	offHdrSize    = 8
	offSeqID      = 16
	offLabel      = 24
	offCsumAlg    = 72
	offSalt       = 104
	offUUID       = 168
	offSubsystem  = 208
	offHdrOffset  = 256
	offCsum       = 448
	labelBytes    = 48
	csumAlgBytes  = 32
	hdrSaltBytes  = 64
	uuidBytes     = 40
	csumBytes     = 64
	offPadding    = 264
	offPadding2   = 512
	magicPrimary  = "LUKS\xba\xbe"
	magicSecond   = "SKUL\xba\xbe"
	csumAlgorithm = "sha256"
)

// diskCopy is one copy of the header whose checksum was right.
type diskCopy struct {
	hdrSize   uint64
	seqid     uint64
	label     string
	uuid      string
	subsystem string
	json      []byte // up to, without, its terminating NUL
	// malformed says what no tool writes, in a copy that is intact: for the
	// caller to refuse.
	malformed string
}

// same compares all that two copies of one header share.
func (c diskCopy) same(d diskCopy) bool {
	return c.hdrSize == d.hdrSize && c.seqid == d.seqid && c.label == d.label && c.uuid == d.uuid &&
		c.subsystem == d.subsystem && bytes.Equal(c.json, d.json)
}

var (
	errNoCopy = errors.New("no header copy")
	// errShort is one of the reasons: the device ends too early.
	errShort = fmt.Errorf("%w: device too small", errNoCopy)
)

// readCopy reads the copy at offset. An error that wraps errNoCopy means that
// there is none (which is normal for a torn one), any other that the device
// could not be read.
func readCopy(r io.ReaderAt, offset uint64, magic string, deviceSize uint64) (diskCopy, error) {
	bin := make([]byte, binaryBytes)
	if err := readFull(r, bin, offset, deviceSize); err != nil {
		return diskCopy{}, err
	}
	be := binary.BigEndian
	size := be.Uint64(bin[offHdrSize:])
	switch {
	case string(bin[:len(magic)]) != magic:
		return diskCopy{}, fmt.Errorf("%w: wrong magic", errNoCopy)
	case be.Uint16(bin[offVersion:]) != 2:
		return diskCopy{}, fmt.Errorf("%w: LUKS version %d", errNoCopy, be.Uint16(bin[offVersion:]))
	case size < minHeaderBytes || size > maxHeaderBytes || size&(size-1) != 0:
		return diskCopy{}, fmt.Errorf("%w: header size %d", errNoCopy, size)
	case be.Uint64(bin[offHdrOffset:]) != offset || (magic == magicSecond && size != offset):
		return diskCopy{}, fmt.Errorf("%w: header belongs to another place", errNoCopy)
	case cString(bin[offCsumAlg:][:csumAlgBytes]) != csumAlgorithm:
		return diskCopy{}, fmt.Errorf("%w: checksum algorithm is not %s", errNoCopy, csumAlgorithm)
	}
	area := make([]byte, size-binaryBytes)
	if err := readFull(r, area, offset+binaryBytes, deviceSize); err != nil {
		return diskCopy{}, err
	}
	want := bytes.Clone(bin[offCsum:][:csumBytes])
	clear(bin[offCsum:][:csumBytes])
	if got := checksum(bin, area); subtle.ConstantTimeCompare(got, want) != 1 {
		return diskCopy{}, fmt.Errorf("%w: wrong checksum", errNoCopy)
	}
	text, _, _ := bytes.Cut(area, []byte{0})
	return diskCopy{
		hdrSize:   size,
		seqid:     be.Uint64(bin[offSeqID:]),
		label:     cString(bin[offLabel:][:labelBytes]),
		uuid:      cString(bin[offUUID:][:uuidBytes]),
		subsystem: cString(bin[offSubsystem:][:labelBytes]),
		json:      text,
		malformed: malformed(bin, area),
	}, nil
}

// malformed names the field of a copy that is not NUL-terminated, or what is
// not zero behind the NUL: cryptsetup ignores it, and ours is no place to hide.
func malformed(bin, area []byte) string {
	for _, f := range []struct {
		name  string
		bytes []byte
	}{
		{"JSON area", area},
		{"label", bin[offLabel:][:labelBytes]},
		{"checksum algorithm", bin[offCsumAlg:][:csumAlgBytes]},
		{"UUID", bin[offUUID:][:uuidBytes]},
		{"subsystem", bin[offSubsystem:][:labelBytes]},
	} {
		_, rest, terminated := bytes.Cut(f.bytes, []byte{0})
		if !terminated {
			return f.name + " is not terminated"
		}
		if !zero(rest) {
			return "surplus bytes behind the " + f.name
		}
	}
	if !zero(bin[offPadding:offCsum]) || !zero(bin[offPadding2:]) {
		return "surplus bytes in the padding"
	}
	return ""
}

func zero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// readFull fills b. The end of the device is not an I/O error: a header that
// does not fit is not there.
func readFull(r io.ReaderAt, b []byte, offset, deviceSize uint64) error {
	if offset > deviceSize || uint64(len(b)) > deviceSize-offset {
		return errShort
	}
	n, err := r.ReadAt(b, int64(offset))
	switch {
	case n == len(b):
		return nil
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return errShort
	}
	return fmt.Errorf("cannot read %d bytes at %d: %w", len(b), offset, err)
}

// cString returns the text before the first NUL.
func cString(b []byte) string {
	text, _, _ := bytes.Cut(b, []byte{0})
	return string(text)
}

// checksum is over a binary header whose csum field is zero and the JSON area,
// padded as the field on the disk is.
func checksum(bin, area []byte) []byte {
	h := sha256.New()
	h.Write(bin)
	h.Write(area)
	return h.Sum(make([]byte, 0, csumBytes))[:csumBytes:csumBytes]
}

// encode returns the copy as it lies at offset.
func (c diskCopy) encode(offset uint64, magic string, salt []byte) []byte {
	b := make([]byte, c.hdrSize)
	be := binary.BigEndian
	copy(b, magic)
	be.PutUint16(b[offVersion:], 2)
	be.PutUint64(b[offHdrSize:], c.hdrSize)
	be.PutUint64(b[offSeqID:], c.seqid)
	copy(b[offLabel:][:labelBytes-1], c.label)
	copy(b[offCsumAlg:][:csumAlgBytes], csumAlgorithm)
	copy(b[offSalt:][:hdrSaltBytes], salt)
	copy(b[offUUID:][:uuidBytes-1], c.uuid)
	copy(b[offSubsystem:][:labelBytes-1], c.subsystem)
	be.PutUint64(b[offHdrOffset:], offset)
	copy(b[binaryBytes:len(b)-1], c.json)
	copy(b[offCsum:], checksum(b[:binaryBytes], b[binaryBytes:]))
	return b
}

// found is the newest intact copy and where the other one stands.
type found struct {
	diskCopy
	// secondStale: the secondary is torn or older, so the primary is all there
	// is, and the next update has to overwrite the secondary first. When the
	// primary is stale the usual order, primary first, is right anyway.
	secondStale bool
	// torn: there is no other intact copy. Otherwise older is its JSON where it
	// is older.
	torn  bool
	older []byte
}

// findCopy picks the newest intact copy of the two.
func findCopy(r io.ReaderAt, deviceSize uint64) (found, error) {
	p, perr := readCopy(r, 0, magicPrimary, deviceSize)
	var s diskCopy
	serr := errNoCopy
	if perr == nil {
		s, serr = readCopy(r, p.hdrSize, magicSecond, deviceSize)
	} else {
		// Without a primary the size is unknown; the secondary lies at one of
		// the nine permitted header sizes.
		for off := uint64(minHeaderBytes); off <= maxHeaderBytes && serr != nil; off *= 2 {
			var err error
			if s, err = readCopy(r, off, magicSecond, deviceSize); err == nil || !errors.Is(err, errNoCopy) {
				serr = err
			}
		}
	}
	switch {
	case perr == nil && serr == nil && p.seqid == s.seqid && !p.same(s):
		// An update that was cut short leaves another number or a torn copy.
		return found{}, fmt.Errorf("%w: both copies are number %d and they disagree", ErrHeader, p.seqid)
	case perr == nil && serr == nil && p.seqid == s.seqid:
		return found{diskCopy: p}, nil
	case perr == nil && (serr != nil || p.seqid > s.seqid):
		return found{diskCopy: p, secondStale: true, torn: serr != nil, older: s.json}, nil
	case serr == nil:
		return found{diskCopy: s, torn: perr != nil, older: p.json}, nil
	case !errors.Is(perr, errNoCopy):
		return found{}, fmt.Errorf("cannot read LUKS2 header: %w", perr)
	case !errors.Is(serr, errNoCopy):
		return found{}, fmt.Errorf("cannot read LUKS2 header: %w", serr)
	}
	return found{}, fmt.Errorf("%w: %s", ErrNotLUKS2, strings.TrimPrefix(perr.Error(), errNoCopy.Error()+": "))
}

// validUUID accepts the lower-case text form only. The UUID becomes part of a
// key description in the dm table, where a space would be another field.
func validUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return false
			}
		case (c < '0' || c > '9') && (c < 'a' || c > 'f'):
			return false
		}
	}
	return true
}
