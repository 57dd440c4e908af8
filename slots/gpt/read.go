package gpt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"unicode/utf16"

	"sealroot/slots/guid"
)

// Fields of the header, in bytes from its beginning (UEFI 2.10, table 5.5).
const (
	offRevision    = 8
	offHeaderSize  = 12
	offHeaderCRC   = 16
	offMyLBA       = 24
	offAlternate   = 32
	offFirstUsable = 40
	offLastUsable  = 48
	offDisk        = 56
	offEntriesLBA  = 72
	offCount       = 80
	offEntrySize   = 84
	offEntriesCRC  = 88
	minHeader      = 92
)

// Signature begins the header, which lies in the second sector.
const Signature = "EFI PART"

const (
	revision     = 0x00010000
	maxEntries   = 1024
	minEntrySize = 128
	maxEntrySize = 4096
	nameUnits    = 36
)

// half is one copy of the table.
type half struct {
	header      []byte
	alternate   uint64
	first, last uint64
	disk        guid.GUID
	entriesLBA  uint64
	count, size int
	raw         []byte
	parts       []Partition
}

// Read reads and checks both copies of the table on a device of size bytes.
// One good copy is enough (see PrimaryBad, BackupBad); ErrNoTable when there is
// none. sectorSize is 512 or 4096.
func Read(r io.ReaderAt, size int64, sectorSize int) (*Table, error) {
	if sectorSize != 512 && sectorSize != 4096 {
		return nil, fmt.Errorf("cannot read a GPT with sectors of %d bytes: %w", sectorSize, ErrBounds)
	}
	sectors := uint64(max(size, 0)) / uint64(sectorSize)
	if sectors < 6 {
		return nil, fmt.Errorf("cannot read a GPT from %d sectors: %w", sectors, ErrNoTable)
	}
	primary, primaryErr := readHalf(r, 1, sectors, sectorSize)
	backupAt := sectors - 1
	if primaryErr == nil && primary.alternate < sectors {
		// a disk image copied to a larger disk has its backup where it was
		backupAt = primary.alternate
	}
	backup, backupErr := readHalf(r, backupAt, sectors, sectorSize)
	if backupErr == nil && backup.alternate != 1 {
		backup, backupErr = nil, fmt.Errorf("cannot use the backup: its primary is in sector %d: %w", backup.alternate, ErrHeader)
	}
	good := primary
	if primaryErr != nil {
		good = backup
	}
	if good == nil {
		return nil, fmt.Errorf("cannot read the partition table: %w: %w; %w", ErrNoTable, primaryErr, backupErr)
	}
	l, err := placeCopies(good, backupAt, sectorSize)
	if err != nil {
		return nil, fmt.Errorf("cannot read the partition table: %w: %w", ErrNoTable, err)
	}
	if primary != nil {
		l.primary = primary.entriesLBA
	}
	if backup != nil && backup.count == good.count && backup.size == good.size {
		l.backupEntries = backup.entriesLBA
	}
	t := &Table{
		Disk: good.disk, SectorSize: sectorSize, Sectors: sectors,
		FirstUsable: good.first, LastUsable: good.last,
		Partitions: good.parts, PrimaryBad: primaryErr, BackupBad: backupErr,
		raw: good.raw, layout: l,
	}
	if primary == nil {
		t.unchecked = uncheckedUUIDs(r, sectorSize)
	}
	if primary != nil && backup != nil {
		t.Differ = primary.disk != backup.disk || !bytes.Equal(primary.raw, backup.raw)
	}
	return t, nil
}

// uncheckedUUIDs are the UUIDs of the entries where a primary copy that is damaged
// has them as a rule; nil when they cannot be read.
func uncheckedUUIDs(r io.ReaderAt, sectorSize int) []guid.GUID {
	raw := make([]byte, newEntries*minEntrySize)
	if readFull(r, raw, 2*int64(sectorSize)) != nil {
		return nil
	}
	out := make([]guid.GUID, newEntries)
	for i := range out {
		out[i] = guid.GUID(raw[i*minEntrySize+16:])
	}
	return out
}

// placeCopies says where a copy derived from the good one belongs, and that
// neither would reach into the partitions.
func placeCopies(h *half, backup uint64, sectorSize int) (layout, error) {
	l := layout{header: h.header, count: h.count, size: h.size, primary: 2, backup: backup}
	n := entrySectors(h.count, h.size, sectorSize)
	if l.primary+n > h.first || backup < n || backup-n <= h.last {
		return layout{}, fmt.Errorf("cannot place both copies: %w", ErrBounds)
	}
	l.backupEntries = backup - n
	return l, nil
}

func entrySectors(count, size, sectorSize int) uint64 {
	return uint64(count*size+sectorSize-1) / uint64(sectorSize)
}

