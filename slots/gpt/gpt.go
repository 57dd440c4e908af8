// Package gpt reads and writes GUID partition tables (UEFI 2.10, chapter 5) and
// keeps the state of the boot slots in the attribute bits of their partitions.
//
// There are two copies: header in sector 1 with the entries after it, and
// header in the last sector with the entries before it. One good copy is
// enough to read; every write restores the other one.
package gpt

import (
	"errors"
	"fmt"
	"io"

	"sealroot/slots/guid"
)

var (
	// ErrNoTable: neither copy is a valid table.
	ErrNoTable = errors.New("no valid GPT")
	// ErrHeader: the copy's header is damaged or says something impossible.
	ErrHeader = errors.New("bad GPT header")
	// ErrChecksum: the copy's header or entries do not match their CRC-32.
	ErrChecksum = errors.New("GPT checksum does not match")
	// ErrBounds: something lies outside the space it has to be in.
	ErrBounds = errors.New("out of bounds")
	// ErrNotFound: there is no such partition.
	ErrNotFound = errors.New("no such partition")
	// ErrAmbiguous: more than one partition is what was asked for.
	ErrAmbiguous = errors.New("more than one partition of that name")
	// ErrName: the name does not fit into 36 UTF-16 units.
	ErrName = errors.New("partition name too long")
	// ErrOverlap: partitions overlap or share a UUID.
	ErrOverlap = errors.New("partitions collide")
)

// Device is a disk, or the file of a disk image.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Partition is one entry of the table.
type Partition struct {
	Number      int // 1-based, as in /dev/sda1
	Type        guid.GUID
	UUID        guid.GUID
	First, Last uint64 // sectors, both inclusive
	Attributes  Attributes
	Name        string // PARTLABEL
}

// Table is a partition table in memory.
type Table struct {
	Disk        guid.GUID
	SectorSize  int
	Sectors     uint64 // of the whole device
	FirstUsable uint64
	LastUsable  uint64
	Partitions  []Partition
	// PrimaryBad and BackupBad say what was wrong with a copy; nil: nothing.
	PrimaryBad, BackupBad error
	// Differ: both copies are valid but not equal; Partitions is the primary's.
	// That is what a power cut between the two writes leaves.
	Differ bool

	raw []byte // the entries as read, with whatever we do not know
	// unchecked are the UUIDs in the place of a primary copy that is damaged, by
	// number; see ByLoader.
	unchecked []guid.GUID
	layout    layout
}

// layout is where the copies are, and the geometry of the entries.
type layout struct {
	header        []byte // the good header as read, its full size
	count, size   int    // of entries
	primary       uint64 // sector of the primary entries
	backup        uint64 // sector of the backup header
	backupEntries uint64
}

// Offset is where the partition begins, in bytes.
func (t *Table) Offset(p Partition) int64 { return int64(p.First) * int64(t.SectorSize) }

// Size is the partition's size in bytes.
func (t *Table) Size(p Partition) int64 {
	return int64(p.Last-p.First+1) * int64(t.SectorSize)
}

// ByName finds a partition by its label: ErrNotFound, or ErrAmbiguous when
// several have it, since the choice would be an attacker's or an accident's.
func (t *Table) ByName(name string) (Partition, error) {
	return t.only(name, func(p Partition) bool { return p.Name == name })
}

func (t *Table) only(what string, is func(Partition) bool) (Partition, error) {
	at, n := 0, 0
	for i, p := range t.Partitions {
		if is(p) {
			at, n = i, n+1
		}
	}
	switch n {
	case 0:
		return Partition{}, fmt.Errorf("cannot find partition %q: %w", what, ErrNotFound)
	case 1:
		return t.Partitions[at], nil
	}
	return Partition{}, fmt.Errorf("cannot choose partition %q: %w", what, ErrAmbiguous)
}

// ByUUID finds a partition by its own UUID, with the errors of ByName.
func (t *Table) ByUUID(u guid.GUID) (Partition, error) {
	return t.only(u.String(), func(p Partition) bool { return p.UUID == u })
}
