package live

import (
	"context"
	"errors"
	"fmt"
	"io"

	"sealroot/mount/blockdev"
	"sealroot/slots/gpt"
	"sealroot/slots/guid"
)

// AddState adds a state partition behind the last partition of a disk that has
// none, and tells the kernel. empty looks at the place first, and its error ends
// it; least is the fewest bytes. It is for PID 1. Errors: gpt.ErrHasState,
// gpt.ErrNoRoom, those of empty.
func (d *Disk) AddState(random io.Reader, least int64, empty func(disk io.ReaderAt, start, size int64) error) error {
	id, err := guid.Random(random)
	if err != nil {
		return err
	}
	return d.changeTable(func(dev *blockdev.Device, table *gpt.Table) error {
		p, err := table.StatePlace(least)
		if err != nil {
			return err
		}
		if err := empty(dev, table.Offset(p), table.Size(p)); err != nil {
			return err
		}
		if err := table.AddState(dev, p, id); err != nil {
			return err
		}
		// crash point: the partition is there and Unfinished
		if p, err = table.ByName(gpt.LabelState); err != nil {
			return err
		}
		if err := dev.AddPartition(p.Number, table.Offset(p), table.Size(p)); err != nil {
			return err
		}
		return d.rescan("/sys", "/dev")
	})
}

// rescan reads anew what the kernel shows of the disk.
func (d *Disk) rescan(sys, dev string) error {
	disks, err := blockdev.Scan(sys, dev)
	for _, block := range disks {
		if block.DevNo() == d.Block.DevNo() {
			d.Block = block
		}
	}
	return err
}

// StateUnfinished says that the state partition was added and not finished.
func (d *Disk) StateUnfinished() bool {
	p, err := d.Table.ByName(gpt.LabelState)
	return err == nil && p.Unfinished()
}

// FinishState says in the table that everything in a partition that AddState made
// is on stable storage.
func (d *Disk) FinishState() error {
	return d.changeTable(func(dev *blockdev.Device, table *gpt.Table) error { return table.FinishState(dev) })
}

// changeTable changes the table, as it is on the disk now, under the lock of its writers.
func (d *Disk) changeTable(change func(*blockdev.Device, *gpt.Table) error) (err error) {
	dev, err := blockdev.Open(d.Block.Node, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }() // which gives up the lock
	ctx, cancel := context.WithTimeout(context.Background(), lockTime)
	defer cancel()
	if _, err := dev.Lock(ctx); err != nil {
		return err
	}
	table, err := gpt.Read(dev, dev.Size(), dev.SectorSize())
	if err == nil {
		err = change(dev, table)
	}
	if err != nil {
		return fmt.Errorf("cannot change the partition table of %s: %w", d.Block.Node, err)
	}
	d.Table = table
	return nil
}