// readHalf reads the copy whose header is in sector lba.
func readHalf(r io.ReaderAt, lba, sectors uint64, sectorSize int) (*half, error) {
	if lba == 0 || lba >= sectors {
		return nil, fmt.Errorf("cannot read the header in sector %d: %w", lba, ErrBounds)
	}
	b := make([]byte, sectorSize)
	if err := readFull(r, b, int64(lba)*int64(sectorSize)); err != nil {
		return nil, fmt.Errorf("cannot read the header in sector %d: %w", lba, err)
	}
	h, err := parseHeader(b, lba, sectors)
	if err != nil {
		return nil, fmt.Errorf("cannot read the header in sector %d: %w", lba, err)
	}
	h.raw = make([]byte, h.count*h.size)
	if err := readFull(r, h.raw, int64(h.entriesLBA)*int64(sectorSize)); err != nil {
		return nil, fmt.Errorf("cannot read the entries in sector %d: %w", h.entriesLBA, err)
	}
	if crc32.ChecksumIEEE(h.raw) != binary.LittleEndian.Uint32(h.header[offEntriesCRC:]) {
		return nil, fmt.Errorf("cannot use the entries in sector %d: %w", h.entriesLBA, ErrChecksum)
	}
	h.parts, err = parseEntries(h)
	if err != nil {
		return nil, err
	}
	return h, nil
}

// parseHeader checks a header in the sector b.
func parseHeader(b []byte, lba, sectors uint64) (*half, error) {
	le := binary.LittleEndian
	if string(b[:8]) != Signature || le.Uint32(b[offRevision:]) != revision {
		return nil, ErrHeader
	}
	n := int(le.Uint32(b[offHeaderSize:]))
	if n < minHeader || n > len(b) {
		return nil, ErrHeader
	}
	if headerCRC(b[:n]) != le.Uint32(b[offHeaderCRC:]) {
		return nil, ErrChecksum
	}
	h := &half{
		header:     b[:n:n],
		alternate:  le.Uint64(b[offAlternate:]),
		first:      le.Uint64(b[offFirstUsable:]),
		last:       le.Uint64(b[offLastUsable:]),
		disk:       guid.GUID(b[offDisk : offDisk+16]),
		entriesLBA: le.Uint64(b[offEntriesLBA:]),
	}
	count, size := le.Uint32(b[offCount:]), le.Uint32(b[offEntrySize:])
	if count < 1 || count > maxEntries || size < minEntrySize || size > maxEntrySize || size&(size-1) != 0 {
		return nil, ErrHeader
	}
	h.count, h.size = int(count), int(size)
	es := entrySectors(h.count, h.size, len(b))
	switch {
	case le.Uint64(b[offMyLBA:]) != lba:
		return nil, ErrHeader
	case h.first > h.last || h.last >= sectors:
		return nil, ErrBounds
	case h.entriesLBA < 2 || h.entriesLBA >= sectors || h.entriesLBA+es > sectors:
		return nil, ErrBounds
	case lba < h.first && h.entriesLBA+es > h.first:
		return nil, ErrBounds // the primary's entries lie before the partitions
	case lba >= h.first && (h.last >= h.entriesLBA || h.entriesLBA+es > lba):
		return nil, ErrBounds // the backup's between the partitions and its header
	}
	return h, nil
}

// headerCRC is the CRC-32 of a header with its own field taken as zero.
func headerCRC(b []byte) uint32 {
	c := append([]byte(nil), b...)
	clear(c[offHeaderCRC : offHeaderCRC+4])
	return crc32.ChecksumIEEE(c)
}

func parseEntries(h *half) ([]Partition, error) {
	var out []Partition
	for i := range h.count {
		e := h.raw[i*h.size : (i+1)*h.size]
		p := Partition{
			Number: i + 1, Type: guid.GUID(e[0:16]), UUID: guid.GUID(e[16:32]),
			First:      binary.LittleEndian.Uint64(e[32:]),
			Last:       binary.LittleEndian.Uint64(e[40:]),
			Attributes: Attributes(binary.LittleEndian.Uint64(e[48:])),
			Name:       decodeName(e[56 : 56+2*nameUnits]),
		}
		if p.Type.IsZero() {
			continue
		}
		if p.First > p.Last || p.First < h.first || p.Last > h.last {
			return nil, fmt.Errorf("cannot use partition %d: %w", p.Number, ErrBounds)
		}
		out = append(out, p)
	}
	return out, nil
}

func decodeName(b []byte) string {
	var u []uint16
	for i := 0; i+1 < len(b); i += 2 {
		c := binary.LittleEndian.Uint16(b[i:])
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}

// readFull reads all of b; the end of the device in between is an error.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}
