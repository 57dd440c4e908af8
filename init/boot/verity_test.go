package boot

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount/blockdev"
	"sealroot/mount/dm"
	"sealroot/slots/gpt"
	"sealroot/slots/live"
	"sealroot/verity"
)

// What a superblock claims is held against the device before the kernel sees it.
func TestVerityParams(t *testing.T) {
	const mib = 1 << 20
	good := verity.Params{Algorithm: verity.SHA512, DataBlockSize: 4096, HashBlockSize: 4096, DataBlocks: 256, HashStart: 1, Salt: []byte("salt")}
	parity := good
	parity.FECRoots = 2
	for _, tt := range []struct {
		name           string
		change         func(*verity.Params)
		edit           func([]byte) // of the superblock
		cfg            config.Verity
		at, room, size int64
		want           error
		start          uint64 // of the tree, in hash blocks
		roots          int
	}{
		{name: "own_partition", room: mib, size: mib, start: 1},
		{name: "behind_the_data", cfg: config.Verity{TreeAtMiB: 1}, at: mib, room: mib, size: 2 * mib, start: 257},
		{name: "parity", cfg: config.Verity{FECRoots: 2}, room: mib, size: parity.AreaSize(), start: 1, roots: 2},
		{name: "no_room_for_parity", cfg: config.Verity{FECRoots: 2}, room: mib, size: parity.AreaSize() - 1, start: 1},
		{name: "data_beyond_the_device", room: mib - 4096, size: mib, want: verity.ErrParams},
		{name: "data_over_the_tree", at: mib, room: mib - 4096, size: 2 * mib, want: verity.ErrParams},
		{name: "tree_beyond_the_device", room: mib, size: good.HashSize() - 1, want: verity.ErrParams},
		{name: "tree_behind_the_data_beyond_it", at: mib, room: mib, size: mib + good.HashSize() - 1, want: verity.ErrParams},
		{name: "larger_than_a_page", change: func(p *verity.Params) { p.DataBlockSize, p.DataBlocks = 8192, 128 }, room: mib, size: mib, want: verity.ErrParams},
		{name: "smaller_than_a_sector", change: func(p *verity.Params) { p.HashBlockSize = 512 }, room: mib, size: mib, want: verity.ErrParams},
		{name: "sha1", edit: func(b []byte) { copy(b[32:], "sha1\x00\x00\x00") }, room: mib, size: mib, want: verity.ErrAlgorithm},
		{name: "odd_block_size", edit: func(b []byte) { b[64] = 1 }, room: mib, size: mib, want: verity.ErrParams},
		{name: "format_0", edit: func(b []byte) { b[12] = 0 }, room: mib, size: mib, want: verity.ErrSuperblock},
		{name: "flipped_magic", edit: func(b []byte) { b[0] ^= 1 }, room: mib, size: mib, want: verity.ErrSuperblock},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := good
			if tt.change != nil {
				tt.change(&p)
			}
			superblock, err := p.Superblock()
			if err != nil {
				t.Fatal(err)
			}
			if tt.edit != nil {
				tt.edit(superblock)
			}
			var console bytes.Buffer
			b := &boot{sys: &System{Log: NewLog(&console)}, cfg: &config.Config{Root: config.Root{Verity: tt.cfg}},
				disk: &live.Disk{Block: blockdev.Disk{SectorSize: 1024}}}
			got, err := b.verityParams("a", superblock, tt.at, tt.room, tt.size)
			if !errors.Is(err, tt.want) || got.HashStart != tt.start || got.FECRoots != tt.roots {
				t.Errorf("got %+v, %v; want the tree at %d, %d roots, %v", got, err, tt.start, tt.roots, tt.want)
			}
			if said := strings.Contains(console.String(), "not repaired"); said != (tt.cfg.FECRoots != tt.roots) {
				t.Errorf("the log says %q", console.String())
			}
		})
	}
}

// openedVerity is a device mapper of a kernel with DM_VERITY_FEC, or without.
type openedVerity struct {
	fakeVerity
	repairs bool
}

func (o openedVerity) Verity(_, _ string, t dm.VerityTarget) (dm.Device, error) {
	return dm.Device{Repairs: o.repairs && t.FEC.Roots > 0}, nil
}

// A kernel that cannot repair boots a good image, and says that it does not.
func TestKernelWithoutRepair(t *testing.T) {
	const mib = 1 << 20
	p := verity.Params{Algorithm: verity.SHA256, DataBlockSize: 4096, HashBlockSize: 4096, DataBlocks: 256, HashStart: 1}
	superblock, err := p.Superblock()
	if err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(t.TempDir(), "tree")
	if err := os.WriteFile(tree, superblock, 0o600); err != nil {
		t.Fatal(err)
	}
	disk := &live.Disk{
		Table: &gpt.Table{SectorSize: 512, Partitions: []gpt.Partition{
			{Number: 1, Name: gpt.RootLabel("a"), First: 0, Last: mib/512 - 1},
			{Number: 2, Name: gpt.VerityLabel("a"), First: mib / 512, Last: 2*mib/512 - 1},
		}},
		Block: blockdev.Disk{SectorSize: 512, Partitions: []blockdev.Partition{
			{Number: 1, Start: 0, Size: mib}, {Number: 2, Node: tree, Start: mib, Size: mib},
		}},
	}
	for _, repairs := range []bool{true, false} {
		var console bytes.Buffer
		b := &boot{
			sys:  &System{Log: NewLog(&console), Verity: openedVerity{repairs: repairs}},
			cfg:  &config.Config{Root: config.Root{OnCorruption: "eio", Verity: config.Verity{FECRoots: 2}}},
			disk: disk, report: &report.Report{},
		}
		if _, err := b.openVerity("a", make([]byte, 32)); err != nil {
			t.Errorf("kernel that repairs: %v: %v", repairs, err)
		}
		if warned := strings.Contains(strings.Join(b.report.Warnings, ""), "DM_VERITY_FEC"); warned == repairs {
			t.Errorf("kernel that repairs: %v: warnings %q", repairs, b.report.Warnings)
		}
	}
}
