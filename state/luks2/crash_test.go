package luks2

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

var errPowerCut = errors.New("power cut")

// crashDisk loses power after a number of writes and syncs. What was written
// since the last sync then is on the disk or not, sector by sector.
type crashDisk struct {
	stable  []byte
	pending []pendingWrite
	left    int // operations until the power cut
	ops     int
}

type pendingWrite struct {
	data []byte
	off  int64
}

func (d *crashDisk) step() error {
	if d.left == 0 {
		return errPowerCut
	}
	d.left--
	d.ops++
	return nil
}

func (d *crashDisk) WriteAt(b []byte, off int64) (int, error) {
	err := d.step()
	// A write that the power cut interrupts may have reached the disk in part.
	d.pending = append(d.pending, pendingWrite{bytes.Clone(b), off})
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

func (d *crashDisk) Sync() error {
	if err := d.step(); err != nil {
		return err
	}
	for _, w := range d.pending {
		copy(d.stable[w.off:], w.data)
	}
	d.pending = nil
	return nil
}

// after returns the disk as the next boot finds it; choose says which sectors
// of what was not synced survived.
func (d *crashDisk) after(choose func(sector int) bool) *memDisk {
	b := bytes.Clone(d.stable)
	n := 0
	for _, w := range d.pending {
		for off := 0; off < len(w.data); off += 512 {
			if choose(n) {
				copy(b[int(w.off)+off:], w.data[off:min(off+512, len(w.data))])
			}
			n++
		}
	}
	return &memDisk{b}
}

// survivals are the ways in which unsynced sectors survive.
func survivals() map[string]func(int) bool {
	m := map[string]func(int) bool{
		"none":       func(int) bool { return false },
		"all":        func(int) bool { return true },
		"first":      func(n int) bool { return n == 0 },
		"all_but_1":  func(n int) bool { return n != 0 },
		"first_4k":   func(n int) bool { return n < 8 },
		"first_half": func(n int) bool { return n < 16 },
		"first_12k":  func(n int) bool { return n < 24 },
	}
	for seed := range uint64(3) {
		r := rand.New(rand.NewPCG(seed, 1))
		m[fmt.Sprintf("random_%d", seed)] = func(int) bool { return r.IntN(2) == 0 }
	}
	return m
}

// TestPowerCutInUpdate cuts the power at every operation of updates that add,
// replace and remove a keyslot, from disks whose copies are good, torn
// primary and torn secondary. Keyslot 0 always opens.
func TestPowerCutInUpdate(t *testing.T) {
	const keep, remove, add = 0, 1, 2
	base, h := written(t)
	rng := &testRand{state: 8}
	two := must[*Header](t)(h.AddKeyslot(remove, testKey(), []byte("old"), RandomSecretKDF(), rng))
	must[*Header](t)(Update(base, h, two, rng))
	starts := map[string]func(b []byte){
		"good":           func([]byte) {},
		"torn_primary":   func(b []byte) { b[5000] ^= 1 },
		"torn_secondary": func(b []byte) { b[minHeaderBytes+5000] ^= 1 },
	}
	updates := map[string]func(t *testing.T, h *Header) *Header{
		"add": func(t *testing.T, h *Header) *Header {
			n := must[*Header](t)(h.AddKeyslot(add, testKey(), []byte("new"), RandomSecretKDF(), rng))
			return must[*Header](t)(n.AddToken(0, RecoveryToken(add)))
		},
		"remove": func(t *testing.T, h *Header) *Header { return must[*Header](t)(h.RemoveKeyslot(remove)) },
		"replace": func(t *testing.T, h *Header) *Header {
			n := must[*Header](t)(h.RemoveKeyslot(remove))
			return must[*Header](t)(n.AddKeyslot(remove, testKey(), []byte("new"), RandomSecretKDF(), rng))
		},
	}
	for startName, damage := range starts {
		start := bytes.Clone(base.b)
		damage(start)
		old := must[*Header](t)(Read(&memDisk{start}, testSize))
		for updateName, update := range updates {
			t.Run(startName+"_"+updateName, func(t *testing.T) {
				cutEverywhere(t, start, old, update(t, old))
			})
		}
	}
}

func cutEverywhere(t *testing.T, start []byte, old, new *Header) {
	t.Helper()
	rng := &testRand{state: 9}
	for left := 0; ; left++ {
		d := &crashDisk{stable: bytes.Clone(start), left: left}
		_, err := Update(d, old, new, rng)
		if err == nil {
			if left < 6 {
				t.Errorf("update took only %d operations", left)
			}
			checkAfter(t, "complete", d.after(func(int) bool { return false }), old, new, true)
			return
		}
		if !errors.Is(err, errPowerCut) {
			t.Fatal(err)
		}
		for name, choose := range survivals() {
			checkAfter(t, fmt.Sprintf("cut after %d, %s", left, name), d.after(choose), old, new, false)
		}
	}
}

// checkAfter: the disk holds the old or the new header, and what it says is true.
func checkAfter(t *testing.T, when string, d *memDisk, old, new *Header, complete bool) {
	t.Helper()
	h, err := Read(d, testSize)
	if err != nil {
		t.Errorf("%s: %v", when, err)
		return
	}
	want := old
	if h.seqid > old.seqid || complete {
		want = new
	}
	if got, want := fmt.Sprint(h.Keyslots(), h.Tokens()), fmt.Sprint(want.Keyslots(), want.Tokens()); got != want {
		t.Errorf("%s: got %s, want %s", when, got, want)
	}
	for id, material := range want.material {
		if !bytes.Equal(h.material[id], material) {
			t.Errorf("%s: keyslot %d is damaged", when, id)
		}
	}
	if complete {
		if key, err := h.Unlock(0, []byte("secret")); err != nil || !bytes.Equal(key, testKey()) {
			t.Errorf("%s: keyslot 0: %v", when, err)
		}
	}
}

// TestPowerCutInWriteNew: a place where the first write was interrupted is not
// taken for a volume unless it is a whole one.
func TestPowerCutInWriteNew(t *testing.T) {
	_, h := written(t)
	for left := 0; ; left++ {
		d := &crashDisk{stable: make([]byte, testSize), left: left}
		_, err := WriteNew(d, h, &testRand{state: 10})
		if err == nil {
			break
		}
		for name, choose := range survivals() {
			got, err := Read(d.after(choose), testSize)
			switch {
			case errors.Is(err, ErrNotLUKS2):
			case err != nil:
				t.Errorf("cut after %d, %s: %v", left, name, err)
			case !bytes.Equal(got.material[0], h.material[0]):
				t.Errorf("cut after %d, %s: header without its keyslot", left, name)
			}
		}
	}
}
