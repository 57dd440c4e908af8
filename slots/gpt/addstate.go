package gpt

import (
	"encoding/binary"
	"errors"
	"fmt"

	"sealroot/slots/guid"
)

// alignment of partitions in bytes, as every tool has it.
const alignment = 1 << 20

// Unfinished is bit 48 of a partition of type TypeState, whose bits are ours to
// define: PID 1 added the partition and was not done with the file system on it.
// There is nothing in it yet that could be lost.
const Unfinished = Attributes(1) << 48

var (
	// ErrHasState: the disk has a partition for the state already.
	ErrHasState = errors.New("the disk has a state partition")
	// ErrNoRoom: the free space behind the last partition is too small.
	ErrNoRoom = errors.New("not enough free space behind the last partition")
)

// StatePlace is where a state partition goes: all of the free space behind the
// last partition, up to a backup copy at the very end of the disk, where it may
// have to be moved to; whole MiB, and least bytes at the very least. Errors:
// ErrHasState, ErrNoRoom.
func (t *Table) StatePlace(least int64) (Partition, error) {
	p := Partition{Type: guid.Must(TypeState), Name: LabelState, Attributes: Unfinished, First: t.FirstUsable}
	for _, q := range t.Partitions {
		if q.Type == p.Type || q.Name == p.Name {
			return Partition{}, fmt.Errorf("cannot add a state partition beside partition %d (%.40q): %w", q.Number, q.Name, ErrHasState)
		}
		p.First = max(p.First, q.Last+1)
	}
	unit := uint64(alignment / t.SectorSize)
	p.First = (p.First + unit - 1) / unit * unit
	// The end, exclusive; what is behind it holds the backup copy.
	end := (t.Sectors - 1 - entrySectors(t.layout.count, t.layout.size, t.SectorSize)) / unit * unit
	if end < p.First || int64(end-p.First)*int64(t.SectorSize) < least {
		return Partition{}, fmt.Errorf("cannot add a state partition of %d MiB at MiB %d of %d: %w",
			least>>20, p.First/unit, t.Sectors/unit, ErrNoRoom)
	}
	p.Last = end - 1
	return p, nil
}

// AddState adds the partition that StatePlace gave, under this UUID, and moves the
// backup copy to the end of the disk. Both are one change of the table.
//
// Crash points: the new backup copy is written behind everything and synced while
// the primary one, and the old backup that it points to, are as they were; then
// the primary. A cut leaves the table without the partition or the one with it,
// which is then Unfinished.
func (t *Table) AddState(d Device, p Partition, id guid.GUID) error {
	n := entrySectors(t.layout.count, t.layout.size, t.SectorSize)
	t.layout.backup, t.layout.backupEntries = t.Sectors-1, t.Sectors-1-n
	t.LastUsable = t.layout.backupEntries - 1
	binary.LittleEndian.PutUint64(t.layout.header[offLastUsable:], t.LastUsable)
	p.UUID = id
	if err := t.Add(p); err != nil {
		return err
	}
	return t.writeCopies(d)
}

// FinishState takes the mark Unfinished away, after everything in the partition
// is on stable storage. The protective MBR comes to span the disk before that.
//
// Crash points: one sector, then one change of the table in the order of
// WriteAttributes; until that is done the partition is unfinished.
func (t *Table) FinishState(d Device) error {
	if err := t.spanMBR(d); err != nil {
		return err
	}
	for i := range t.Partitions {
		if p := &t.Partitions[i]; p.Unfinished() {
			t.setAttributes(p, p.Attributes&^Unfinished)
		}
	}
	return t.writeCopies(d)
}

// Unfinished says that the partition is for the state, and not finished.
func (p Partition) Unfinished() bool {
	return p.Type == guid.Must(TypeState) && p.Attributes&Unfinished != 0
}

// spanMBR has the only partition of a protective MBR (UEFI 2.10, table 5.4) span
// the disk. Any other MBR stays as it is.
func (t *Table) spanMBR(d Device) error {
	mbr := make([]byte, 512)
	if err := readFull(d, mbr, 0); err != nil {
		return fmt.Errorf("cannot read the boot sector: %w", err)
	}
	le, e := binary.LittleEndian, mbr[mbrTable:]
	size := uint32(min(t.Sectors-1, 0xffffffff))
	if mbr[510] != 0x55 || mbr[511] != 0xaa || e[4] != 0xee || le.Uint32(e[8:]) != 1 || le.Uint32(e[12:]) == size {
		return nil
	}
	le.PutUint32(e[12:], size)
	if _, err := d.WriteAt(mbr, 0); err != nil {
		return fmt.Errorf("cannot write the protective MBR: %w", err)
	}
	if err := d.Sync(); err != nil {
		return fmt.Errorf("cannot sync the protective MBR: %w", err)
	}
	return nil
}
