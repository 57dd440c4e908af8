package state

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state/luks2"
)

var errPowerCut = errors.New("power cut")

// cutDisk loses power after a number of writes and syncs; what was written since
// the last sync then is on the disk or not, sector by sector.
type cutDisk struct {
	stable, cache []byte
	pending       []pendingWrite
	left          int
}

type pendingWrite struct {
	data []byte
	off  int64
}

func newCutDisk(b []byte, left int) *cutDisk {
	return &cutDisk{stable: bytes.Clone(b), cache: bytes.Clone(b), left: left}
}

func (d *cutDisk) step() error {
	if d.left == 0 {
		return errPowerCut
	}
	d.left--
	return nil
}

func (d *cutDisk) ReadAt(b []byte, off int64) (int, error) {
	return bytes.NewReader(d.cache).ReadAt(b, off)
}

func (d *cutDisk) WriteAt(b []byte, off int64) (int, error) {
	err := d.step()
	d.pending = append(d.pending, pendingWrite{bytes.Clone(b), off})
	if err != nil {
		return 0, err
	}
	return copy(d.cache[off:], b), nil
}

func (d *cutDisk) Sync() error {
	if err := d.step(); err != nil {
		return err
	}
	for _, w := range d.pending {
		copy(d.stable[w.off:], w.data)
	}
	d.pending = nil
	return nil
}

// after is the disk as the next boot finds it; choose says which sectors of what was
// not synced survived.
func (d *cutDisk) after(choose func(sector int) bool) []byte {
	b, n := bytes.Clone(d.stable), 0
	for _, w := range d.pending {
		for off := 0; off < len(w.data); off += sector {
			if choose(n) {
				copy(b[int(w.off)+off:], w.data[off:min(off+sector, len(w.data))])
			}
			n++
		}
	}
	return b
}

const resetTestSize = 17 << 20

// resettable is the beginning of a volume, as bytes, with a keyslot for "secret".
func resettable(t *testing.T) (disk, key []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), ImageName)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	key = make([]byte, 64)
	rand.Read(key) // never fails
	h, err := luks2.Format(luks2.FormatParams{UUID: "11111111-2222-4333-8444-aaaaaaaaaaaa", VolumeKey: key, SectorSize: 4096, Rand: rand.Reader})
	if err == nil {
		h, err = h.AddKeyslot(0, key, []byte("secret"), luks2.RandomSecretKDF(), rand.Reader)
	}
	if err == nil {
		_, err = luks2.WriteNew(f, h, rand.Reader)
	}
	if err == nil {
		err = f.Truncate(resetTestSize)
	}
	if err != nil {
		t.Fatal(err)
	}
	if disk, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	return disk, key
}

// opensBy tells whether the keyslot of resettable gives the key.
func opensBy(disk, key []byte) bool {
	h, err := luks2.Read(bytes.NewReader(disk), int64(len(disk)))
	if err != nil {
		return false
	}
	got, err := h.Unlock(0, []byte("secret"))
	return err == nil && bytes.Equal(got, key)
}

// A power cut at every write and sync leaves a volume that opens, or a reset that
// was begun and is finished by doing it again; never a volume that neither opens nor
// may be made anew.
func TestPowerCutInReset(t *testing.T) {
	start, key := resettable(t)
	torn := func(at int) []byte {
		b := bytes.Clone(start)
		b[at] ^= 1
		return b
	}
	for name, start := range map[string][]byte{"good": start, "torn_primary": torn(5000), "torn_secondary": torn(16<<10 + 5000)} {
		t.Run(name, func(t *testing.T) { cutReset(t, start, key) })
	}
}

