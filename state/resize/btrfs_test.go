package resize

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state"
	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/btrfs"
)

// writer writes, syncs and removes files until it is stopped, and says what it left.
func writer(t *testing.T, v *Volume) (stop func() (sums map[string][32]byte)) {
	t.Helper()
	end, done := make(chan struct{}), make(chan map[string][32]byte)
	go func() {
		sums := map[string][32]byte{}
		random := mathrand.New(mathrand.NewPCG(1, 1))
		for i := 0; ; i++ {
			select {
			case <-end:
				done <- sums
				return
			default:
			}
			name := fmt.Sprint("busy", random.IntN(40))
			b := bytes.Repeat([]byte{byte(i), byte(i >> 8), 7}, 1+random.IntN(600<<10))
			f, err := os.Create(filepath.Join(v.root.Name(), name))
			if err == nil {
				_, err = f.Write(b)
				err = errors.Join(err, f.Sync(), f.Close())
			}
			if err != nil {
				t.Errorf("writing while it is resized: %v", err)
			}
			sums[name] = sha256.Sum256(b)
		}
	}()
	return func() map[string][32]byte { close(end); return <-done }
}

// btrfs grows and shrinks under a writer, and what it gives back is free outside.
func TestBtrfs(t *testing.T) {
	v := newVolumeOf(t, state.Btrfs, 3<<30, 1<<30)
	sums := map[string][32]byte{}
	for i := range 8 {
		name := fmt.Sprint("file", i)
		sums[name] = put(t, v, name, 5<<20+i*4099)
	}
	first, err := v.Measure()
	if err != nil {
		t.Fatal(err)
	}
	if first.Filesystem != "btrfs" || first.Reserved != testBegin+1<<30 || first.Spanned != 1<<30 || first.OverCommitted != 0 || first.GivenBack != 0 {
		t.Errorf("Measure = %+v", first)
	}
	stop := writer(t, v)
	random := mathrand.New(mathrand.NewPCG(7, 7))
	shrunk := 0
	for i := range 40 {
		m, err := v.Measure()
		if err != nil {
			t.Fatal(err)
		}
		// Not to the last byte: the writer goes on.
		from := min(m.MinReserved+64<<20, m.Reserved)
		want := from + random.Int64N(2<<30-from)
		got, err := v.Resize(t.Context(), want)
		// Its chunks may keep it larger than what it uses.
		if err != nil && !errors.Is(err, ErrTooSmall) {
			t.Fatalf("step %d to %d of %+v: %v", i, want, m, err)
		}
		if err == nil && (got.Reserved < want-1<<20 || got.Reserved > want+1<<20) {
			t.Errorf("step %d: %d reserved, want %d", i, got.Reserved, want)
		}
		if got.Reserved < m.Reserved {
			shrunk++
		}
		backed(t, v)
	}
	for name, sum := range stop() {
		sums[name] = sum
	}
	if shrunk < 8 {
		t.Errorf("%d of 40 steps made it smaller", shrunk)
	}
	check(t, v, sums)

	if _, err := v.Resize(t.Context(), first.Reserved); err != nil {
		t.Fatal(err)
	}
	remove := fillOuter(t, v)
	for i := range 4 {
		name := fmt.Sprint("full", i)
		sums[name] = put(t, v, name, 6<<20)
	}
	if _, err := v.Resize(t.Context(), first.Reserved+64<<20); !errors.Is(err, ErrNoRoom) {
		t.Errorf("growing on a full file system: %v, want %v", err, ErrNoRoom)
	}
	if got, err := v.Resize(t.Context(), first.Reserved-64<<20); err != nil || got.Reserved != first.Reserved-64<<20 {
		t.Errorf("shrinking on a full file system: %+v, %v", got, err)
	}
	remove()
	check(t, v, sums)
	writable(t, v)
}

// writable fails when the kernel has given the file system up.
func writable(t *testing.T, v *Volume) {
	t.Helper()
	if m, err := v.Measure(); err != nil || m.ReadOnly {
		t.Errorf("Measure = %+v, %v: read-only", m, err)
	}
}

