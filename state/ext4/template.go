package ext4

import (
	"bytes"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

//go:generate go run ./gentemplate -o template.bin

// template is a file system that mke2fs made, packed by gentemplate: its parts
// in use, from the start, in records that follow each other without a gap.
//
//	kind byte   recordFill | recordData
//	length u32  little endian, bytes
//	data        one byte to repeat, or length bytes
//
// Zeros are written too, not skipped: on a new dm-crypt device every block
// that was never written reads as noise.
//
//go:embed template.bin
var template string

// TemplateBytes is the size of the file system that WriteTemplate writes:
// 16384 blocks of 4 KiB with a 16 MiB journal and one inode for 8 KiB in the
// (only) group, which becomes one for 16 KiB as it grows. It has one block
// group, so no backup superblocks until it is grown.
const TemplateBytes = 64 << 20

const (
	// secondGroup is where it begins, in bytes: 32768 blocks of 4 KiB.
	secondGroup = 128 << 20

	recordFill = 0
	recordData = 1
	// writeChunk is the size of one write, and what the first one must hold:
	// the superblock, which is changed before it is written.
	writeChunk = 1 << 20
)

var errTemplate = errors.New("template is damaged")

// WriteTemplate writes a new, empty file system of TemplateBytes to the start
// of w, about 19 MB, and does not sync. uuid and hashSeed (of directory
// hashes) must be random and new. The file system is marked
// metadata_csum_seed, so all checksums but the superblock's stay valid.
func WriteTemplate(w io.WriterAt, uuid, hashSeed [16]byte) error {
	buf := make([]byte, 0, writeChunk)
	at := int64(0)
	flush := func() error {
		if at == 0 {
			if err := identify(buf, uuid, hashSeed); err != nil {
				return err
			}
		}
		if _, err := w.WriteAt(buf, at); err != nil {
			return err
		}
		at += int64(len(buf))
		buf = buf[:0]
		return nil
	}
	for rest := template; len(rest) > 0; {
		var rec record
		var err error
		if rec, rest, err = nextRecord(rest); err != nil {
			return fmt.Errorf("cannot write ext4: %w", err)
		}
		for rec.length > 0 {
			n := min(rec.length, writeChunk-len(buf))
			buf = rec.appendTo(buf, n)
			if len(buf) < writeChunk {
				continue
			}
			if err := flush(); err != nil {
				return fmt.Errorf("cannot write ext4: %w", err)
			}
		}
	}
	if len(buf) > 0 {
		if err := flush(); err != nil {
			return fmt.Errorf("cannot write ext4: %w", err)
		}
	}
	return nil
}

// firstSector is how much of the superblock a disk writes at once. It has the
// counters of mounts, and all that identify changes but the checksum.
const firstSector = 512

// Unused tells whether the file system whose beginning b is was written by
// WriteTemplate and not mounted since: every mount for writing changes the first
// sector of the superblock. What else of it reached the disk does not matter.
func Unused(b []byte) (bool, error) {
	want, err := templateHead(superblockOffset + firstSector)
	if err != nil {
		return false, err
	}
	if len(b) < len(want) {
		return false, nil
	}
	got := bytes.Clone(b[superblockOffset:len(want)])
	want = want[superblockOffset:]
	for _, field := range []int{sbUUID, sbHashSeed} {
		copy(got[field:][:16], want[field:])
	}
	return bytes.Equal(got, want), nil
}

// templateHead is the beginning of the template.
func templateHead(size int) (head []byte, err error) {
	for rest := template; len(head) < size; {
		var rec record
		if rec, rest, err = nextRecord(rest); err != nil {
			return nil, err
		}
		head = rec.appendTo(head, min(rec.length, size-len(head)))
	}
	return head, nil
}

// BackupSuperblock tells whether r has the first copy of a superblock, which is where
// the second block group begins: a file system of 4 KiB blocks with more than one.
func BackupSuperblock(r io.ReaderAt) (bool, error) {
	b := make([]byte, superblockBytes)
	if n, err := r.ReadAt(b, secondGroup); n < len(b) {
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		return false, fmt.Errorf("cannot read the copy of an ext4 superblock: %w", err)
	}
	_, err := parseSuperblock(b)
	return err == nil, nil
}

// identify puts uuid and hash seed into the superblock of the file system
// whose start b is. s_checksum_seed stays, and with it every other checksum.
func identify(b []byte, uuid, hashSeed [16]byte) error {
	if len(b) < superblockOffset+superblockBytes {
		return errTemplate
	}
	sb := b[superblockOffset:][:superblockBytes]
	copy(sb[sbUUID:], uuid[:])
	copy(sb[sbHashSeed:], hashSeed[:])
	binary.LittleEndian.PutUint32(sb[sbChecksum:], superblockSum(sb))
	return nil
}

// record is one record of the template, or what is left of it.
type record struct {
	length int
	fill   byte
	data   string // of recordData
}

func nextRecord(s string) (record, string, error) {
	if len(s) < 6 {
		return record{}, "", errTemplate
	}
	length := int(binary.LittleEndian.Uint32([]byte(s[1:5])))
	switch {
	case length == 0 || length > TemplateBytes:
	case s[0] == recordFill:
		return record{length: length, fill: s[5]}, s[6:], nil
	case s[0] == recordData && length <= len(s)-5:
		return record{length: length, data: s[5 : 5+length]}, s[5+length:], nil
	}
	return record{}, "", errTemplate
}

// appendTo moves n bytes of the record to buf.
func (r *record) appendTo(buf []byte, n int) []byte {
	r.length -= n
	if r.data != "" {
		buf = append(buf, r.data[:n]...)
		r.data = r.data[n:]
		return buf
	}
	for range n {
		buf = append(buf, r.fill)
	}
	return buf
}
