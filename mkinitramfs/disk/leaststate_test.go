package disk

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"sealroot/init/config"
	"sealroot/state"
	"sealroot/state/ext4"
	statelayout "sealroot/state/layout"
)

// The first boot of a disk with the least state finds the room for its volume, by the
// rule that PID 1 has, in what mke2fs has made; with a little less it would not.
func TestLeastState(t *testing.T) {
	b, in := builder(t)
	disk, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	superblock := func(size int64) ext4.Superblock {
		t.Helper()
		if err := disk.Truncate(0); err != nil {
			t.Fatal(err)
		}
		if err := disk.Truncate(mib + size); err != nil {
			t.Fatal(err)
		}
		if err := b.makeState(t.Context(), disk, partition{start: mib, size: size}); err != nil {
			t.Fatal(err)
		}
		sb, err := ext4.ReadSuperblock(io.NewSectionReader(disk, mib, size))
		if err != nil {
			t.Fatal(err)
		}
		return sb
	}
	room := func(size int64) int64 {
		sb := superblock(size)
		return int64(sb.FreeBlocks) * int64(sb.BlockSize)
	}
	volume := func(f state.Filesystem, size, beside int64) error {
		t.Helper()
		sb := superblock(size)
		kept := min(sb.Blocks/50, 4096) // by the kernel: ext4_calculate_resv_clusters
		_, err := state.SizesFor(f, int64(sb.FreeBlocks-kept)*int64(sb.BlockSize)-beside, 0)
		return err
	}
	for _, f := range []state.Filesystem{state.Ext4, state.Btrfs} {
		for _, beside := range []int64{0, 100 * mib, 800 * mib, 3 << 30} {
			least := statelayout.LeastPartition(string(f), "ext4", beside)
			if err := volume(f, least, beside); err != nil {
				t.Errorf("%s in %d MiB, beside %d MiB: %v", f, least/mib, beside/mib, err)
			}
			if less := least - max(2*mib, least/100); volume(f, less, beside) == nil {
				t.Errorf("%s has room in %d MiB beside %d MiB, and %d are called the least", f, less/mib, beside/mib, least/mib)
			}
		}
	}

	l := withLayer(t, b, &in)
	withState := func(change func(*config.State)) set {
		cfg := *in.Config
		change(&cfg.State)
		return set{in: SlotInput{Config: &cfg}}
	}
	least := func(sets ...set) int64 {
		t.Helper()
		n, err := leastState(sets)
		if err != nil {
			t.Fatal(err)
		}
		return n / mib
	}
	none := withState(func(s *config.State) { s.Create, s.Unlock = config.CreateNone, nil })
	never := withState(func(s *config.State) { s.Create = config.CreateNever })
	plain := withState(func(s *config.State) { s.Unlock = []string{config.UnlockPlain} })
	made := withState(func(*config.State) {})
	inner := withState(func(s *config.State) { s.Filesystem = "btrfs" })
	outer := withState(func(s *config.State) { s.PartitionFilesystem = "btrfs" })
	// the layer has 5 MiB
	for _, tt := range []struct {
		name string
		sets []set
		want int64
	}{
		{"none", []set{none}, 37}, {"never", []set{never}, 37}, {"plain", []set{plain}, 37},
		{"volume", []set{made}, 172}, {"in_one_slot", []set{plain, made}, 172},
		{"btrfs", []set{made, inner}, 339}, {"around", []set{outer}, 256},
	} {
		if got := least(tt.sets...); got != tt.want {
			t.Errorf("%s: %d MiB, want %d", tt.name, got, tt.want)
		}
	}
	if err := os.Truncate(l.Image, 100*mib); err != nil {
		t.Fatal(err)
	}
	if got := least(made); got != 272 {
		t.Errorf("beside a layer of 100 MiB: %d MiB, want 272", got)
	}
	// Without a volume there is room for the layers.
	for _, size := range []int64{980 * mib, 3 << 30, 40 << 30} {
		if err := os.Truncate(l.Image, size); err != nil {
			t.Fatal(err)
		}
		for _, s := range []set{none, never, plain} {
			got := least(s) * mib
			if free, over := room(got)-size, room(got-64*mib)-size; free < 0 || size == 980*mib && over >= 0 {
				t.Errorf("in %d MiB a layer of %d has %d too much, in 64 less %d", got/mib, size/mib, free/mib, over/mib)
			}
		}
	}
	// The default size does not do for all that would be less than it.
	if room(1024*mib) >= 980*mib {
		t.Error("control: 980 MiB have room in 1 GiB")
	}
	if err := os.Truncate(l.Image, 980*mib); err != nil {
		t.Fatal(err)
	}
	if got := least(plain); got <= 1024 {
		t.Errorf("a layer of 980 MiB is to have room in %d MiB", got)
	}
}
