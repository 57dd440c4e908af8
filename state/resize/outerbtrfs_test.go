package resize

import (
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
	"sealroot/state/layout"
)

// With btrfs outside all goes as with ext4, in its units; and what is given back is free
// there, by its own account.
func TestOuterBtrfs(t *testing.T) {
	for kind, sizes := range map[state.Filesystem][2]int64{state.Ext4: {768 << 20, 384 << 20}, state.Btrfs: {2 << 30, 1 << 30}} {
		t.Run(string(kind), func(t *testing.T) {
			v := newVolumeOn(t, state.Btrfs, kind, sizes[0], sizes[1])
			sums := map[string][32]byte{}
			for i := range 8 {
				name := fmt.Sprint("file", i)
				sums[name] = put(t, v, name, 5<<20+i*4099)
			}
			run(t, "sync", "-f", v.dir.Name())
			first, err := v.Measure()
			if err != nil {
				t.Fatal(err)
			}
			if first.Reserved != testBegin+sizes[1] || first.OverCommitted != 0 || first.GivenBack != 0 || first.Copied != 0 {
				t.Errorf("Measure = %+v", first)
			}
			random := mathrand.New(mathrand.NewPCG(7, 7))
			shrunk, refused := 0, 0
			for i := range 10 {
				m, err := v.Measure()
				if err != nil {
					t.Fatal(err)
				}
				from := min(m.MinReserved+64<<20, m.Reserved)
				want := from + random.Int64N(max(first.Reserved-from, 0)+1)
				got, err := v.Resize(t.Context(), want)
				if errors.Is(err, ErrTooSmall) {
					refused++ // its free space lies in pieces
				} else if err != nil {
					t.Fatalf("step %d to %d of %+v: %v", i, want, m, err)
				} else if off := got.Reserved - want; off < -2*v.unit || off > 64*v.unit {
					t.Errorf("step %d: %d reserved, want %d, %d off", i, got.Reserved, want, off)
				}
				if got.Reserved < m.Reserved {
					shrunk++
				}
				// What is free outside is what is not reserved: no extent is held for a part.
				if lost := got.OuterFree - first.OuterFree - (first.Reserved - got.Reserved); lost < -8<<20 || lost > 8<<20 {
					t.Errorf("step %d: %d MiB free outside, %d reserved, first %d and %d", i, got.OuterFree>>20, got.Reserved>>20, first.OuterFree>>20, first.Reserved>>20)
				}
				backed(t, v)
				name := fmt.Sprint("file", random.IntN(8))
				sums[name] = put(t, v, name, 1<<20+random.IntN(8<<20))
			}
			if shrunk < 2 || refused > 3 {
				t.Errorf("%d of 10 steps made it smaller, %d were refused", shrunk, refused)
			}
			check(t, v, sums)

			if _, err := v.Resize(t.Context(), first.Reserved-128<<20); err != nil && !errors.Is(err, ErrTooSmall) {
				t.Fatal(err)
			}
			m, err := v.Measure()
			if err != nil {
				t.Fatal(err)
			}
			remove := fillOuter(t, v)
			for i := range 4 {
				name := fmt.Sprint("full", i)
				sums[name] = put(t, v, name, 6<<20)
			}
			if _, err := v.Resize(t.Context(), m.Reserved+64<<20); !errors.Is(err, ErrNoRoom) {
				t.Errorf("growing on a full file system: %v, want %v", err, ErrNoRoom)
			}
			if got, err := v.Resize(t.Context(), m.Reserved-32<<20); err != nil || got.Reserved > m.Reserved-16<<20 {
				t.Errorf("shrinking on a full file system: %+v, %v", got, err)
			}
			remove()
			if got, err := v.Resize(t.Context(), first.Reserved); err != nil || got.Reserved < first.Reserved-1<<20 || got.GivenBack != 0 {
				t.Errorf("all taken back: %+v, %v", got, err)
			}
			backed(t, v)
			check(t, v, sums)
		})
	}
}

