// Package live finds the boot disk of the running machine and what the slots
// need on it: the store, the boot loader's one-shot, the boot log. PID 1 and
// the command sealroot share it, so that they cannot differ.
package live

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"sealroot/mount/blockdev"
	"sealroot/slots"
	"sealroot/slots/gpt"
	"sealroot/slots/guid"
)

var (
	// ErrNoDisk: no disk, or not yet, is the boot disk.
	ErrNoDisk = errors.New("boot disk not found")
	// ErrAmbiguous: more than one disk could be the boot disk. A copy of it must
	// never win, so none does.
	ErrAmbiguous = errors.New("more than one disk could be the boot disk")
)

// Disk is the boot disk as it was found.
type Disk struct {
	Block blockdev.Disk
	Table *gpt.Table
	// From is the number of the partition that the loader named; 0: none did.
	From int

	naming gpt.Naming
	found  []gpt.Set // by Discover; nil: partitions are found as naming has them
}

// New is a disk whose table has been read.
func New(block blockdev.Disk, table *gpt.Table, naming gpt.Naming) *Disk {
	return &Disk{Block: block, Table: table, naming: naming}
}

// Find looks at the partition tables of all disks and picks the boot disk: the
// one that has the partition partUUID (the ESP that the loader was read from),
// or without one the only disk that has a slot. Nothing else of any disk is
// read. sys and dev are "/sys" and "/dev" on a real machine; naming is how the
// slots' partitions are found, now and later.
func Find(sys, dev string, naming gpt.Naming, partUUID string) (*Disk, error) {
	found, err := candidates(sys, dev, naming, partUUID)
	if err != nil {
		return nil, err
	}
	switch len(found) {
	case 0:
		return nil, ErrNoDisk
	case 1:
		return found[0], found[0].settled()
	}
	var nodes []string
	for _, d := range found {
		nodes = append(nodes, d.Block.Node)
	}
	return nil, fmt.Errorf("cannot choose between %s: remove the one that is a copy (or give it GUIDs of its own: sgdisk -G): %w",
		strings.Join(nodes, " and "), ErrAmbiguous)
}

func candidates(sys, dev string, naming gpt.Naming, partUUID string) ([]*Disk, error) {
	disks, err := blockdev.Scan(sys, dev)
	if err != nil {
		return nil, err
	}
	tables := map[string]*gpt.Table{}
	for _, block := range disks {
		// not ours, or an empty card reader, when there is no table
		if table, err := readTable(block); err == nil {
			tables[block.Name] = table
		}
	}
	// A disk is in sysfs before the kernel has looked for its partitions, and
	// opening it waits until it has: what sysfs said before is out of date.
	if disks, err = blockdev.Scan(sys, dev); err != nil {
		return nil, err
	}
	var found []*Disk
	for _, block := range disks {
		if table := tables[block.Name]; table != nil {
			if d := New(block, table, naming); d.matches(partUUID) {
				found = append(found, d)
			}
		}
	}
	return found, nil
}

// settled checks that the kernel shows every partition of the table. Until it
// does, the disk counts as not there yet; a kernel that reads another table for
// good is an error of the machine, never of a slot's image.
func (d *Disk) settled() error {
	for _, p := range d.Table.Partitions {
		if _, err := d.shown(p); err != nil {
			return err
		}
	}
	return nil
}

func readTable(block blockdev.Disk) (*gpt.Table, error) {
	d, err := blockdev.Open(block.Node, false)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return gpt.Read(d, d.Size(), d.SectorSize())
}

func (d *Disk) matches(partUUID string) bool {
	if partUUID == "" {
		all, err := d.Slots()
		return err == nil && len(all) > 0
	}
	want, err := guid.Parse(partUUID)
	if err != nil {
		return false
	}
	p, err := d.Table.ByLoader(want)
	d.From = p.Number
	return err == nil
}

// LoadedFrom is the UUID that the partition named by the loader has now; "" when
// none was named.
func (d *Disk) LoadedFrom() string {
	for _, p := range d.Table.Partitions {
		if p.Number == d.From {
			return p.UUID.String()
		}
	}
	return ""
}

// Partition is the partition of that label, as the kernel shows it.
func (d *Disk) Partition(label string) (blockdev.Partition, error) {
	entry, err := d.Table.ByName(label)
	if err != nil {
		return blockdev.Partition{}, fmt.Errorf("cannot find partition %s on %s: %w", label, d.Block.Node, err)
	}
	return d.shown(entry)
}

// Slots are those that the table has, in the order of their names, as the store gpt
// counts them.
func (d *Disk) Slots() ([]slots.Slot, error) { return d.Table.Slots(d.naming) }

// lockTime is how long writers of the partition table may keep us waiting.
const lockTime = 10 * time.Second

// store opens the disk anew for each operation, so that nothing of it stays
// open at hand-over, and writes under the lock that udev and others take.
type store struct{ disk *Disk }

// Store keeps the slots in the disk's partition table.
func (d *Disk) Store() slots.Store { return store{d} }

func (s store) open(write bool) (*blockdev.Device, gpt.Store, error) {
	d, err := blockdev.Open(s.disk.Block.Node, write)
	if err != nil {
		return nil, gpt.Store{}, err
	}
	return d, gpt.Store{Naming: s.disk.naming, Dev: d, Size: d.Size(), SectorSize: d.SectorSize(), Lock: func() (func() error, error) {
		ctx, cancel := context.WithTimeout(context.Background(), lockTime)
		defer cancel()
		return d.Lock(ctx)
	}}, nil
}

// Load reads the slots.
func (s store) Load() ([]slots.Slot, error) {
	d, g, err := s.open(false)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return g.Load()
}

// Save changes the slots' bits. The disk is opened for writing only when there is
// something to write.
func (s store) Save(want []slots.Slot) error {
	same, err := s.unchanged(want)
	if err != nil || same {
		return err
	}
	d, g, err := s.open(true)
	if err != nil {
		return err
	}
	return errors.Join(g.Save(want), d.Close())
}

func (s store) unchanged(want []slots.Slot) (bool, error) {
	d, g, err := s.open(false)
	if err != nil {
		return false, err
	}
	defer d.Close()
	return g.Unchanged(want)
}
