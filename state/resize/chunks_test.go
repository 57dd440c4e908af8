package resize

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state"
)

func TestLeastSize(t *testing.T) {
	for _, c := range []struct{ allocated, total, used, want int64 }{
		{700, 0, 0, 800},
		{1000, 600, 85, 1000 - 600 + 100 + 500/7},
		{700, 600, 590, 800}, // fuller than is packed
		{20 << 30, 0, 0, 21 << 30},
	} {
		if got := leastSize(c.allocated, c.total, c.used); got != c.want {
			t.Errorf("leastSize(%d, %d, %d) = %d, want %d", c.allocated, c.total, c.used, got, c.want)
		}
	}
}

// Chunks that are more than half full are packed, too, and what the sizes promise is given.
func TestBtrfsPacksFullerChunks(t *testing.T) {
	v := newVolumeOf(t, state.Btrfs, 5<<30, 3800<<20)
	name := func(i int) string { return filepath.Join(v.root.Name(), fmt.Sprint("file", i)) }
	n := 0
	for ; n < 900; n++ {
		f, err := os.Create(name(n))
		if err != nil {
			t.Fatal(err)
		}
		err = unix.Fallocate(int(f.Fd()), 0, 0, 4<<20)
		f.Close()
		if err != nil {
			break
		}
	}
	run(t, "sync", "-f", v.root.Name())
	for i := range n { // all chunks are 60 % full then
		if i%5 < 2 {
			if err := os.Remove(name(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 2 { // the second frees what the first has made free
		run(t, "btrfs", "filesystem", "sync", v.root.Name())
	}
	m, err := v.Measure()
	if err != nil || m.Reserved-m.MinReserved < 200<<20 {
		t.Fatalf("Measure = %+v, %v", m, err)
	}
	promised := m.Reserved - m.MinReserved
	s, err := v.Resize(t.Context(), m.MinReserved)
	t.Logf("promised %d MiB, gave %d MiB: %v", promised>>20, (m.Reserved-s.Reserved)>>20, err)
	if given := m.Reserved - s.Reserved; given < promised/10*8 {
		t.Errorf("gave %d bytes of %d that were promised: %v", given, promised, err)
	}
	backed(t, v)
}
