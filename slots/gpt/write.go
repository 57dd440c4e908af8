package gpt

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"unicode/utf16"

	"sealroot/slots/guid"
)

const (
	newEntries = 128 // the size that every tool makes and some demand
	mbrTable   = 446 // partition entries of the protective MBR
)

// New returns an empty table for a device of size bytes, with 128 entries.
func New(disk guid.GUID, size int64, sectorSize int) (*Table, error) {
	if sectorSize != 512 && sectorSize != 4096 {
		return nil, fmt.Errorf("cannot make a GPT with sectors of %d bytes: %w", sectorSize, ErrBounds)
	}
	n := entrySectors(newEntries, minEntrySize, sectorSize)
	sectors := uint64(max(size, 0)) / uint64(sectorSize)
	if sectors < 2*n+4 {
		return nil, fmt.Errorf("cannot make a GPT on %d sectors: %w", sectors, ErrBounds)
	}
	t := &Table{
		Disk: disk, SectorSize: sectorSize, Sectors: sectors,
		FirstUsable: 2 + n, LastUsable: sectors - 2 - n,
		raw: make([]byte, newEntries*minEntrySize),
	}
	h := make([]byte, minHeader)
	copy(h, Signature)
	binary.LittleEndian.PutUint32(h[offRevision:], revision)
	binary.LittleEndian.PutUint32(h[offHeaderSize:], minHeader)
	binary.LittleEndian.PutUint64(h[offFirstUsable:], t.FirstUsable)
	binary.LittleEndian.PutUint64(h[offLastUsable:], t.LastUsable)
	copy(h[offDisk:], disk[:])
	binary.LittleEndian.PutUint32(h[offCount:], newEntries)
	binary.LittleEndian.PutUint32(h[offEntrySize:], minEntrySize)
	t.layout = layout{
		header: h, count: newEntries, size: minEntrySize,
		primary: 2, backup: sectors - 1, backupEntries: sectors - 1 - n,
	}
	return t, nil
}

// Add appends a partition; Number 0 takes the first free one. ErrBounds,
// ErrName, or ErrOverlap when it shares sectors, number or UUID with another.
func (t *Table) Add(p Partition) error {
	if p.Number == 0 {
		p.Number = 1
		for slices.ContainsFunc(t.Partitions, func(q Partition) bool { return q.Number == p.Number }) {
			p.Number++
		}
	}
	name := utf16.Encode([]rune(p.Name))
	switch {
	case p.Number < 1 || p.Number > t.layout.count, p.Type.IsZero(),
		p.First > p.Last, p.First < t.FirstUsable, p.Last > t.LastUsable:
		return fmt.Errorf("cannot add partition %q: %w", p.Name, ErrBounds)
	case len(name) > nameUnits:
		return fmt.Errorf("cannot add partition %q: %w", p.Name, ErrName)
	}
	for _, q := range t.Partitions {
		if q.Number == p.Number || q.UUID == p.UUID || p.First <= q.Last && q.First <= p.Last {
			return fmt.Errorf("cannot add partition %q beside %q: %w", p.Name, q.Name, ErrOverlap)
		}
	}
	e := t.entry(p.Number)
	clear(e)
	copy(e[0:], p.Type[:])
	copy(e[16:], p.UUID[:])
	binary.LittleEndian.PutUint64(e[32:], p.First)
	binary.LittleEndian.PutUint64(e[40:], p.Last)
	binary.LittleEndian.PutUint64(e[48:], uint64(p.Attributes))
	for i, u := range name {
		binary.LittleEndian.PutUint16(e[56+2*i:], u)
	}
	t.Partitions = append(t.Partitions, p)
	// Their order is that of their numbers; slices.SortFunc would cost PID 1 10 KB.
	for i := len(t.Partitions) - 1; i > 0 && t.Partitions[i-1].Number > p.Number; i-- {
		t.Partitions[i-1], t.Partitions[i] = p, t.Partitions[i-1]
	}
	return nil
}

