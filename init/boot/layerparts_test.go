package boot

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount/blockdev"
	"sealroot/slots"
	"sealroot/slots/gpt"
	"sealroot/slots/live"
	"sealroot/state/layout"
	"sealroot/verity"
)

// partitionedBoot is layeredBoot with mid in partitions of slots a and b, of which b
// runs, on a disk whose partitions are files; without the layer in the volume.
func partitionedBoot(t *testing.T) (*boot, *live.Disk) {
	t.Helper()
	b, _, _ := layeredBoot(t)
	b.cfg.Layers = b.cfg.Layers[:3]
	b.report.Slot = report.Slot{Name: "b"}
	data := bytes.Repeat([]byte("mid"), 8192)[:8192]
	params, err := verity.NewParams(int64(len(data)), []byte("salt"), [16]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	tree := make(memory, params.HashSize())
	hash, err := verity.Format(bytes.NewReader(data), params, tree)
	if err != nil {
		t.Fatal(err)
	}
	l := &b.cfg.Layers[1]
	if err := os.Remove(imageOf(*l)); err != nil {
		t.Fatal(err)
	}
	l.From, l.Hash = config.LayerFromPartition, hex.EncodeToString(hash)
	table := &gpt.Table{SectorSize: 512}
	block := blockdev.Disk{Node: "/dev/vda", SectorSize: 512}
	for i, label := range []string{"layer-mid-a", "layer-mid-a-verity", "layer-mid-b", "layer-mid-b-verity", "layer-mid-b-verity-sig"} {
		n, content := i+1, [][]byte{data, tree, data, tree, []byte("{}")}[i]
		node := fmt.Sprint("/nodes/", n)
		put(t, node, append(content, make([]byte, 512-(len(content)-1)%512-1)...))
		info, err := os.Stat(node)
		if err != nil {
			t.Fatal(err)
		}
		first := uint64(100 * n)
		table.Partitions = append(table.Partitions, gpt.Partition{Number: n, Name: label, First: first, Last: first + uint64(info.Size()/512) - 1})
		block.Partitions = append(block.Partitions, blockdev.Partition{Number: n, Node: node, Major: 254, Minor: uint32(n), Start: int64(first) * 512, Size: info.Size()})
	}
	b.disk = live.New(block, table, gpt.Naming{})
	return b, b.disk
}

// A layer in partitions is opened from those of the slot that runs, by the root hash of
// the configuration; nothing is asked of their signature.
func TestLayerInPartitions(t *testing.T) {
	inRoot(t, "of_the_slot", func(t *testing.T) {
		b, _ := partitionedBoot(t)
		m, d := recorderOf(b)
		if err := b.stackLayers(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := m.Trace(); !strings.Contains(got, "mount -t squashfs -o ro,nodev /dev/sealroot-layer-mid/254:3,254:4 ///layers/1\n") || !strings.Contains(got, "/layers/2//.:/layers/1//.:/layers/0//.") {
			t.Errorf("trace\n%s", got)
		}
		if b.report.Layers[1].LeftOut != "" || len(d.removed) > 0 {
			t.Errorf("%+v, removed %q", b.report.Layers[1], d.removed)
		}
	})
	for _, tt := range []struct {
		name  string
		spoil func(b *boot, disk *live.Disk)
		want  error
		class slots.Class
	}{
		{"missing", func(_ *boot, d *live.Disk) { d.Table.Partitions[2].Name = "layer-mid-c" }, gpt.ErrNotFound, slots.ImageFailure},
		{"tree_missing", func(_ *boot, d *live.Disk) { d.Table.Partitions[3].Name = "other" }, gpt.ErrNotFound, slots.ImageFailure},
		{"twice", func(_ *boot, d *live.Disk) { d.Table.Partitions[0].Name = "layer-mid-b" }, gpt.ErrAmbiguous, slots.EnvironmentFailure},
		{"kernel_has_another_table", func(_ *boot, d *live.Disk) { d.Table.Partitions[2].First++ }, nil, slots.EnvironmentFailure},
		{"superblock", func(*boot, *live.Disk) {
			if err := os.WriteFile("/nodes/4", make([]byte, 8192), 0o600); err != nil {
				panic(err)
			}
		}, verity.ErrSuperblock, slots.ImageFailure},
		{"cannot_be_read", func(*boot, *live.Disk) {
			if err := errors.Join(os.Remove("/nodes/4"), os.Mkdir("/nodes/4", 0o700)); err != nil {
				panic(err)
			}
		}, unix.EISDIR, slots.EnvironmentFailure},
		{"hash_of_another_algorithm", func(b *boot, _ *live.Disk) { b.cfg.Layers[1].Hash += b.cfg.Layers[1].Hash }, verity.ErrParams, slots.ImageFailure},
		// the verified image's, not the state's
		{"damaged_file_system", func(b *boot, _ *live.Disk) {
			m, _ := recorderOf(b)
			m.FailAt, m.FailWith = 2, syscall.EUCLEAN
		}, syscall.EUCLEAN, slots.ImageFailure},
		{"in_a_degraded_boot", func(b *boot, _ *live.Disk) {
			b.report.Degraded, b.report.State.Unlocked, b.rootRelease.ID = true, report.UnlockedDegraded, "fedora"
			for i := range b.cfg.Layers {
				if i != 1 {
					b.cfg.Layers[i].OnFailure = config.LayerSkip
				}
			}
		}, errLayer, slots.ImageFailure},
	} {
		inRoot(t, tt.name, func(t *testing.T) {
			b, disk := partitionedBoot(t)
			tt.spoil(b, disk)
			err := b.stackLayers(t.Context())
			class, _ := classOf(b.blame(err))
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || class != tt.class || !strings.HasPrefix(err.Error(), "cannot use layer mid: ") {
				t.Errorf("stop: %v, class %s; want %v, class %s", err, class, tt.want, tt.class)
			}
		})
		inRoot(t, tt.name+"_skip", func(t *testing.T) {
			b, disk := partitionedBoot(t)
			for i := range b.cfg.Layers {
				b.cfg.Layers[i].OnFailure = config.LayerSkip
			}
			tt.spoil(b, disk)
			if err := b.stackLayers(t.Context()); err != nil {
				t.Fatal(err)
			}
			if left := b.report.Layers[1].LeftOut; !strings.HasPrefix(left, "cannot use layer mid: ") {
				t.Errorf("left out: %q", left)
			}
		})
	}
	// No state at all, as with state.create none.
	inRoot(t, "without_a_state", func(t *testing.T) {
		b, _ := partitionedBoot(t)
		b.cfg.Layers, b.volume.outer = b.cfg.Layers[1:2], nil
		put(t, layerDir(0)+"/usr/lib/extension-release.d/extension-release.mid", []byte("ID=debian\n"))
		if err := b.stackLayers(t.Context()); err != nil || b.report.Layers[0].LeftOut != "" {
			t.Errorf("%v, %+v", err, b.report.Layers)
		}
		if _, err := os.Stat(layout.Layers); err == nil {
			t.Error("files of layers were made")
		}
	})
}
