package luks2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTwoCopies: which intact copy wins, and that a torn one is no loss. What is
// refused is in package hostile.
func TestTwoCopies(t *testing.T) {
	// rewrite makes another number, and another cipher, of a copy.
	rewrite := func(t *testing.T, d *memDisk, offset uint64, magic string, seqid uint64, cipher string) {
		c := must[diskCopy](t)(readCopy(d, offset, magic, testSize))
		c.seqid = seqid
		c.json = bytes.Replace(c.json, []byte(`"iv_tweak":"0","encryption":"aes-xts-plain64"`),
			[]byte(`"iv_tweak":"0","encryption":"`+cipher+`"`), 1)
		d.WriteAt(c.encode(offset, magic, make([]byte, hdrSaltBytes)), int64(offset))
	}
	tests := []struct {
		name string
		fn   func(t *testing.T, d *memDisk)
		cut  bool // Interrupted
	}{
		{"both_good", func(*testing.T, *memDisk) {}, false},
		{"primary_zeroed", func(_ *testing.T, d *memDisk) { clear(d.b[:minHeaderBytes]) }, true},
		{"primary_torn", func(_ *testing.T, d *memDisk) { clear(d.b[4096:8192]) }, true},
		{"secondary_torn", func(_ *testing.T, d *memDisk) { d.b[minHeaderBytes+5000] ^= 1 }, true},
		{"secondary_zeroed", func(_ *testing.T, d *memDisk) { clear(d.b[minHeaderBytes : 2*minHeaderBytes]) }, true},
		{"older_hostile_secondary", func(t *testing.T, d *memDisk) {
			rewrite(t, d, 0, magicPrimary, 9, Encryption)
			rewrite(t, d, minHeaderBytes, magicSecond, 1, "cipher_null-ecb")
		}, true},
		{"older_hostile_primary", func(t *testing.T, d *memDisk) {
			rewrite(t, d, 0, magicPrimary, 1, "cipher_null-ecb")
			rewrite(t, d, minHeaderBytes, magicSecond, 9, Encryption)
		}, true},
	}
	good, _ := written(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := &memDisk{bytes.Clone(good.b)}
			tt.fn(t, d)
			h := must[*Header](t)(Read(d, testSize))
			if _, err := h.Unlock(0, []byte("secret")); err != nil {
				t.Error(err)
			}
			if h.Interrupted() != tt.cut {
				t.Errorf("interrupted: got %v, want %v", h.Interrupted(), tt.cut)
			}
			// An update repairs the other copy.
			n := must[*Header](t)(Update(d, h, h, &testRand{state: 7}))
			p, perr := readCopy(d, 0, magicPrimary, testSize)
			s, serr := readCopy(d, minHeaderBytes, magicSecond, testSize)
			if perr != nil || serr != nil || !p.same(s) {
				t.Errorf("after an update: %v, %v", perr, serr)
			}
			if n.Interrupted() || must[*Header](t)(Read(d, testSize)).Interrupted() {
				t.Error("after an update the header is still one of an interrupted update")
			}
		})
	}
}

func TestTruncatedDevice(t *testing.T) {
	d, _ := written(t)
	for _, size := range []int64{-1, 0, 1, 4095, 4096, 16383, 16384, 32768, 16<<20 - 1} {
		h, err := Read(d, size)
		if !(errors.Is(err, ErrNotLUKS2) || errors.Is(err, ErrHeader)) || h != nil {
			t.Errorf("device of %d bytes: got a header: %v, %v", size, h != nil, err)
		}
		if size >= 0 && size < 2*minHeaderBytes+64*stripes { // shorter than it says it is
			short := &memDisk{d.b[:size]}
			if h, err := Read(short, testSize); err == nil || h != nil {
				t.Errorf("device that ends after %d bytes: got a header: %v, %v", size, h != nil, err)
			}
		}
	}
}

// swapDisk gives each sector once.
type swapDisk struct {
	*memDisk
	seen map[int64]bool
}

func (d *swapDisk) ReadAt(b []byte, off int64) (int, error) {
	for sector := off / 512; sector*512 < off+int64(len(b)); sector++ {
		if d.seen[sector] {
			return 0, os.ErrInvalid
		}
		d.seen[sector] = true
	}
	return d.memDisk.ReadAt(b, off)
}

func TestNothingIsReadTwice(t *testing.T) {
	good, _ := written(t)
	d := &swapDisk{good, map[int64]bool{}}
	h := must[*Header](t)(Read(d, testSize))
	clear(good.b) // from here on the disk does not matter
	if key := must[[]byte](t)(h.Unlock(0, []byte("secret"))); !bytes.Equal(key, testKey()) {
		t.Error("got another key")
	}
	if _, err := h.CryptTarget(testSize); err != nil {
		t.Error(err)
	}
}

// exchangeDisk gives one disk's bytes for a number of reads, then the other's.
type exchangeDisk struct {
	before, after io.ReaderAt
	reads         int
}