func (t *Table) entry(number int) []byte {
	return t.raw[(number-1)*t.layout.size : number*t.layout.size]
}

// Write writes a new table: protective MBR (its boot code stays), both copies,
// sync. It is for making a disk; on a disk in use WriteAttributes is the way.
func (t *Table) Write(d Device) error {
	mbr := make([]byte, 512)
	if err := readFull(d, mbr, 0); err != nil {
		return fmt.Errorf("cannot read the boot sector: %w", err)
	}
	// UEFI 2.10, table 5.4: one partition of type EE over the whole disk
	clear(mbr[mbrTable:])
	e := mbr[mbrTable:]
	copy(e, []byte{0, 0x00, 0x02, 0x00, 0xee, 0xff, 0xff, 0xff})
	binary.LittleEndian.PutUint32(e[8:], 1)
	binary.LittleEndian.PutUint32(e[12:], uint32(min(t.Sectors-1, 0xffffffff)))
	mbr[510], mbr[511] = 0x55, 0xaa
	if _, err := d.WriteAt(mbr, 0); err != nil {
		return fmt.Errorf("cannot write the protective MBR: %w", err)
	}
	return t.writeCopies(d)
}

// WriteAttributes gives partitions (by number) new slot bits, and changes
// nothing else: bits other than 48-56 are taken from the table. A damaged copy
// is written first, else the backup, and it is synced before the other is
// touched, so that at every moment one good copy exists. ErrNotFound for a
// number without a partition.
func (t *Table) WriteAttributes(d Device, bits map[int]Attributes) error {
	for n := range bits {
		if !slices.ContainsFunc(t.Partitions, func(p Partition) bool { return p.Number == n }) {
			return fmt.Errorf("cannot set the attributes of partition %d: %w", n, ErrNotFound)
		}
	}
	for i := range t.Partitions {
		p := &t.Partitions[i]
		b, ok := bits[p.Number]
		if !ok {
			continue
		}
		t.setAttributes(p, p.Attributes&^slotBits|b&slotBits)
	}
	return t.writeCopies(d)
}

func (t *Table) setAttributes(p *Partition, a Attributes) {
	p.Attributes = a
	binary.LittleEndian.PutUint64(t.entry(p.Number)[48:], uint64(a))
}

func (t *Table) healthy() bool { return t.PrimaryBad == nil && t.BackupBad == nil && !t.Differ }

func (t *Table) writeCopies(d Device) error {
	l := t.layout
	primary := func() error { return t.writeCopy(d, "primary", 1, l.backup, l.primary) }
	backup := func() error { return t.writeCopy(d, "backup", l.backup, 1, l.backupEntries) }
	order := []func() error{backup, primary}
	if t.PrimaryBad != nil {
		order = []func() error{primary, backup}
	}
	for _, write := range order {
		if err := write(); err != nil {
			return err
		}
	}
	t.PrimaryBad, t.BackupBad, t.Differ = nil, nil, false
	return nil
}

func (t *Table) writeCopy(d Device, which string, lba, alternate, entries uint64) error {
	h := make([]byte, t.SectorSize)
	copy(h, t.layout.header)
	le := binary.LittleEndian
	le.PutUint64(h[offMyLBA:], lba)
	le.PutUint64(h[offAlternate:], alternate)
	le.PutUint64(h[offEntriesLBA:], entries)
	le.PutUint32(h[offEntriesCRC:], crc32.ChecksumIEEE(t.raw))
	le.PutUint32(h[offHeaderCRC:], headerCRC(h[:len(t.layout.header)]))
	if _, err := d.WriteAt(t.raw, int64(entries)*int64(t.SectorSize)); err != nil {
		return fmt.Errorf("cannot write the %s partition entries: %w", which, err)
	}
	if _, err := d.WriteAt(h, int64(lba)*int64(t.SectorSize)); err != nil {
		return fmt.Errorf("cannot write the %s partition table header: %w", which, err)
	}
	if err := d.Sync(); err != nil {
		return fmt.Errorf("cannot sync the %s partition table: %w", which, err)
	}
	return nil
}