// The last unit of what ext4 spans is released only up to its end: whoever makes it larger
// just then has reserved what follows.
func TestReleaseEndsWithExt4(t *testing.T) {
	v := newVolumeOn(t, state.Btrfs, state.Ext4, 512<<20, 129<<20)
	m, err := v.Measure()
	if err != nil {
		t.Fatal(err)
	}
	end := v.begin + m.Spanned
	border := (end + v.unit - 1) / v.unit * v.unit
	if border == end {
		t.Fatalf("the end %d lies on the border of a unit", end)
	}
	if err := state.Reserve(v.image, end, border-end); err != nil {
		t.Fatal(err)
	}
	// Free in a new file system, and in no balloon: nothing writes there in this test.
	if _, err := v.release([]balloon.Range{{Start: border - v.unit, End: end}}); err != nil {
		t.Fatal(err)
	}
	for _, part := range []balloon.Range{{Start: border - v.unit, End: end}, {Start: end, End: border}} {
		there, err := files.Reserved(v.image, part.Start, part.End)
		if want := part.Start == end; err != nil || (balloon.Total(there) == part.Bytes()) != want || !want && len(there) > 0 {
			t.Errorf("of %v %v is reserved, %v, want all: %v", part, there, err, want)
		}
	}
}

// Giving back does not wait for what is written beside the volume, of which there may be
// more and more: whoever writes there is in need of the space.
func TestOuterBtrfsGivesBackBesideAWriter(t *testing.T) {
	v := newVolumeOn(t, state.Btrfs, state.Ext4, 768<<20, 384<<20)
	run(t, "sync", "-f", v.dir.Name())
	before, err := v.Measure()
	if err != nil {
		t.Fatal(err)
	}
	const written, back = 64 << 20, 128 << 20
	f, err := os.Create(filepath.Join(v.dir.Name(), "written"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, written)); err != nil {
		t.Fatal(err)
	}
	after, err := v.Resize(t.Context(), before.Reserved-back)
	if err != nil {
		t.Fatal(err)
	}
	// "1: 0.. 16383: 0.. 16383: 16384: unknown,delalloc": what is in memory only.
	if text := run(t, "filefrag", "-v", f.Name()); !strings.Contains(text, "delalloc") {
		t.Errorf("what was written beside it is on the disk: it was waited for\n%s", text)
	}
	if free := after.OuterFree - before.OuterFree + written; free < back*9/10 {
		t.Errorf("%d MiB given back, and %d more are free", (before.Reserved-after.Reserved)>>20, free>>20)
	}
}

// freeOf is what btrfs has once its transaction has ended.
func freeOf(t *testing.T, dir string) int64 {
	t.Helper()
	run(t, "sync", "-f", dir)
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	return int64(fs.Bavail) * fs.Bsize
}

