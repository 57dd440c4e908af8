// Package prebuilt makes a state partition and an encrypted volume in the image of a
// disk, before the disk's first boot and without root: no loop device, no mount. File
// systems are made and filled by the programs of e2fsprogs, in files.
//
// What becomes of the volume at the first boot is the subject of state.Prebuilt.
package prebuilt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"sealroot/slots/gpt"
	"sealroot/slots/guid"
	"sealroot/state"
	"sealroot/state/ext4"
	"sealroot/state/luks2"
)

var (
	// ErrThere: the state partition holds a volume already, or has held one.
	ErrThere = errors.New("the state partition is in use already")
	// ErrBtrfs: nothing writes to btrfs without mounting it.
	ErrBtrfs = errors.New("btrfs cannot be written to without mounting it; leave the volume to the first boot, or use ext4")
)

// Options say what is made. Sizes are in bytes; 0 leaves them to the room there is.
type Options struct {
	// Partition is the size of the partition, for an image that has none yet.
	Partition int64
	// Reserve is how much of it the volume gets: the half by default.
	Reserve int64
	// Recovery opens the volume; nil: nothing does. It stays the caller's.
	Recovery []byte
	// Escrow is that key, encrypted to somebody; nil: it is not kept on the disk.
	Escrow []byte
	Rand   io.Reader
}

// Made is what there is now.
type Made struct {
	UUID      string `json:"uuid"`
	Added     bool   `json:"partition_added"`
	Partition int64  `json:"partition_bytes"`
	Reserved  int64  `json:"reserved_bytes"`
}

// sectorSize of the disks that are built here.
const sectorSize = 512

// Make makes it in disk, the file of an image, which the caller has locked. A
// partition that it adds is Unfinished until all is there. Errors: ErrThere,
// ErrBtrfs, ErrMissing, gpt.ErrNoTable, gpt.ErrNoRoom, state.ErrNoRoom, state.ErrNotEmpty.
func Make(ctx context.Context, disk *os.File, o Options) (Made, error) {
	tools, err := findTools()
	if err != nil {
		return Made{}, err
	}
	table, p, made, err := partition(disk, o)
	if err != nil {
		return Made{}, err
	}
	outer := outerFS{tools: tools, disk: disk, start: table.Offset(p), size: table.Size(p)}
	made.Partition = outer.size
	if p.Unfinished() {
		// The mark is a bit, which a tool may have set by mistake.
		err := outer.unused(ctx)
		if err != nil && !errors.Is(err, ErrThere) && !made.Added {
			// What cannot be listed may hold something all the same.
			err = neverMounted(outer, err)
		}
		if errors.Is(err, ErrThere) || err != nil && !made.Added {
			return Made{}, err
		}
		if err := outer.format(ctx, o.Rand); err != nil {
			return Made{}, fmt.Errorf("cannot make the file system of the state partition: %w", err)
		}
	}
	if sb, err := state.ReadSuperblock(io.NewSectionReader(disk, outer.start, outer.size)); err == nil && sb.Type == state.Btrfs {
		return Made{}, fmt.Errorf("cannot make a volume in the state partition, which is btrfs: %w", ErrBtrfs)
	}
	if err := outer.unused(ctx); err != nil {
		return Made{}, err
	}
	sb, err := ext4.ReadSuperblock(io.NewSectionReader(disk, outer.start, outer.size))
	if err != nil {
		return Made{}, fmt.Errorf("cannot use the file system of the state partition: %w", err)
	}
	sizes, err := state.SizesFor(state.Ext4, int64(sb.FreeBlocks)*int64(sb.BlockSize), o.Reserve)
	if err == nil && sizes.Reserved < o.Reserve {
		err = fmt.Errorf("cannot reserve %d MiB of %d MiB free: %w", o.Reserve>>20, int64(sb.FreeBlocks)*int64(sb.BlockSize)>>20, state.ErrNoRoom)
	}
	if err != nil {
		return Made{}, err
	}
	if made.UUID, err = outer.addVolume(ctx, sizes, o); err != nil {
		return Made{}, fmt.Errorf("cannot make the volume in the state partition: %w", err)
	}
	made.Reserved = sizes.Reserved
	if err := disk.Sync(); err != nil {
		return Made{}, err
	}
	if p.Unfinished() {
		err = table.FinishState(disk)
	}
	return made, err
}