func cutReset(t *testing.T, start, key []byte) {
	survivals := map[string]func(int) bool{
		"none": func(int) bool { return false },
		"all":  func(int) bool { return true },
		"odd":  func(n int) bool { return n%2 == 1 },
	}
	whole, begun := 0, 0
	random := mathrand.NewChaCha8([32]byte{1})
	for left := 0; ; left++ {
		if left == 26 {
			left = 3000 // in the middle of the keyslots
		}
		d := newCutDisk(start, left)
		err := destroy(d, resetTestSize, ResetByKey, random)
		if err == nil {
			break
		}
		if !errors.Is(err, errPowerCut) {
			t.Fatal(err)
		}
		for name, choose := range survivals {
			if left > 3000 && name != "odd" {
				continue
			}
			after := d.after(choose)
			by, _, is, err := resetBegun(bytes.NewReader(after), resetTestSize)
			switch opens := opensBy(after, key); {
			case err != nil || is == opens:
				t.Fatalf("cut after %d, %s: begun %v (%v), opens %v; want one of the two", left, name, is, err, opens)
			case opens:
				whole++
				continue
			case by != ResetByKey:
				t.Errorf("cut after %d, %s: begun by %v", left, name, by)
			}
			begun++
			if name != "odd" {
				continue // the same from here on
			}
			again := newCutDisk(after, -1)
			if err := destroy(again, resetTestSize, ResetBySystem, random); err != nil {
				t.Fatal(err)
			}
			destroyed(t, fmt.Sprintf("cut after %d, %s", left, name), again.stable, start)
		}
		if left > 3000 {
			left += 200
		}
	}
	if whole == 0 || begun == 0 {
		t.Errorf("%d cuts left a volume, %d a reset; want both", whole, begun)
	}
}

// destroyed: who began it is still known, and no sector in front of the data is left,
// so that a copy of the header opens nothing.
func destroyed(t *testing.T, when string, disk, before []byte) {
	t.Helper()
	by, n, is, err := resetBegun(bytes.NewReader(disk), int64(len(disk)))
	if err != nil || !is || by != ResetByKey || n != minDestroyed {
		t.Fatalf("%s: begun %v by %v, %d bytes, %v", when, is, by, n, err)
	}
	for at := 0; at < minDestroyed; at += sector {
		if bytes.Equal(disk[at:at+sector], before[at:at+sector]) {
			t.Fatalf("%s: sector at %d is as it was", when, at)
		}
	}
}

// A copy of the header alone, taken before, opens nothing afterwards; the control is
// the copy before the reset.
func TestHeaderCopyAfterReset(t *testing.T) {
	start, key := resettable(t)
	d := newCutDisk(start, -1)
	restore := func() []byte {
		b := bytes.Clone(d.stable)
		copy(b, start[:32<<10])
		return b
	}
	if !opensBy(restore(), key) {
		t.Fatal("control: the header does not open what was not reset")
	}
	if err := destroy(d, resetTestSize, ResetBySystem, rand.Reader); err != nil {
		t.Fatal(err)
	}
	if opensBy(restore(), key) {
		t.Error("a copy of the header opens the volume after the reset")
	}
}

// A mark that anybody wrote in front of a whole volume starts nothing; what is not a
// mark is none.
func TestForgedResetMark(t *testing.T) {
	start, key := resettable(t)
	mark := resetMark(ResetBySystem, minDestroyed)
	copy(start, mark)
	if _, _, is, err := resetBegun(bytes.NewReader(start), resetTestSize); is || err != nil || !opensBy(start, key) {
		t.Errorf("a mark in front of a second header copy counts: %v, %v", is, err)
	}
	clear(start[16<<10 : 32<<10])
	if _, _, is, _ := resetBegun(bytes.NewReader(start), resetTestSize); !is {
		t.Error("control: the mark without a header does not count")
	}
	for i := range mark {
		start[i] ^= 1
		if _, _, is, err := resetBegun(bytes.NewReader(start), resetTestSize); is || err != nil {
			t.Errorf("a mark with another byte %d counts: %v", i, err)
		}
		start[i] ^= 1
	}
	for _, short := range []string{"", "sealroot-reset"} {
		if _, _, is, err := resetBegun(bytes.NewReader([]byte(short)), int64(len(short))); is || err != nil {
			t.Errorf("%q counts: %v", short, err)
		}
	}
}