// What is asked for is too small: nothing changes, and nothing is tried.
func TestBtrfsTooSmall(t *testing.T) {
	v := newVolumeOf(t, state.Btrfs, 2<<30, 1<<30)
	put(t, v, "file", 200<<20)
	m, err := v.Measure()
	if err != nil {
		t.Fatal(err)
	}
	if left := m.MinReserved - testBegin - m.InnerUsed; left < 256<<20 {
		t.Errorf("%+v: only %d bytes stay free at least", m, left)
	}
	v.in.(*btrfsFS).resize = func(int, uint64, uint64) error { t.Error("the kernel is asked"); return unix.ENOSPC }
	if got, err := v.Resize(t.Context(), m.MinReserved-4096); !errors.Is(err, ErrTooSmall) || got.Reserved != m.Reserved {
		t.Errorf("below the least: %+v, %v", got, err)
	}
	// The kernel finds no room at the second step: the first one counts, and no third is tried.
	asked := 0
	v.in.(*btrfsFS).resize = func(fd int, device, size uint64) error {
		if asked++; asked > 1 {
			return unix.ENOSPC
		}
		return btrfs.Resize(fd, device, size)
	}
	got, err := v.Resize(t.Context(), m.Reserved-200<<20)
	if !errors.Is(err, ErrTooSmall) || asked != 2 || got.Reserved != m.Reserved-128<<20 || got.OverCommitted != 0 {
		t.Errorf("ENOSPC at the second step: %+v, %v after %d", got, err, asked)
	}
	backed(t, v)
	// One that says it is done, and is not: nothing is given back.
	v.in.(*btrfsFS).resize = func(int, uint64, uint64) error { return nil }
	if again, err := v.Resize(t.Context(), got.Reserved-64<<20); err == nil || again.Reserved != got.Reserved || again.OverCommitted != 0 {
		t.Errorf("a size that the superblock does not have: %+v, %v", again, err)
	}
	writable(t, v)
}

