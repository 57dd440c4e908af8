package resize

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/mount/dm"
	"sealroot/state"
	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/layout"
	"sealroot/tooltest"
)

const (
	testBegin = 16 << 20
	testUUID  = "0e1f0203-0405-4607-8809-0a0b0c0d0e0f"
)

// run is tooltest.Run without the last newline.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	return strings.TrimSpace(tooltest.Run(t, name, args...))
}

// newVolume is an ext4 file system of inside bytes in encrypted.img, on an ext4 file
// system of outside bytes: all as on a machine, but for dm-crypt, which the loop
// device's offset stands in for.
func newVolume(t *testing.T, outside, inside int64) *Volume {
	t.Helper()
	return newVolumeOf(t, state.Ext4, outside, inside)
}

func newVolumeOf(t *testing.T, kind state.Filesystem, outside, inside int64) *Volume {
	t.Helper()
	return newVolumeOn(t, state.Ext4, kind, outside, inside)
}

// newVolumeOn is one on an outer file system of that type.
func newVolumeOn(t *testing.T, outer, kind state.Filesystem, outside, inside int64) *Volume {
	t.Helper()
	dir := t.TempDir()
	disk, where := filepath.Join(dir, "disk"), filepath.Join(dir, "state")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, outside), os.Mkdir(where, 0o700)); err != nil {
		t.Fatal(err)
	}
	place, outerJudge := where, []string{"e2fsck", "-fn", disk}
	if outer == state.Btrfs {
		place, outerJudge = filepath.Join(where, layout.ImageSubvolume), []string{"btrfs", "check", "--readonly", disk}
		run(t, "mkfs.btrfs", "-q", "-K", "-m", "DUP", "-d", "single", disk)
		run(t, "mount", "-o", "loop,"+strings.Join(outer.MountOptions(), ","), disk, where)
		run(t, "btrfs", "subvolume", "create", place)
		run(t, "chattr", "+C", place)
	} else {
		run(t, "mke2fs", "-q", "-t", "ext4", "-m", "0", disk)
		run(t, "mount", "-o", "loop", disk, where)
	}
	t.Cleanup(func() {
		run(t, "umount", where)
		run(t, outerJudge[0], outerJudge[1:]...)
	})
	image := filepath.Join(place, state.ImageName)
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(4<<30), state.Reserve(f, 0, testBegin+inside), f.Close()); err != nil {
		t.Fatal(err)
	}
	inner := filepath.Join(where, state.MountDir)
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	device := run(t, "losetup", "--show", "--find", "--direct-io=on", "--sector-size=4096", "-o", fmt.Sprint(testBegin), image)
	t.Cleanup(func() { run(t, "losetup", "-d", device) })
	options, judge := kind.MountOptions(), []string{"btrfs", "check", "--readonly", device}
	if kind == state.Ext4 {
		options, judge = append(options, "noinit_itable"), []string{"e2fsck", "-fn", device}
		run(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-m", "0", "-E", "nodiscard", device, fmt.Sprint(inside/4096))
	} else {
		run(t, "mkfs.btrfs", "-q", "-K", "-m", "DUP", "-d", "single", "-b", fmt.Sprint(inside), device)
	}
	// The kernel zeroes inode tables in a way that a loop device makes holes of; dm-crypt
	// has no such request and writes zeros.
	run(t, "mount", "-o", strings.Join(options, ","), device, inner)
	t.Cleanup(func() {
		run(t, "umount", inner)
		run(t, judge[0], judge[1:]...)
	})
	v, err := open(Places{State: where, Lock: filepath.Join(dir, "lock")}, func(*os.File) (crypt, error) {
		var st unix.Stat_t
		err := unix.Stat(device, &st)
		return crypt{path: device, number: st.Rdev, begin: testBegin, uuid: testUUID}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

// put writes random files and returns their sums.
func put(t *testing.T, v *Volume, name string, size int) [32]byte {
	t.Helper()
	b := make([]byte, size)
	rand.Read(b)
	f, err := os.Create(filepath.Join(v.root.Name(), name))
	if err == nil {
		_, err = f.Write(b)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(b)
}

// check compares the files past every cache.
func check(t *testing.T, v *Volume, sums map[string][32]byte) {
	t.Helper()
	for name, want := range sums {
		path := filepath.Join(v.root.Name(), name)
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		f.Close()
		b, rerr := os.ReadFile(path)
		if err := errors.Join(err, rerr); err != nil || sha256.Sum256(b) != want {
			t.Errorf("%s reads otherwise: %v", name, err)
		}
	}
}

// backed fails when a block that no balloon has is not reserved, or a hole not recorded.
func backed(t *testing.T, v *Volume) {
	t.Helper()
	m, err := v.measure(true)
	if err != nil {
		t.Fatal(err)
	}
	if m.OverCommitted != 0 {
		t.Errorf("%d bytes are over-committed", m.OverCommitted)
	}
	if loose := balloon.Without(m.holes, v.recorded()); len(loose) > 0 {
		t.Errorf("holes %v are not recorded", loose)
	}
}

// fillOuter takes all that the outer file system has.
func fillOuter(t *testing.T, v *Volume) (remove func()) {
	t.Helper()
	path := filepath.Join(v.dir.Name(), "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<20)
	for err == nil {
		_, err = f.Write(b)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil && !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		run(t, "sync", "-f", v.dir.Name())
	}
}

func TestBalloons(t *testing.T) {
	v := newVolume(t, 1<<30, 512<<20)
	sums := map[string][32]byte{}
	for i := range 8 {
		name := fmt.Sprint("file", i)
		sums[name] = put(t, v, name, 5<<20+i*4099)
	}
	first, err := v.Measure()
	if err != nil {
		t.Fatal(err)
	}
	if first.Reserved != testBegin+512<<20 || first.Spanned != 512<<20 || first.OverCommitted != 0 || first.GivenBack != 0 || first.MaxReserved < first.Reserved {
		t.Errorf("Measure = %+v", first)
	}
	random := mathrand.New(mathrand.NewPCG(7, 7))
	for i := range 60 {
		m, err := v.Measure()
		if err != nil {
			t.Fatal(err)
		}
		want := m.MinReserved + random.Int64N(first.Reserved-m.MinReserved+1)
		got, err := v.Resize(t.Context(), want)
		if err != nil {
			t.Fatalf("step %d to %d of %+v: %v", i, want, m, err)
		}
		if want -= want % 4096; got.Reserved < want-1<<20 || got.Reserved > want+1<<20 {
			t.Errorf("step %d: %d reserved, want %d", i, got.Reserved, want)
		}
		backed(t, v)
		name := fmt.Sprint("file", random.IntN(8))
		sums[name] = put(t, v, name, 1<<20+random.IntN(8<<20))
	}
	check(t, v, sums)

	// What was given back is free outside, to the last block, and nothing inside minds.
	if _, err := v.Resize(t.Context(), first.MinReserved+64<<20); err != nil {
		t.Fatal(err)
	}
	remove := fillOuter(t, v)
	for i := range 4 {
		name := fmt.Sprint("full", i)
		sums[name] = put(t, v, name, 6<<20)
	}
	if _, err := v.Resize(t.Context(), first.Reserved); !errors.Is(err, ErrNoRoom) {
		t.Errorf("growing on a full file system: %v, want %v", err, ErrNoRoom)
	}
	// Giving back works there, too: it needs no block outside.
	m, err := v.Measure()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := v.Resize(t.Context(), m.Reserved-8<<20); err != nil || got.Reserved > m.Reserved-7<<20 {
		t.Errorf("shrinking on a full file system: %+v, %v", got, err)
	}
	remove()
	if got, err := v.Resize(t.Context(), first.Reserved); err != nil || got.Reserved != first.Reserved || got.GivenBack != 0 {
		t.Errorf("all taken back: %+v, %v", got, err)
	}
	backed(t, v)
	check(t, v, sums)
}

func TestRefusals(t *testing.T) {
	v := newVolume(t, 512<<20, 128<<20)
	m, err := v.Measure()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		size int64
		want error
	}{
		"too_small": {m.MinReserved - 4096, ErrTooSmall},
		"tiny":      {20, ErrTooSmall},
		"negative":  {-1 << 40, ErrTooSmall},
		"no_room":   {m.MaxReserved + 64<<20, ErrNoRoom},
		"too_large": {m.Apparent + 4096, ErrTooLarge},
	} {
		if got, err := v.Resize(t.Context(), c.size); !errors.Is(err, c.want) || got.Reserved != m.Reserved {
			t.Errorf("%s: %+v, %v, want %v", name, got, err, c.want)
		}
	}
	release, err := lock(v.lock, unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Resize(t.Context(), m.Reserved); !errors.Is(err, ErrBusy) {
		t.Errorf("beside another resizer: %v, want %v", err, ErrBusy)
	}
	release()
	run(t, "mount", "-o", "remount,ro", v.root.Name())
	if _, err := v.Resize(t.Context(), m.MinReserved); !errors.Is(err, ErrReadOnly) {
		t.Errorf("read-only: %v, want %v", err, ErrReadOnly)
	}
	if got, err := v.MakeWritable(); err != nil || got.ReadOnly {
		t.Errorf("MakeWritable of what is whole: %+v, %v", got, err)
	}
}

// A grow that the kernel refuses leaves nothing reserved behind; one that succeeds is
// reserved before the kernel is asked.
func TestGrow(t *testing.T) {
	v := newVolume(t, 512<<20, 128<<20)
	m, err := v.Measure()
	if err != nil {
		t.Fatal(err)
	}
	asked := uint64(0)
	v.in.(*ext4FS).resize = func(_ int, blocks uint64) error {
		asked = blocks
		there, err := files.Reserved(v.image, 0, 4<<30)
		if err != nil {
			return err
		}
		if end := testBegin + int64(blocks)*4096; balloon.Total(there) != end {
			t.Errorf("the kernel is asked for %d bytes with %v reserved", end, there)
		}
		return unix.EPERM
	}
	if _, err := v.Resize(t.Context(), m.Reserved+32<<20); !errors.Is(err, unix.EPERM) || asked != (128+32)<<8 {
		t.Errorf("Resize = %v, asked for %d blocks", err, asked)
	}
	all, err := files.Reserved(v.image, 0, 4<<30)
	if err != nil {
		t.Fatal(err)
	}
	if there := balloon.Total(all); there != m.Reserved {
		t.Errorf("%d bytes are reserved, want %d as before", there, m.Reserved)
	}
}

// Part of the reservation is lost, as by a sparse copy or a stray resize2fs.
func TestRepair(t *testing.T) {
	for name, c := range map[string]struct {
		lost int64 // bytes, at the end
		room int64 // outside
		back int64 // bytes that were given back before
		open bool  // a file is open for writing
		fail bool
	}{
		"room":     {lost: 40 << 20, room: 200 << 20},
		"little":   {lost: 80 << 20, room: 8 << 20, open: true},
		"balloon":  {lost: 60 << 20, room: 8 << 20, back: 40 << 20, open: true},
		"none":     {lost: 80 << 20, fail: true},
		"none_use": {lost: 80 << 20, fail: true, open: true},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVolume(t, 512<<20, 128<<20)
			sums := map[string][32]byte{"file": put(t, v, "file", 3<<20)}
			m, err := v.measure(true)
			if err != nil {
				t.Fatal(err)
			}
			if c.back > 0 {
				if _, err := v.Resize(t.Context(), m.Reserved-c.back); err != nil {
					t.Fatal(err)
				}
			}
			end := int64(testBegin + 128<<20)
			if err := state.Release(v.image, end-c.lost, end); err != nil {
				t.Fatal(err)
			}
			if s, err := v.Measure(); err != nil || c.back == 0 && (s.OverCommitted != c.lost || s.Reserved != m.Reserved-c.lost) {
				t.Fatalf("Measure = %+v, %v", s, err)
			}
			if c.open {
				f, err := os.Create(filepath.Join(v.root.Name(), "open"))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { f.Close() })
			}
			reserve := filepath.Join(v.dir.Name(), "reserve")
			f, err := os.Create(reserve)
			if err == nil && c.room > 0 {
				err = unix.Fallocate(int(f.Fd()), 0, 0, c.room)
			}
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
			remove := fillOuter(t, v)
			if err := os.Remove(reserve); err != nil {
				t.Fatal(err)
			}
			run(t, "sync", "-f", v.dir.Name())
			s, err := v.Repair(t.Context())
			switch {
			case c.fail:
				if !errors.Is(err, ErrOverCommitted) || s.ReadOnly == c.open || c.open && !errors.Is(err, unix.EBUSY) {
					t.Errorf("Repair with no room outside: %+v, %v", s, err)
				}
				if _, err := v.MakeWritable(); s.ReadOnly && !errors.Is(err, ErrOverCommitted) {
					t.Errorf("MakeWritable = %v, want %v", err, ErrOverCommitted)
				}
			case err != nil || s.ReadOnly || s.OverCommitted != 0 || s.GivenBack < c.back:
				t.Errorf("Repair: %+v, %v", s, err)
			default:
				// All that is free can be written, to the last block.
				b, last := make([]byte, 1<<20), error(nil)
				full, err := os.Create(filepath.Join(v.root.Name(), "full"))
				for last = err; last == nil; {
					_, last = full.Write(b)
				}
				if err := full.Sync(); err != nil || !errors.Is(last, unix.ENOSPC) {
					t.Errorf("filling the volume: %v, %v", last, err)
				}
				if err := errors.Join(full.Close(), os.Remove(full.Name())); err != nil {
					t.Fatal(err)
				}
				backed(t, v)
			}
			remove()
			if s, err = v.Repair(t.Context()); err != nil || s.OverCommitted != 0 {
				t.Errorf("Repair with room: %+v, %v", s, err)
			}
			if s, err = v.MakeWritable(); err != nil || s.ReadOnly {
				t.Errorf("MakeWritable: %+v, %v", s, err)
			}
			if s, err = v.Resize(t.Context(), m.Reserved); err != nil || s.Reserved != m.Reserved || s.GivenBack != 0 {
				t.Errorf("Resize: %+v, %v", s, err)
			}
			check(t, v, sums)
		})
	}
}

func TestLastIn(t *testing.T) {
	held := []balloon.Range{{Start: 100, End: 110}, {Start: 20, End: 40}}
	for want, holes := range map[int64][]balloon.Range{
		0: {{Start: 0, End: 20}, {Start: 40, End: 100}}, 10: {{Start: 105, End: 120}}, 7: {{Start: 90, End: 107}}, 15: {{Start: 22, End: 25}, {Start: 100, End: 101}}, 30: {{Start: 0, End: 200}},
	} {
		if got := lastIn(held, holes); got != want {
			t.Errorf("lastIn(%v) = %d, want %d", holes, got, want)
		}
	}
}

// A balloon that somebody writes to is none, and what it had given back is missing:
// the control of the guards.
func TestWrittenBalloon(t *testing.T) {
	v := newVolume(t, 512<<20, 256<<20)
	m, err := v.Measure()
	if err != nil {
		t.Fatal(err)
	}
	if m, err = v.Resize(t.Context(), m.Reserved-64<<20); err != nil {
		t.Fatal(err)
	}
	list, err := files.List(v.root, m.Spanned)
	if err != nil || len(list) != 1 || list[0].Err != nil {
		t.Fatalf("balloons %+v, %v", list, err)
	}
	path := filepath.Join(v.root.Name(), layout.Balloons, list[0].Name)
	if f, err := os.OpenFile(path, os.O_RDWR, 0); err == nil {
		f.Close()
		t.Error("a balloon can be opened for writing")
	}
	run(t, "chattr", "-i", path)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		_, err = f.Write(bytes.Repeat([]byte{1}, 4096))
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := v.Measure()
	if err != nil || s.GivenBack != 0 || s.OverCommitted < 63<<20 {
		t.Errorf("Measure = %+v, %v", s, err)
	}
	if s, err = v.Resize(t.Context(), m.Reserved); err != nil || s.OverCommitted != 0 {
		t.Errorf("Resize = %+v, %v", s, err)
	}
	backed(t, v)
}

func TestBehind(t *testing.T) {
	held := []balloon.Range{{Start: 100, End: 110}, {Start: 20, End: 40}}
	for keep, want := range map[int64][]balloon.Range{
		0: held, 4: {{Start: 104, End: 110}, {Start: 20, End: 40}}, 10: {{Start: 20, End: 40}}, 12: {{Start: 22, End: 40}}, 30: nil,
	} {
		if got := behind(held, keep); !slices.Equal(got, want) {
			t.Errorf("behind(%d) = %v, want %v", keep, got, want)
		}
	}
}

func TestParseTable(t *testing.T) {
	good := dm.Status{Length: 3112960, Type: "crypt", Text: "aes-xts-plain64 :64:logon:sealroot:0e1f 0 7:0 32768 1 sector_size:4096"}
	for text, want := range map[string]crypt{
		good.Text: {loop: "7:0", begin: testBegin, encryption: "aes-xts-plain64", sectorSize: 4096},
		"aes-xts-plain64 :64:logon:sealroot:0e1f 0 7:0 32768":                            {loop: "7:0", begin: testBegin, encryption: "aes-xts-plain64", sectorSize: 512},
		"aes-cbc-essiv:sha256 :64:logon:a 0 7:1 32768 2 allow_discards sector_size:1024": {loop: "7:1", begin: testBegin, encryption: "aes-cbc-essiv:sha256", sectorSize: 1024},
	} {
		s := good
		s.Text = text
		if c, err := parseTable([]dm.Status{s}); c != want || err != nil {
			t.Errorf("parseTable of %s = %+v, %v, want %+v", text, c, err, want)
		}
	}
	for name, change := range map[string]func(s *dm.Status){
		"type":   func(s *dm.Status) { s.Type = "linear" },
		"start":  func(s *dm.Status) { s.Start = 8 },
		"short":  func(s *dm.Status) { s.Text = "aes-xts-plain64 key 0 7:0" },
		"odd":    func(s *dm.Status) { s.Text = strings.Replace(s.Text, "32768", "32769", 1) },
		"size":   func(s *dm.Status) { s.Text += "k" },
		"sector": func(s *dm.Status) { s.Text = strings.Replace(s.Text, "32768", "-8", 1) },
	} {
		s := good
		change(&s)
		if _, err := parseTable([]dm.Status{s}); !errors.Is(err, ErrNotOpen) {
			t.Errorf("%s: %v, want %v", name, err, ErrNotOpen)
		}
	}
	if _, err := parseTable([]dm.Status{good, good}); !errors.Is(err, ErrNotOpen) {
		t.Errorf("two targets: %v", err)
	}
}