func (d *exchangeDisk) ReadAt(b []byte, off int64) (int, error) {
	if d.reads--; d.reads >= 0 {
		return d.before.ReadAt(b, off)
	}
	return d.after.ReadAt(b, off)
}

// TestHeaderExchangedWhileItIsRead: whenever another header takes the place of
// the first, what comes out is refused, or all of one of them: nothing of a
// header is used that did not go through the checks with the rest of it.
func TestHeaderExchangedWhileItIsRead(t *testing.T) {
	ours, _ := written(t)
	attackers := map[string]func() *memDisk{
		// Null cipher: must never come out.
		"null_cipher": func() *memDisk {
			d := &memDisk{bytes.Clone(ours.b)}
			edit(t, d, func(doc map[string]any) { at(doc, "segments", "0")["encryption"] = "cipher_null-ecb" })
			return d
		},
		// A good header of the attacker, with the same UUID and another key.
		"other_key": func() *memDisk {
			rand, key := &testRand{state: 20}, bytes.Repeat([]byte{9}, 64)
			h := must[*Header](t)(Format(FormatParams{UUID: testUUID, Label: "x", VolumeKey: key, SectorSize: 512, Rand: rand}))
			h = must[*Header](t)(h.AddKeyslot(0, key, []byte("theirs"), RandomSecretKDF(), rand))
			d := newMemDisk()
			must[*Header](t)(WriteNew(d, h, rand))
			return d
		},
	}
	for name, attacker := range attackers {
		theirs := attacker()
		count := &exchangeDisk{before: ours, reads: 1 << 20}
		must[*Header](t)(Read(count, testSize))
		reads := 1<<20 - count.reads
		if reads < 4 {
			t.Fatalf("the header was read in %d pieces", reads)
		}
		whole := map[bool]int{}
		for before := range reads + 1 {
			for ourTurn, d := range map[bool]*exchangeDisk{
				true:  {ours, theirs, before},
				false: {theirs, ours, before},
			} {
				h, err := Read(d, testSize)
				if err != nil {
					continue
				}
				target := must[CryptTarget](t)(h.CryptTarget(testSize))
				d.before, d.after = nil, nil // nothing is read from here on
				oursOpen, theirsOpen := opensBy(h, "secret"), opensBy(h, "theirs")
				wantSector := 4096
				if h.Label() == "x" {
					wantSector = 512
				}
				if target.SectorSize != wantSector || target.Encryption != Encryption || (oursOpen && h.Label() == "x") || (theirsOpen && h.Label() != "x") {
					t.Errorf("%s after %d reads (ours first: %v): header %q, sectors of %d, opens %v, %v",
						name, before, ourTurn, h.Label(), target.SectorSize, oursOpen, theirsOpen)
				}
				whole[oursOpen]++
			}
		}
		if whole[true] == 0 {
			t.Errorf("%s: control: our header never came out whole", name)
		}
	}
}

func opensBy(h *Header, passphrase string) bool {
	key, err := h.Unlock(0, []byte(passphrase))
	return err == nil && h.VerifyVolumeKey(key) == nil
}

// TestLibraryOpensWhatWeHold: luks.go is given a memory file of the header as it
// is held after Read, and no byte of the disk: it finds the key that we find.
func TestLibraryOpensWhatWeHold(t *testing.T) {
	d, _ := written(t)
	h := must[*Header](t)(Read(d, testSize))
	clear(d.b)
	fd := must[int](t)(unix.MemfdCreate("header", unix.MFD_CLOEXEC))
	f := os.NewFile(uintptr(fd), "header")
	defer f.Close()
	if err := f.Truncate(testSize); err != nil {
		t.Fatal(err)
	}
	must[*Header](t)(WriteNew(f, h, &testRand{state: 21}))
	key := must[[]byte](t)(h.Unlock(0, []byte("secret")))
	checkKey(t, fmt.Sprintf("/proc/self/fd/%d", fd), h, key)
}

type failingReader struct {
	io.ReaderAt
	from, to int64
}

func (r failingReader) ReadAt(b []byte, off int64) (int, error) {
	if off < r.to && off+int64(len(b)) > r.from {
		return 0, os.ErrDeadlineExceeded
	}
	return r.ReaderAt.ReadAt(b, off)
}

// TestReadErrorIsNotForeignFormat: an I/O error must not look like an empty
// place that may be formatted.
func TestReadErrorIsNotForeignFormat(t *testing.T) {
	d, _ := written(t)
	h, err := Read(failingReader{d, 0, 1 << 20}, testSize)
	if !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, ErrNotLUKS2) || h != nil {
		t.Errorf("got a header: %v, %v, want the device's error", h != nil, err)
	}
	if _, err := Read(failingReader{d, 0, 4096}, testSize); err != nil {
		t.Errorf("primary unreadable: got %v, want the secondary", err)
	}
}
