package live

import (
	"context"
	"io"

	"sealroot/mount/blockdev"
	"sealroot/slots/gpt"
)

// Renew gives the disk and its partitions new GUIDs, when it is still as it was
// built, and says whether it was. It is for PID 1, before anything of the disk
// is used: who read the table before knows the old ones.
func (d *Disk) Renew(random io.Reader) (renewed bool, err error) {
	if !d.Table.Fresh() || d.Block.ReadOnly {
		return false, nil
	}
	dev, err := blockdev.Open(d.Block.Node, true)
	if err != nil {
		return false, err
	}
	defer dev.Close() // which gives up the lock; Renew has synced
	ctx, cancel := context.WithTimeout(context.Background(), lockTime)
	defer cancel()
	if _, err := dev.Lock(ctx); err != nil {
		return false, err
	}
	table, err := gpt.Read(dev, dev.Size(), dev.SectorSize())
	if err != nil || !table.Fresh() {
		return false, err
	}
	if err := table.Renew(dev, random); err != nil {
		return false, err
	}
	d.Table = table
	return true, nil
}