// The control of TestOuterBtrfs: what is reserved in one piece does not come back in parts.
func TestBtrfsKeepsWholeExtents(t *testing.T) {
	v := newVolumeOn(t, state.Btrfs, state.Ext4, 1<<30, 128<<20)
	const at, n = 256 << 20, 64 << 20
	for _, tt := range []struct {
		name    string
		reserve func() error
		back    int64
	}{
		{"in_units", func() error { return state.Reserve(v.image, at, n) }, n / 2},
		{"in_one_piece", func() error { return unix.Fallocate(int(v.image.Fd()), unix.FALLOC_FL_KEEP_SIZE, at, n) }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.reserve(); err != nil {
				t.Fatal(err)
			}
			before := freeOf(t, v.dir.Name())
			if err := state.Release(v.image, at, at+n/2); err != nil {
				t.Fatal(err)
			}
			if got := freeOf(t, v.dir.Name()) - before; got < tt.back-1<<20 || got > tt.back+1<<20 {
				t.Errorf("%d bytes came back, want %d", got, tt.back)
			}
			if err := state.Release(v.image, at, at+n); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// After a snapshot nothing is written in place, not even when the snapshot is gone. It is
// noticed, and made good while the volume is read-only.
func TestSnapshot(t *testing.T) {
	v := newVolumeOn(t, state.Btrfs, state.Ext4, 768<<20, 128<<20)
	sums := map[string][32]byte{}
	for i := range 8 {
		name := fmt.Sprint("file", i)
		sums[name] = put(t, v, name, 5<<20+i*4099)
	}
	first, err := v.Measure()
	if err != nil {
		t.Fatal(err)
	}
	snapshot := filepath.Join(v.dir.Name(), "snapshot")
	expect := func(when string, copied bool) {
		t.Helper()
		s, err := v.Measure()
		if err != nil {
			t.Fatal(err)
		}
		if copied && s.Copied < first.Reserved*9/10 || !copied && s.Copied != 0 {
			t.Errorf("%s: %d of %d bytes are copied, want all: %v", when, s.Copied, s.Reserved, copied)
		}
	}
	// Of what lies beside it, nothing.
	run(t, "btrfs", "subvolume", "snapshot", v.dir.Name(), snapshot)
	expect("after a snapshot of the partition", false)
	if entries, err := os.ReadDir(filepath.Join(snapshot, layout.ImageSubvolume)); err != nil || len(entries) != 0 {
		t.Errorf("the snapshot of the partition has %v of the volume: %v", entries, err)
	}
	run(t, "btrfs", "subvolume", "delete", snapshot)
	run(t, "btrfs", "subvolume", "snapshot", filepath.Join(v.dir.Name(), layout.ImageSubvolume), snapshot)
	expect("after a snapshot", true)
	run(t, "btrfs", "subvolume", "delete", "--commit-after", snapshot)
	run(t, "btrfs", "subvolume", "sync", v.dir.Name())
	expect("after the snapshot is gone", true)
	// That it is true: overwriting takes room, which there may be none of. The volume's own
	// journal must not need it just then.
	run(t, "fsfreeze", "-f", v.root.Name())
	remove := fillOuter(t, v)
	block := make([]byte, 4096)
	if _, err = v.image.ReadAt(block, 0); err == nil {
		_, err = v.image.WriteAt(block, 0)
		err = errors.Join(err, v.image.Sync())
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("control: written over what a snapshot had, on a full file system: %v, want %v", err, unix.ENOSPC)
	}
	remove()
	run(t, "fsfreeze", "-u", v.root.Name())

	for _, want := range []int64{first.Reserved + 64<<20, Largest} {
		if got, err := v.Resize(t.Context(), want); !errors.Is(err, ErrCopied) || got.Reserved != first.Reserved {
			t.Errorf("grown to %d: %+v, %v, want %v", want, got, err, ErrCopied)
		}
	}
	if _, err := v.Repair(t.Context()); !errors.Is(err, ErrCopied) {
		t.Errorf("repaired while it is writable: %v, want %v", err, ErrCopied)
	}
	// Read-only by this mount alone is writable by another.
	run(t, "mount", "-o", "remount,ro,bind", v.root.Name())
	if s, err := v.Repair(t.Context()); !errors.Is(err, ErrCopied) || !s.ReadOnly {
		t.Errorf("repaired while its mount is read-only: %+v, %v, want %v", s, err, ErrCopied)
	}
	run(t, "mount", "-o", "remount,rw,bind", v.root.Name())
	run(t, "mount", "-o", "remount,ro", v.root.Name())
	remount := func() error {
		return unix.Mount("", v.root.Name(), "", unix.MS_REMOUNT, "")
	}
	if err := v.whileReadOnly(remount); !errors.Is(err, unix.EBUSY) {
		t.Errorf("made writable while it is repaired: %v, want %v", err, unix.EBUSY)
	}
	write := func() error { return os.WriteFile(filepath.Join(v.root.Name(), "new"), nil, 0o600) }
	if err := v.whileReadOnly(write); !errors.Is(err, unix.EROFS) { // and nobody waits for it
		t.Errorf("written to while it is repaired: %v, want %v", err, unix.EROFS)
	}
	// Who has it frozen, or a repair that was killed, has it so until fsfreeze -u.
	run(t, "fsfreeze", "-f", v.root.Name())
	if _, err := v.MakeWritable(); !errors.Is(err, ErrCopied) {
		t.Errorf("made writable: %v, want %v", err, ErrCopied)
	}
	if _, err := v.Repair(t.Context()); !errors.Is(err, ErrFrozen) {
		t.Errorf("repaired while it is frozen: %v, want %v", err, ErrFrozen)
	}
	run(t, "fsfreeze", "-u", v.root.Name()) // it is frozen still, or this fails
	s, err := v.Repair(t.Context())
	if err != nil || s.Copied != 0 || s.OverCommitted != 0 || s.Reserved != first.Reserved {
		t.Errorf("repaired: %+v, %v", s, err)
	}
	run(t, "fsfreeze", "-f", v.root.Name())
	if s, err = v.MakeWritable(); !errors.Is(err, ErrFrozen) || !s.ReadOnly {
		t.Errorf("made writable while it is frozen: %+v, %v, want %v", s, err, ErrFrozen)
	}
	run(t, "fsfreeze", "-u", v.root.Name())
	if s, err = v.MakeWritable(); err != nil || s.ReadOnly {
		t.Errorf("made writable: %+v, %v", s, err)
	}
	if free := freeOf(t, v.dir.Name()); free < first.OuterFree-32<<20 {
		t.Errorf("repaired: %d MiB free outside, %d before", free>>20, first.OuterFree>>20)
	}
	remove = fillOuter(t, v)
	for i := range 8 {
		name := fmt.Sprint("file", i)
		sums[name] = put(t, v, name, 6<<20)
	}
	remove()
	check(t, v, sums)

	// A second file with the same extents.
	clone := filepath.Join(v.dir.Name(), "clone")
	run(t, "touch", clone)
	run(t, "chattr", "+C", clone)
	run(t, "cp", "--reflink=always", filepath.Join(v.dir.Name(), layout.ImageSubvolume, state.ImageName), clone)
	expect("with a clone", true)
	if err := os.Remove(clone); err != nil {
		t.Fatal(err)
	}
	run(t, "sync", "-f", v.dir.Name())
	expect("after the clone is gone", false)
}

// A file without the attribute is never written in place.
func TestCopiedWithoutAttribute(t *testing.T) {
	v := newVolumeOn(t, state.Btrfs, state.Ext4, 1<<30, 128<<20)
	f, err := os.Create(filepath.Join(v.dir.Name(), "other"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(f.Truncate(1<<20), state.Reserve(f, 0, 1<<20)); err != nil {
		t.Fatal(err)
	}
	list, err := state.CopiedOnWrite(f, 1<<20)
	if err != nil || balloon.Total(list) != 1<<20 {
		t.Errorf("CopiedOnWrite = %v, %v, want all of it", list, err)
	}
	if flags, err := unix.IoctlGetUint32(int(v.image.Fd()), unix.FS_IOC_GETFLAGS); err != nil || flags&files.NoCopy == 0 {
		t.Errorf("flags of the volume %#x, %v", flags, err)
	}
}

// A volume whose journal was left alone is not made writable; the control is one whose was
// not. What is mounted is ext4 and btrfs, with the options that PID 1 uses.
func TestNotReplayed(t *testing.T) {
	for _, kind := range []state.Filesystem{state.Ext4, state.Btrfs} {
		t.Run(string(kind), func(t *testing.T) {
			dir := t.TempDir()
			disk, where := filepath.Join(dir, "disk"), filepath.Join(dir, "mount")
			if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 256<<20), os.Mkdir(where, 0o700)); err != nil {
				t.Fatal(err)
			}
			run(t, "mkfs."+string(kind), "-q", disk)
			for options, refused := range map[string]bool{"ro": false, "ro," + kind.NoReplay(): true} {
				run(t, "mount", "-o", "loop,"+options, disk, where)
				root, err := os.Open(where)
				if err != nil {
					t.Fatal(err)
				}
				v := &Volume{root: root}
				if err := v.replayed(); errors.Is(err, ErrReadOnly) != refused {
					t.Errorf("mounted with %s: %v, want refused %v", options, err, refused)
				}
				root.Close()
				run(t, "umount", where)
			}
		})
	}
}

func TestOptionsOf(t *testing.T) {
	text := []byte("36 35 98:0 / /mnt1 rw,noatime master:1 - ext3 /dev/root ro,errors=continue\n361 35 98:0 / / ro - ext4 /dev/x rw\n3 4 short\n")
	for id, want := range map[uint64]string{36: "ro,errors=continue", 361: "rw", 3: "", 6: ""} {
		if got := strings.Join(optionsOf(text, id), ","); got != want {
			t.Errorf("optionsOf(%d) = %q, want %q", id, got, want)
		}
	}
}

// What of the free space is not to be had is named: else more is free than is asked for.
func TestNoRoomNamesWhatIsKept(t *testing.T) {
	m := measured{Sizes: Sizes{Reserved: 4 << 30, MaxReserved: 4<<30 + 76<<20, OuterFree: 1100 << 20, KeptOutside: 1 << 30, Apparent: 16 << 30, Device: 16 << 30}}
	_, err := m.bounded(4<<30 + 900<<20)
	const want = "cannot grow the volume by 900 MiB, at most by 76 MiB: of 1100 MiB free on the state partition 1024 MiB stay free"
	if !errors.Is(err, ErrNoRoom) || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("bounded() = %v, want %s", err, want)
	}
}

// btrfs outside may have no room for the metadata that a hole takes: to give back is refused
// then as for any lack of room, and nothing is lost.
func TestOuterBtrfsHasNoRoomForAHole(t *testing.T) {
	v := newVolumeOn(t, state.Btrfs, state.Ext4, 768<<20, 384<<20)
	place := filepath.Join(v.dir.Name(), layout.ImageSubvolume)
	run(t, "sync", "-f", v.root.Name())
	run(t, "btrfs", "quota", "enable", v.dir.Name())
	run(t, "btrfs", "quota", "rescan", "-w", v.dir.Name())
	run(t, "btrfs", "qgroup", "limit", "1M", place)
	// Free in a new file system, and in no balloon: nothing writes there in this test.
	end := v.begin + 384<<20
	part := balloon.Range{Start: end - 2*v.unit, End: end - v.unit}
	n, err := v.release([]balloon.Range{part})
	gerr := v.giveBack(part)
	werr := v.anew(t.Context(), part, true)
	there, rerr := files.Reserved(v.image, part.Start, part.End)
	run(t, "btrfs", "quota", "disable", v.dir.Name())
	if n != 0 || rerr != nil || balloon.Total(there) != part.Bytes() {
		t.Errorf("released %d bytes; there is %v, %v", n, there, rerr)
	}
	for name, err := range map[string]error{"release": err, "giveBack": gerr, "anew": werr} {
		if !errors.Is(err, ErrNoRoom) || !errors.Is(err, unix.EDQUOT) {
			t.Errorf("%s: %v, want %v", name, err, ErrNoRoom)
		}
	}
}

func TestNoRoom(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false}, {unix.EIO, false}, {unix.EROFS, false}, {unix.ENOSPC, true},
		{fmt.Errorf("cannot sync: %w", unix.EDQUOT), true}, {fmt.Errorf("%w: %w", ErrNoRoom, unix.ENOSPC), true},
	} {
		got := noRoom(c.err)
		if errors.Is(got, ErrNoRoom) != c.want || !errors.Is(got, c.err) || got != nil && strings.Count(got.Error(), ErrNoRoom.Error()) > 1 {
			t.Errorf("noRoom(%v) = %v", c.err, got)
		}
	}
}
