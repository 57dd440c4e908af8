package btrfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/tooltest"
)

func blockOf(t *testing.T, f *os.File, at int64) block {
	t.Helper()
	b, err := readAt(f, at)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t *testing.T, f *os.File, b []byte, at int64) {
	t.Helper()
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// between is a file system with one more transaction, and its superblocks before it.
func between(t *testing.T) (f *os.File, oldPrimary, oldMirror []byte) {
	t.Helper()
	f = newImage(t, TemplateBytes, 6)
	dir, umount := mounted(t, f.Name())
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(dir)
	if err == nil {
		err = errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	umount()
	oldPrimary, oldMirror = blockOf(t, f, superblockOffset), blockOf(t, f, 64<<20)
	dir, umount = mounted(t, f.Name())
	if err := os.WriteFile(filepath.Join(dir, "second"), []byte("kept too"), 0o644); err != nil {
		t.Fatal(err)
	}
	umount()
	return f, oldPrimary, oldMirror
}

// usable proves a mended file system: its program checks it, the kernel mounts it.
func usable(t *testing.T, f *os.File) {
	t.Helper()
	tooltest.Run(t, "btrfs", "check", "--readonly", f.Name())
	dir, umount := mounted(t, f.Name())
	if text, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(text) != "kept" {
		t.Errorf("the file reads %q, %v", text, err)
	}
	umount()
}

func TestMend(t *testing.T) {
	f, old, oldMirror := between(t)
	whole, mirror := blockOf(t, f, superblockOffset), blockOf(t, f, 64<<20)
	if bytes.Equal(old[firstSector:], whole[firstSector:]) {
		t.Fatal("a mount did not change what lies behind the first sector")
	}
	newHead := append(bytes.Clone(whole[:firstSector]), old[firstSector:]...)
	oldHead := append(bytes.Clone(old[:firstSector]), whole[firstSector:]...)
	for _, tt := range []struct {
		name            string
		primary, mirror []byte
		want            []byte // nil: not compared
		unmended        bool
	}{
		{"new_head_new_mirror", newHead, mirror, whole, false},
		{"old_head_new_mirror", oldHead, mirror, whole, false},
		{"old_head_old_mirror", oldHead, oldMirror, old, false},
		{"noise_behind_the_head", append(bytes.Clone(whole[:firstSector]), bytes.Repeat([]byte{0x5a}, superblockBytes-firstSector)...), mirror, whole, false},
		{"good", whole, mirror, whole, true},
		{"good_but_older", old, mirror, old, true},
		{"no_mirror", newHead, make([]byte, superblockBytes), newHead, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			put(t, f, tt.primary, superblockOffset)
			put(t, f, tt.mirror, 64<<20)
			if mended, err := Mend(f, TemplateBytes); mended == tt.unmended || err != nil {
				t.Fatalf("Mend = %v, %v", mended, err)
			}
			if got := blockOf(t, f, superblockOffset); !bytes.Equal(got, tt.want) {
				t.Error("the superblock is not the one that the kernel wrote")
			}
			if mended, err := Mend(f, TemplateBytes); mended || err != nil {
				t.Errorf("Mend again = %v, %v", mended, err)
			}
		})
	}
	// The head of the next transaction, and nothing else of it.
	put(t, f, whole, superblockOffset)
	put(t, f, mirror, 64<<20)
	ahead := bytes.Clone(oldMirror)
	binary.LittleEndian.PutUint64(ahead[sbGeneration:], binary.LittleEndian.Uint64(whole[sbGeneration:])-1)
	block(ahead).setSum()
	put(t, f, newHead, superblockOffset)
	put(t, f, ahead, 64<<20)
	if mended, err := Mend(f, TemplateBytes); !mended || err != nil {
		t.Fatalf("Mend = %v, %v", mended, err)
	}
	if got := blockOf(t, f, superblockOffset); !bytes.Equal(got[32:firstSector], whole[32:firstSector]) {
		t.Error("the first sector was not kept")
	}
	usable(t, f)
}

// What a file was synced for is in the log, which no mirror knows.
func TestMendKeepsTheLog(t *testing.T) {
	const logRoot = 96
	f, _, _ := between(t)
	torn, mirror := blockOf(t, f, superblockOffset), blockOf(t, f, 64<<20)
	binary.LittleEndian.PutUint64(torn[logRoot:], 30<<20)
	block(torn).setSum()
	want := bytes.Clone(torn)
	torn[superblockBytes-1000]++
	binary.LittleEndian.PutUint64(mirror[sbPlace:], superblockOffset)
	if got := joined(torn, mirror); !bytes.Equal(got, want) {
		t.Error("the log of the first sector was lost")
	}
}

// In the mirror's place of another file system there may be anything, a file with a
// good superblock too: a primary one that is not of that file system stays.
func TestMendOfAnother(t *testing.T) {
	f, _, _ := between(t)
	whole := blockOf(t, f, superblockOffset)
	for name, change := range map[string]func(b []byte){
		"noise":   func(b []byte) { copy(b, bytes.Repeat([]byte{0x5a}, len(b))) },
		"zeros":   func(b []byte) { clear(b) },
		"magic":   func(b []byte) { b[sbMagic]++ },
		"another": func(b []byte) { b[sbFsid]++ },
		"control": func(b []byte) { b[superblockBytes-1]++ },
	} {
		b := bytes.Clone(whole)
		change(b)
		put(t, f, b, superblockOffset)
		if mended, err := Mend(f, TemplateBytes); mended != (name == "control") || err != nil {
			t.Errorf("%s: Mend = %v, %v", name, mended, err)
		} else if got := blockOf(t, f, superblockOffset); !mended && !bytes.Equal(got, b) {
			t.Errorf("%s: it was written to", name)
		}
	}
}

func TestMendLeavesWhatDoesNotFit(t *testing.T) {
	f, _, _ := between(t)
	torn := blockOf(t, f, superblockOffset)
	torn[firstSector+100]++
	put(t, f, torn, superblockOffset)
	if mended, err := Mend(f, TemplateBytes-4096); mended || err != nil {
		t.Errorf("on a smaller device: Mend = %v, %v", mended, err)
	}
	if mended, err := Mend(f, 64<<20); mended || err != nil {
		t.Errorf("mirror beyond the end: Mend = %v, %v", mended, err)
	}
	if got := blockOf(t, f, superblockOffset); !bytes.Equal(got, torn) {
		t.Error("the superblock was changed")
	}
	if mended, err := Mend(f, TemplateBytes); !mended || err != nil {
		t.Errorf("control: Mend = %v, %v", mended, err)
	}
}

// twoBlocks is a disk with a primary superblock and a mirror, and nothing else.
type twoBlocks map[int64]block

func (d twoBlocks) ReadAt(b []byte, at int64) (int, error) { return copy(b, d[at]), nil }
func (d twoBlocks) WriteAt(b []byte, at int64) (int, error) {
	d[at] = bytes.Clone(b)
	return len(b), nil
}
func (twoBlocks) Sync() error { return nil }

// What is written is a good primary superblock; else nothing is.
func FuzzMend(f *testing.F) {
	good := superblock(f, func([]byte) {})[superblockOffset:]
	torn := bytes.Clone(good)
	torn[firstSector+7]++
	f.Add(good, good)
	f.Add(torn, good)
	f.Add(good, torn)
	f.Fuzz(func(t *testing.T, primary, mirror []byte) {
		if len(primary) != superblockBytes || len(mirror) != superblockBytes {
			return
		}
		d := twoBlocks{superblockOffset: bytes.Clone(primary), mirrorOffset: bytes.Clone(mirror)}
		binary.LittleEndian.PutUint64(d[mirrorOffset][sbPlace:], mirrorOffset)
		d[mirrorOffset].setSum() // get past the checksum: it keeps nobody out
		mirror = bytes.Clone(d[mirrorOffset])
		mended, err := Mend(d, TemplateBytes)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(d[mirrorOffset], mirror) || !mended && !bytes.Equal(d[superblockOffset], primary) {
			t.Error("something else was written")
		}
		s, err := ReadSuperblock(d)
		if mended && (err != nil || s.Bytes > TemplateBytes) {
			t.Errorf("mended to %+v, %v", s, err)
		}
		if again, _ := Mend(d, TemplateBytes); mended && again {
			t.Error("mended twice")
		}
	})
}
