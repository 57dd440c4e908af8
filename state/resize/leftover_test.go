package resize

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state"
	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/layout"
)

// folder is that of the balloons.
func folder(t *testing.T, v *Volume) string {
	t.Helper()
	path := filepath.Join(v.root.Name(), layout.Balloons)
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func must(t *testing.T, s Sizes, err error) Sizes {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A program that was killed leaves a balloon of which nothing was given back, with or
// without its flag: nobody loses that room.
func TestLeftBalloon(t *testing.T) {
	v := newVolume(t, 1<<30, 512<<20)
	first, err := v.Measure()
	must(t, first, err)
	left := filepath.Join(folder(t, v), "00000007")
	run(t, "fallocate", "-l", "200M", left)
	if s, err := v.Measure(); err != nil || s.InnerFree > first.InnerFree-200<<20 {
		t.Fatalf("Measure = %+v, %v", s, err)
	}
	s, err := v.Repair(t.Context())
	if must(t, s, err); s.InnerFree < first.InnerFree-1<<20 || s.Reserved != first.Reserved {
		t.Errorf("Repair = %+v, want %+v", s, first)
	}
	run(t, "fallocate", "-l", "200M", left)
	run(t, "chattr", "+i", left)
	s, err = v.Resize(t.Context(), first.Reserved+64<<20)
	if !errors.Is(err, unix.EPERM) && err != nil { // no online resize here; in a guest it grows
		t.Fatal(err)
	}
	if s.InnerFree < first.InnerFree-1<<20 {
		t.Errorf("Resize = %+v, want what is free of %+v", s, first)
	}
	// What is given back is held by files that nobody removes.
	run(t, "fallocate", "-l", "200M", left)
	s, err = v.Resize(t.Context(), first.Reserved-150<<20)
	if must(t, s, err); s.Reserved != first.Reserved-150<<20 {
		t.Errorf("Resize = %+v", s)
	}
	list, err := files.List(v.root, s.Spanned)
	if err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	for _, b := range list {
		if err := os.Remove(filepath.Join(folder(t, v), b.Name)); !errors.Is(err, unix.EPERM) {
			t.Errorf("balloon %s, %+v: removed: %v", b.Name, b, err)
		}
	}
	// Without its flag, as a power cut may leave it, the next change gives it one.
	run(t, "chattr", "-i", filepath.Join(folder(t, v), list[0].Name))
	s, err = v.Resize(t.Context(), s.Reserved)
	must(t, s, err)
	if list, err = files.List(v.root, s.Spanned); err != nil || !list[0].Sealed {
		t.Errorf("List = %+v, %v", list, err)
	}
	backed(t, v)
}

// As small as possible is possible, whatever the sizes.
func TestSmallest(t *testing.T) {
	v := newVolume(t, 3<<30, 2<<30)
	put(t, v, "odd", 9<<20+4097)
	before, err := v.Measure()
	must(t, before, err)
	s, err := v.Resize(t.Context(), Smallest)
	if must(t, s, err); s.Reserved > before.MinReserved+2<<20 {
		t.Errorf("Resize = %+v, smallest of %+v", s, before)
	}
	again, err := v.Resize(t.Context(), Smallest)
	if must(t, again, err); again.Reserved > s.Reserved {
		t.Errorf("smallest once more: %+v, was %+v", again, s)
	}
	backed(t, v)
}

// Whatever else lies in the folder is left alone.
func TestStrangeBalloons(t *testing.T) {
	v := newVolume(t, 512<<20, 128<<20)
	dir := folder(t, v)
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "00000001"), 0o700), unix.Mkfifo(filepath.Join(dir, "2"), 0o600),
		unix.Mknod(filepath.Join(dir, "socket"), unix.S_IFSOCK|0o600, 0), os.Symlink("/etc/passwd", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	m, err := v.Measure()
	must(t, m, err)
	s, err := v.Resize(t.Context(), m.Reserved-16<<20)
	must(t, s, err)
	if s, err = v.Resize(t.Context(), m.Reserved); err != nil || s.Reserved != m.Reserved {
		t.Errorf("Resize = %+v, %v", s, err)
	}
	list, err := os.ReadDir(dir)
	spare := func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), ".spare-") }
	if err != nil || len(slices.DeleteFunc(list, spare)) != 4 {
		t.Errorf("left are %v, %v", list, err)
	}
	backed(t, v)
}