// Chunks that are half empty after files were removed are moved together.
func TestBtrfsCompacts(t *testing.T) {
	v := newVolumeOf(t, state.Btrfs, 3<<30, 2<<30)
	b := bytes.Repeat([]byte{7}, 4<<20)
	for i := range 300 {
		if err := os.WriteFile(filepath.Join(v.root.Name(), fmt.Sprint("file", i)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "sync", "-f", v.root.Name())
	for i := range 300 {
		if i%4 != 0 {
			if err := os.Remove(filepath.Join(v.root.Name(), fmt.Sprint("file", i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	run(t, "sync", "-f", v.root.Name())
	moved := 0
	v.in.(*btrfsFS).pack = func(fd int, percent uint64) error { moved++; return btrfs.Compact(fd, percent) }
	m, err := v.Resize(t.Context(), testBegin+1<<30)
	if err != nil || m.Reserved != testBegin+1<<30 || moved == 0 {
		t.Errorf("Resize = %+v, %v; %d compacted", m, err, moved)
	}
	backed(t, v)
}

// A stray `btrfs filesystem resize max` is reserved, or taken back where there is no room.
func TestBtrfsStrayResize(t *testing.T) {
	v := newVolumeOf(t, state.Btrfs, 1<<30, 512<<20)
	sum := map[string][32]byte{"file": put(t, v, "file", 3<<20)}
	stray := func(size int64) {
		t.Helper()
		run(t, "btrfs", "filesystem", "resize", fmt.Sprint(size), v.root.Name())
		if m, err := v.Measure(); err != nil || m.OverCommitted != size-512<<20 {
			t.Fatalf("Measure = %+v, %v, want %d over-committed", m, err, size-512<<20)
		}
	}
	stray(600 << 20)
	if m, err := v.Repair(t.Context()); err != nil || m.OverCommitted != 0 || m.Spanned != 600<<20 {
		t.Errorf("Repair with room: %+v, %v", m, err)
	}
	if _, err := v.Resize(t.Context(), testBegin+512<<20); err != nil {
		t.Fatal(err)
	}
	stray(3 << 30)
	if m, err := v.Repair(t.Context()); err != nil || m.OverCommitted != 0 || m.ReadOnly || m.Spanned > 1<<30 {
		t.Errorf("Repair without room: %+v, %v", m, err)
	}
	backed(t, v)
	check(t, v, sum)
}

// Other programs may have written to a part of what a stray resize has taken: that too is
// given up, and what was reserved for it is free outside.
func TestBtrfsStrayResizeWithPieces(t *testing.T) {
	v := newVolumeOf(t, state.Btrfs, 1<<30, 512<<20)
	run(t, "btrfs", "filesystem", "resize", fmt.Sprint(3<<30), v.root.Name())
	const piece = 8 << 20
	for _, at := range []int64{1 << 30, 2 << 30, 3<<30 - piece} { // the last one is its end
		if err := state.Reserve(v.image, testBegin+at, piece); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := v.Repair(t.Context()); err != nil || m.OverCommitted != 0 || m.ReadOnly || m.Spanned > 1<<30 {
		t.Errorf("Repair: %+v, %v", m, err)
	}
	backed(t, v)
	if there, err := files.Reserved(v.image, testBegin+1<<30, testBegin+3<<30); err != nil || len(there) > 0 {
		t.Errorf("%v beyond its end are reserved still, %v", there, err)
	}
}

// Another program makes it larger between its getting smaller and the giving back.
func TestBtrfsStrayResizeBetween(t *testing.T) {
	v := newVolumeOf(t, state.Btrfs, 2<<30, 1<<30)
	sums := map[string][32]byte{"file": put(t, v, "file", 3<<20)}
	b := v.in.(*btrfsFS)
	looked, shrunk := 0, false
	b.resize = func(fd int, device, size uint64) error {
		shrunk = true
		return btrfs.Resize(fd, device, size)
	}
	b.info = func(fd int) (btrfs.Info, error) {
		if shrunk {
			if looked++; looked == 2 { // the first look is the proof that it is smaller
				run(t, "btrfs", "filesystem", "resize", "max", v.root.Name())
			}
		}
		return btrfs.ReadInfo(fd)
	}
	m, err := v.Resize(t.Context(), testBegin+900<<20)
	if !errors.Is(err, ErrBusy) || m.OverCommitted == 0 {
		t.Errorf("Resize = %+v, %v, want %v", m, err, ErrBusy)
	}
	if there, err := files.Reserved(v.image, testBegin, testBegin+1<<30); err != nil || balloon.Total(there) != 1<<30 {
		t.Errorf("%v of it are reserved, %v: some was given back", there, err)
	}
	if m, err := v.Repair(t.Context()); err != nil || m.OverCommitted != 0 || m.ReadOnly {
		t.Errorf("Repair: %+v, %v", m, err)
	}
	check(t, v, sums)
}

// A balance keeps others out: nothing of the size changes, and it is said who is in the way.
func TestBtrfsBusy(t *testing.T) {
	v := newVolumeOf(t, state.Btrfs, 2<<30, 1<<30)
	b := v.in.(*btrfsFS)
	b.resize = func(int, uint64, uint64) error { return unix.EBUSY }
	for _, size := range []int64{900 << 20, 1100 << 20} {
		if m, err := v.Resize(t.Context(), testBegin+size); !errors.Is(err, ErrBusy) || m.Spanned != 1<<30 || m.OverCommitted != 0 {
			t.Errorf("Resize to %d = %+v, %v, want %v", size, m, err, ErrBusy)
		}
	}
	backed(t, v)
}

// What was made read-only is writable again.
func TestBtrfsWritableAgain(t *testing.T) {
	v := newVolumeOf(t, state.Btrfs, 1<<30, 512<<20)
	sums := map[string][32]byte{"file": put(t, v, "file", 3<<20)}
	if err := v.remount(unix.MS_RDONLY); err != nil {
		t.Fatal(err)
	}
	if m, err := v.Resize(t.Context(), testBegin+600<<20); !errors.Is(err, ErrReadOnly) || !m.ReadOnly {
		t.Errorf("Resize = %+v, %v, want %v", m, err, ErrReadOnly)
	}
	// Larger than its devices: these are made by a boot.
	was := v.devices
	v.devices = shortDevices{was}
	if m, err := v.MakeWritable(); !errors.Is(err, ErrReadOnly) || !m.ReadOnly {
		t.Errorf("MakeWritable of what ends behind its devices = %+v, %v, want %v", m, err, ErrReadOnly)
	}
	v.devices = was
	if m, err := v.MakeWritable(); err != nil || m.ReadOnly {
		t.Errorf("MakeWritable = %+v, %v", m, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, v.root.Name()) && strings.Contains(line, "discard=") {
			t.Errorf("it discards now: %s", line)
		}
	}
	sums["second"] = put(t, v, "second", 1<<20)
	check(t, v, sums)
}

// shortDevices end before the file system.
type shortDevices struct{ devices }

func (shortDevices) size() (int64, error) { return 256 << 20, nil }

// A second device is not in encrypted.img: nothing is resized until it is gone.
func TestBtrfsOnTwoDevices(t *testing.T) {
	v := newVolumeOf(t, state.Btrfs, 1<<30, 512<<20)
	device := v.in.(*btrfsFS).device
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		t.Fatal(err)
	}
	c := crypt{path: device, number: st.Rdev}
	second := filepath.Join(t.TempDir(), "second")
	if err := errors.Join(os.WriteFile(second, nil, 0o600), os.Truncate(second, 512<<20)); err != nil {
		t.Fatal(err)
	}
	other := run(t, "losetup", "--show", "--find", second)
	t.Cleanup(func() { run(t, "losetup", "-d", other) })
	run(t, "btrfs", "device", "add", "-f", "-K", other, v.root.Name())
	if _, err := innerOf(v.root, c); !errors.Is(err, ErrNotOpen) || !strings.Contains(err.Error(), "2 devices") {
		t.Errorf("on two devices: %v, want %v", err, ErrNotOpen)
	}
	if _, err := v.Resize(t.Context(), testBegin+600<<20); !errors.Is(err, btrfs.ErrSuperblock) {
		t.Errorf("added after it was opened: %v, want %v", err, btrfs.ErrSuperblock)
	}
	run(t, "btrfs", "device", "remove", other, v.root.Name())
	if _, err := innerOf(v.root, c); err != nil {
		t.Errorf("on one device again: %v", err)
	}
	if m, err := v.Resize(t.Context(), testBegin+600<<20); err != nil || m.Spanned != 600<<20 {
		t.Errorf("on one device again: Resize = %+v, %v", m, err)
	}
	backed(t, v)
}

// The file system of another device is not the volume's.
func TestBtrfsOfAnotherDevice(t *testing.T) {
	v := newVolumeOf(t, state.Btrfs, 1<<30, 512<<20)
	device := v.in.(*btrfsFS).device
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]crypt{
		"another":        {path: "/dev/loop-control", number: st.Rdev},
		"another_number": {path: device, number: st.Rdev + 1},
	} {
		if _, err := innerOf(v.root, c); !errors.Is(err, ErrNotOpen) {
			t.Errorf("%s: %v, want %v", name, err, ErrNotOpen)
		}
	}
	if _, err := innerOf(v.root, crypt{path: device, number: st.Rdev}); err != nil {
		t.Errorf("control: %v", err)
	}
}

func TestShrinkStep(t *testing.T) {
	const mib, gib = int64(1 << 20), int64(1 << 30)
	for name, c := range map[string]struct{ n, size, allocated, room, want int64 }{
		"all_of_it":         {10 * mib, 10 * gib, 2 * gib, 7 * gib, 10 * mib},
		"a_gigabyte_a_step": {5 * gib, 20 * gib, 2 * gib, 17 * gib, gib},
		"an_eighth_a_step":  {gib, 2 * gib, 400 * mib, gib, 256 * mib},
		"small":             {200 * mib, 400 * mib, 10 * mib, 300 * mib, 64 * mib},
		"slack":             {gib, 20 * gib, 2 * gib, 100*mib + 5, 100 * mib},
		"no_slack":          {gib, 20 * gib, 2 * gib, -5, 0},
		"chunks":            {gib, 20 * gib, 19*gib - 300*mib, 5 * gib, 300 * mib},
		"full_of_chunks":    {gib, 20 * gib, 20 * gib, 5 * gib, 0},
		"whole_blocks":      {4097, 20 * gib, 2 * gib, 5 * gib, 4096},
	} {
		if got := shrinkStep(c.n, c.size, c.allocated, c.room); got != c.want {
			t.Errorf("%s: %d MiB, want %d MiB", name, got/mib, c.want/mib)
		}
	}
	var b *btrfsFS
	for used, want := range map[int64]int64{0: 256 * mib, 300 * mib: 300 * mib, 2 * gib: gib, 100 * gib: 15 * gib} {
		if got := b.slack(used); got/mib != want/mib {
			t.Errorf("slack(%d) = %d, want %d", used, got, want)
		}
	}
}