// neverMounted refuses an unfinished partition of which it cannot be told that it never
// held anything, as PID 1 does; cause is why its names cannot be read.
func neverMounted(o outerFS, cause error) error {
	if err := state.CheckUnmounted(io.NewSectionReader(o.disk, o.start, o.size)); err != nil {
		return fmt.Errorf("the state partition is marked as unfinished (attribute bit 48), but %w, and %w; nothing was changed: look into it, or make the image anew", err, cause)
	}
	return nil
}

// partition finds the state partition, or adds it.
func partition(disk *os.File, o Options) (*gpt.Table, gpt.Partition, Made, error) {
	fail := func(err error) (*gpt.Table, gpt.Partition, Made, error) { return nil, gpt.Partition{}, Made{}, err }
	info, err := disk.Stat()
	if err != nil {
		return fail(err)
	}
	table, err := gpt.Read(disk, info.Size(), sectorSize)
	if err != nil {
		return fail(err)
	}
	p, err := table.ByName(gpt.LabelState)
	if err == nil && o.Partition != 0 && !p.Unfinished() {
		return fail(fmt.Errorf("cannot give the state partition %d MiB, it is there and has %d: %w", o.Partition>>20, table.Size(p)>>20, gpt.ErrHasState))
	}
	if !errors.Is(err, gpt.ErrNotFound) {
		return table, p, Made{}, err
	}
	if table, err = extend(disk, table, info.Size(), o.Partition); err != nil {
		return fail(err)
	}
	if p, err = table.StatePlace(max(o.Partition, state.Ext4.LeastPartition(state.Ext4))); err != nil {
		return fail(fmt.Errorf("%w; --state-size makes the image larger", err))
	}
	if o.Partition != 0 {
		p.Last = p.First + uint64(o.Partition/sectorSize) - 1
	}
	if err := state.CheckPlace(disk, table.Offset(p), table.Size(p)); err != nil {
		return fail(err)
	}
	id, err := guid.Random(o.Rand)
	if err == nil {
		err = table.AddState(disk, p, id)
	}
	if err == nil {
		p, err = table.ByName(gpt.LabelState)
	}
	return table, p, Made{Added: true}, err
}

// extend makes the image so large that want bytes have room behind the last
// partition, and reads the table anew then.
func extend(disk *os.File, table *gpt.Table, size, want int64) (*gpt.Table, error) {
	const mib = 1 << 20
	end := int64(0)
	for _, p := range table.Partitions {
		end = max(end, table.Offset(p)+table.Size(p))
	}
	end = (end+mib-1)/mib*mib + want + mib // the last one for the backup table
	if want == 0 || end <= size {
		return table, nil
	}
	if err := disk.Truncate(end); err != nil {
		return nil, fmt.Errorf("cannot make the image larger: %w", err)
	}
	return gpt.Read(disk, end, sectorSize)
}

// header makes the header of a prebuilt volume and its key, which the caller wipes.
func header(sizes state.Sizes, o Options) (h *luks2.Header, key []byte, err error) {
	key = make([]byte, 64)
	defer func() {
		if err != nil {
			clear(key)
		}
	}()
	id, err := guid.Random(o.Rand)
	if err != nil {
		return nil, nil, err
	}
	if _, err = io.ReadFull(o.Rand, key); err != nil {
		return nil, nil, err
	}
	h, err = luks2.Format(luks2.FormatParams{UUID: id.String(), Label: "sealroot", VolumeKey: key, SectorSize: state.BlockSize, Rand: o.Rand})
	if err != nil {
		return nil, nil, err
	}
	if o.Recovery != nil {
		h, _, _, err = h.Enroll(luks2.Enrolment{
			VolumeKey: key, Passphrase: o.Recovery, KDF: luks2.RandomSecretKDF(), Rand: o.Rand,
			Token: func(keyslot int) ([]byte, error) { return luks2.RecoveryToken(keyslot), nil },
		})
		if err != nil {
			return nil, nil, err
		}
	}
	token, err := state.Prebuilt{Reserved: sizes.Reserved}.Token()
	if err != nil {
		return nil, nil, err
	}
	free, err := h.FreeToken()
	if err == nil {
		h, err = h.AddToken(free, token)
	}
	return h, key, err
}