// More pieces than the record takes: the largest are given back, nothing is lost of
// the others.
func TestFragments(t *testing.T) {
	v := newVolume(t, 512<<20, 300<<20)
	first, err := v.Measure()
	must(t, first, err)
	b, dir := make([]byte, 4096), filepath.Join(v.root.Name(), "pieces")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	const pieces = 40000
	for i := range pieces {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "sync", "-f", dir)
	fill := filepath.Join(v.root.Name(), "fill")
	m, err := v.Measure()
	must(t, m, err)
	run(t, "fallocate", "-l", fmt.Sprint(m.InnerFree-1<<20), fill)
	for i := 0; i < pieces; i += 2 {
		if err := os.Remove(filepath.Join(dir, fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "sync", "-f", dir)
	m, err = v.Measure()
	must(t, m, err)
	s, err := v.Resize(t.Context(), Smallest)
	if err != nil && !errors.Is(err, ErrFragmented) {
		t.Fatal(err)
	}
	if n := len(v.recorded()); s.Reserved > m.Reserved-16<<20 || n < 1000 || n > balloon.MaxRanges {
		t.Errorf("%d pieces, Resize = %+v, %v", n, s, err)
	}
	backed(t, v)
	s, err = v.Resize(t.Context(), first.Reserved)
	if must(t, s, err); s.Reserved != first.Reserved || s.GivenBack != 0 || s.InnerFree < m.InnerFree-4<<20 {
		t.Errorf("Resize = %+v, was %+v", s, m)
	}
	backed(t, v)
}

// A record that somebody made does not stop ours.
func TestRecordOfStranger(t *testing.T) {
	v := newVolume(t, 512<<20, 128<<20)
	f, err := files.OpenRecord(v.dir)
	if err != nil {
		t.Fatal(err)
	}
	for i, serial := range []uint64{math.MaxUint64, math.MaxUint64 - 1} {
		b, err := balloon.Record{Serial: serial, Volume: testUUID}.Encode()
		if err == nil {
			_, err = f.WriteAt(b, int64(i)*balloon.SlotBytes)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	m, err := v.Measure()
	must(t, m, err)
	for i := range 4 {
		if s, err := v.Resize(t.Context(), m.Reserved-int64(i+1)*8<<20); err != nil || balloon.Total(v.recorded()) != int64(i+1)*8<<20 {
			t.Errorf("Resize = %+v, %v, recorded %v", s, err, v.recorded())
		}
	}
	backed(t, v)
}

// A file that is no balloon any more keeps what is not reserved, where there is no room.
func TestWrittenBalloonWithoutRoom(t *testing.T) {
	v := newVolume(t, 512<<20, 128<<20)
	m, err := v.Measure()
	must(t, m, err)
	m, err = v.Resize(t.Context(), m.Reserved-48<<20)
	must(t, m, err)
	path := filepath.Join(folder(t, v), "00000001")
	run(t, "chattr", "-i", path)
	if err := os.Link(path, filepath.Join(v.root.Name(), "other")); err != nil {
		t.Fatal(err)
	}
	open, err := os.Create(filepath.Join(v.root.Name(), "open"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	remove := fillOuter(t, v)
	before, err := v.Measure()
	if must(t, before, err); before.OverCommitted != 48<<20 {
		t.Fatalf("Measure = %+v", before)
	}
	s, err := v.Repair(t.Context())
	if !errors.Is(err, ErrOverCommitted) || s.InnerFree > before.InnerFree || s.MinReserved < s.DataOffset {
		t.Errorf("Repair = %+v, %v, was %+v", s, err, before)
	}
	remove()
	if s, err = v.Repair(t.Context()); err != nil || s.OverCommitted != 0 {
		t.Errorf("Repair with room = %+v, %v", s, err)
	}
}

// Where nothing can be recorded nothing is given back, and nothing taken out of use.
func TestNoRecord(t *testing.T) {
	v := newVolume(t, 512<<20, 128<<20)
	before, err := v.Measure()
	must(t, before, err)
	if err := os.MkdirAll(filepath.Join(v.dir.Name(), layout.GivenBack), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := v.Resize(t.Context(), Smallest)
	if err == nil || s.InnerFree < before.InnerFree-1<<20 || s.Reserved != before.Reserved {
		t.Errorf("Resize = %+v, %v, was %+v", s, err, before)
	}
}

// A balloon of which a part is reserved gives back what it has in holes.
func TestPartlyReserved(t *testing.T) {
	v := newVolume(t, 512<<20, 256<<20)
	m, err := v.Measure()
	must(t, m, err)
	m, err = v.Resize(t.Context(), m.Reserved-64<<20)
	must(t, m, err)
	list, err := files.List(v.root, m.Spanned)
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	first := balloon.Shift(list[0].Held[:1], v.begin)[0]
	if err := state.Reserve(v.image, first.Start+4<<20, 16<<20); err != nil {
		t.Fatal(err)
	}
	m, err = v.Measure()
	if must(t, m, err); m.GivenBack != 48<<20 {
		t.Fatalf("Measure = %+v", m)
	}
	s, err := v.Resize(t.Context(), m.Reserved+46<<20)
	if must(t, s, err); s.GivenBack != 2<<20 || s.Reserved != m.Reserved+46<<20 || s.Spanned != m.Spanned {
		t.Errorf("Resize = %+v", s)
	}
	backed(t, v)
}
