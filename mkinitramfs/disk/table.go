package disk

import (
	"fmt"
	"io"
	"os"

	"sealroot/slots/gpt"
	"sealroot/slots/guid"
)

// writeTable writes the partition table. Every UUID that the configuration does not
// name is random: two slots may hold the same image, and tools refuse a table in
// which a UUID is there twice.
func writeTable(disk gpt.Device, size int64, parts []partition, attr map[string]gpt.Attributes, random io.Reader) error {
	id, err := guid.Random(random)
	if err != nil {
		return err
	}
	table, err := gpt.New(id, size, sectorSize)
	if err != nil {
		return err
	}
	for _, p := range parts {
		id := p.uuid
		if id.IsZero() {
			if id, err = guid.Random(random); err != nil {
				return err
			}
		}
		kind, err := guid.Parse(p.kind)
		if err != nil {
			return err
		}
		if err := table.Add(gpt.Partition{
			Type: kind, UUID: id, Name: p.label, Attributes: attr[p.label],
			First: uint64(p.start / sectorSize), Last: uint64((p.start+p.size)/sectorSize) - 1,
		}); err != nil {
			return err
		}
	}
	return table.Write(disk)
}

// attributesOf collects the attributes by partition label. Nobody is to mount
// a partition of a slot for writing, an empty one included.
func attributesOf(n gpt.Naming, slots []string, first map[string]gpt.Attributes) map[string]gpt.Attributes {
	attr := map[string]gpt.Attributes{}
	for _, s := range slots {
		for _, part := range []gpt.Part{gpt.Data, gpt.Tree, gpt.Sig} {
			attr[n.Label(s, part)] = gpt.ReadOnly
		}
	}
	for label, a := range first {
		attr[label] |= a
	}
	return attr
}

// window is one partition of the disk image.
type window struct {
	disk *os.File
	at   partition
}

func (w window) ReadAt(p []byte, off int64) (int, error) {
	return io.NewSectionReader(w.disk, w.at.start, w.at.size).ReadAt(p, off)
}

func (w window) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > w.at.size {
		return 0, fmt.Errorf("cannot write beyond partition %s: %w", w.at.label, ErrSize)
	}
	return w.disk.WriteAt(p, w.at.start+off)
}

func (w window) Sync() error { return nil } // the whole image is synced at the end