// FinishReset leaves what is not the volume's. A cut between any two of its steps
// leaves the file, as long as anything else of the volume is there.
func TestFinishReset(t *testing.T) {
	path := t.TempDir()
	for _, name := range []string{ImageName, EscrowName, ".sealroot-provisioned", "home/other"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(path, name)), 0o700), os.WriteFile(filepath.Join(path, name), []byte(name), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for range 2 { // the second time after a cut behind the last step
		if err := FinishReset(dir); err != nil {
			t.Fatal(err)
		}
		if left, _ := filepath.Glob(path + "/*"); len(left) != 1 || filepath.Base(left[0]) != "home" {
			t.Errorf("left are %q, want home alone", left)
		}
		if hidden, _ := filepath.Glob(path + "/.*"); len(hidden) != 0 {
			t.Errorf("left are %q", hidden)
		}
	}
}

// BeginReset and ResetBegun go by the file's name, and follow no link.
func TestBeginReset(t *testing.T) {
	start, key := resettable(t)
	path := t.TempDir()
	image := filepath.Join(path, ImageName)
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := BeginReset(dir, ResetByKey, rand.Reader); !errors.Is(err, ErrNoImage) {
		t.Errorf("nothing there: %v, want ErrNoImage", err)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := errors.Join(os.WriteFile(other, start, 0o600), os.Symlink(other, image)); err != nil {
		t.Fatal(err)
	}
	if err := BeginReset(dir, ResetByKey, rand.Reader); !errors.Is(err, ErrNotImage) {
		t.Errorf("a link: %v, want ErrNotImage", err)
	}
	if b, err := os.ReadFile(other); err != nil || !opensBy(b, key) {
		t.Errorf("what the link names was changed: %v", err)
	}
	if err := errors.Join(os.Remove(image), os.Rename(other, image)); err != nil {
		t.Fatal(err)
	}
	if _, begun, err := ResetBegun(dir); begun || err != nil {
		t.Errorf("before: begun %v, %v", begun, err)
	}
	if err := BeginReset(dir, ResetByPresence, rand.Reader); err != nil {
		t.Fatal(err)
	}
	if by, begun, err := ResetBegun(dir); !begun || by != ResetByPresence || err != nil {
		t.Errorf("after: begun %v by %v, %v", begun, by, err)
	}
	if info, err := os.Stat(image); err != nil || info.Size() != resetTestSize {
		t.Errorf("the file: %v, %v", info, err)
	}
	if err := BeginReset(dir, ResetByKey, failing{}); err == nil {
		t.Error("without randomness the keyslots count as destroyed")
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// fullDisk has no room for what was never written.
type fullDisk struct{ *cutDisk }

func (d fullDisk) WriteAt(b []byte, off int64) (int, error) {
	if off >= 8<<20 && off < 9<<20 {
		return 0, &os.PathError{Op: "write", Err: unix.ENOSPC}
	}
	return d.cutDisk.WriteAt(b, off)
}

// A sparse copy on a full disk is reset all the same.
func TestResetOfASparseVolume(t *testing.T) {
	start, key := resettable(t)
	d := fullDisk{newCutDisk(start, -1)}
	if err := destroy(d, resetTestSize, ResetByKey, rand.Reader); err != nil {
		t.Fatal(err)
	}
	if _, _, is, err := resetBegun(bytes.NewReader(d.stable), resetTestSize); !is || err != nil || opensBy(d.stable, key) {
		t.Errorf("begun %v, %v", is, err)
	}
}

// A mark that counts is one that this program writes.
func FuzzResetMark(f *testing.F) {
	f.Add(resetMark(ResetByKey, minDestroyed))
	f.Add(make([]byte, sector))
	f.Fuzz(func(t *testing.T, b []byte) {
		by, n, ok := parseResetMark(b)
		if !ok && (by != 0 || n != 0) || ok && !bytes.Equal(b, resetMark(by, n)) {
			t.Errorf("%x: by %d, %d bytes, %v", b, by, n, ok)
		}
	})
}
