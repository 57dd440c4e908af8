package btrfs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/tooltest"
)

func seeded(seed byte) *rand.ChaCha8 { return rand.NewChaCha8([32]byte{seed}) }

// newImage is a file system in a file of size bytes, written over noise, as a new
// dm-crypt device is full of.
func newImage(t *testing.T, size int64, seed byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(bytes.Repeat([]byte{0xa5, 0x5a, 0xff}, TemplateBytes/3)); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := WriteTemplate(f, seeded(seed)); err != nil {
		t.Fatal(err)
	}
	return f
}

// mounted mounts an image for as long as the test runs, or until umount.
func mounted(t *testing.T, image string) (dir string, umount func()) {
	t.Helper()
	dir = t.TempDir()
	tooltest.Run(t, "mount", "-o", "loop,nodiscard", image, dir)
	umount = sync.OnceFunc(func() { tooltest.Run(t, "umount", dir) })
	t.Cleanup(umount)
	return dir, umount
}

func TestTemplateIsWhatMkfsMakes(t *testing.T) {
	if version := tooltest.Run(t, "mkfs.btrfs", "--version"); !strings.Contains(version, "v6.2") {
		t.Fatalf("mkfs.btrfs is not 6.2 of Debian 12, on which the template was made: %s", version)
	}
	again := filepath.Join(t.TempDir(), "template.bin")
	tooltest.Run(t, "go", "run", "./gentemplate", "-o", again)
	got, err := os.ReadFile(again)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != template {
		t.Errorf("gentemplate makes %d bytes that differ from the %d embedded ones", len(got), len(template))
	}
}

func TestWriteTemplateOverNoise(t *testing.T) {
	f := newImage(t, TemplateBytes, 1)
	tooltest.Run(t, "btrfs", "check", "--readonly", f.Name())
	s, err := ReadSuperblock(f)
	if err != nil {
		t.Fatal(err)
	}
	if s.Bytes != TemplateBytes || s.Errors || s.Allocated < 50<<20 || s.Allocated > TemplateBytes {
		t.Errorf("ReadSuperblock = %+v", s)
	}
	dump := tooltest.Run(t, "btrfs", "inspect-internal", "dump-super", "-a", f.Name())
	if n := strings.Count(dump, "[match]"); strings.Contains(dump, "DON'T MATCH") || n != 6 { // checksum, magic and device, twice
		t.Errorf("dump-super is satisfied in %d places, want 6:\n%s", n, dump)
	}
	// Two file systems have no UUID in common, and are mounted side by side: the
	// kernel tells them apart by these alone.
	other := newImage(t, TemplateBytes, 2)
	if one, two := blockOf(t, f, superblockOffset), blockOf(t, other, superblockOffset); bytes.Equal(one[sbFsid:sbPlace], two[sbFsid:sbPlace]) {
		t.Error("two file systems have one UUID")
	}
	mounted(t, f.Name())
	mounted(t, other.Name())

	// Red control: the judge does see one wrong byte of a tree block.
	broken := newImage(t, TemplateBytes, 3)
	places := rootNodes(t)
	for _, at := range places {
		if _, err := broken.WriteAt([]byte{1}, at+sbFsid); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("btrfs", "check", "--readonly", broken.Name()).CombinedOutput(); err == nil {
		t.Errorf("btrfs check accepts a changed tree block:\n%s", out)
	}
}

// rootNodes are the places of a tree block that has two copies.
func rootNodes(t *testing.T) []int64 {
	t.Helper()
	b, places, rest := nextBlock(unpack(template), make([]byte, 16*UUIDs))
	for len(b) == superblockBytes {
		b, places, rest = nextBlock(rest, make([]byte, 16*UUIDs))
	}
	return places[:]
}

func TestResizeMounted(t *testing.T) {
	const large, small = 8 << 30, 3 << 30
	f := newImage(t, large, 4)
	dir, umount := mounted(t, f.Name())
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	resize := func(size uint64) {
		t.Helper()
		if err := errors.Join(Resize(int(d.Fd()), 1, size), unix.Syncfs(int(d.Fd()))); err != nil {
			t.Fatal(err)
		}
		if s, err := ReadSuperblock(f); err != nil || s.Bytes != int64(size) {
			t.Fatalf("ReadSuperblock = %+v, %v, want %d bytes", s, err, size)
		}
	}
	resize(large)
	data := make([]byte, 200<<20)
	seeded(5).Read(data)
	want := sha256.Sum256(data)
	if err := os.WriteFile(filepath.Join(dir, "file"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	resize(small)
	resize(small + 4096*77)
	resize(small)
	if err := Resize(int(d.Fd()), 1, 100<<20); !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EINVAL) {
		t.Errorf("Resize below what is used = %v, want ENOSPC or EINVAL", err)
	}
	if err := Resize(int(d.Fd()), 2, small); !errors.Is(err, unix.ENODEV) {
		t.Errorf("Resize of another device = %v, want ENODEV", err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "file"))
	if err != nil || sha256.Sum256(got) != want {
		t.Errorf("the file is another one: %v", err)
	}
	d.Close()
	umount()
	// Nothing of the file system lies beyond the end that its superblock names.
	if err := f.Truncate(small); err != nil {
		t.Fatal(err)
	}
	tooltest.Run(t, "btrfs", "check", "--readonly", f.Name())
}

// The smallest volume has 16 MiB for its header, and so much: the kernel takes no less.
func TestResizeToLeast(t *testing.T) {
	const least = 272 << 20
	f := newImage(t, least, 7)
	dir, umount := mounted(t, f.Name())
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := Resize(int(d.Fd()), 1, least-32<<20); !errors.Is(err, unix.EINVAL) {
		t.Errorf("Resize to 240 MiB = %v, want EINVAL", err)
	}
	if err := Resize(int(d.Fd()), 1, least); err != nil {
		t.Error(err)
	}
	d.Close()
	umount()
	tooltest.Run(t, "btrfs", "check", "--readonly", f.Name())
}

type failing struct{ after int }

func (f *failing) WriteAt(b []byte, _ int64) (int, error) {
	if f.after--; f.after < 0 {
		return 0, os.ErrPermission
	}
	return len(b), nil
}

func TestWriteTemplateReportsEveryFailedWrite(t *testing.T) {
	counter := &failing{after: 1 << 30}
	if err := WriteTemplate(counter, seeded(1)); err != nil {
		t.Fatal(err)
	}
	for n := range 1<<30 - counter.after {
		if err := WriteTemplate(&failing{after: n}, seeded(1)); !errors.Is(err, os.ErrPermission) {
			t.Errorf("write %d fails: got %v, want ErrPermission", n, err)
		}
	}
	if err := WriteTemplate(counter, bytes.NewReader(make([]byte, 63))); err == nil {
		t.Error("WriteTemplate without randomness succeeded")
	}
}

// superblock returns a device that ends with its primary superblock, which is changed
// and has a right checksum.
func superblock(t testing.TB, change func(sb []byte)) []byte {
	t.Helper()
	b, _, _ := nextBlock(unpack(template), make([]byte, 16*UUIDs))
	binary.LittleEndian.PutUint64(b[sbPlace:], superblockOffset)
	change(b)
	block(b).setSum()
	return append(make([]byte, superblockOffset), b...)
}

func TestReadSuperblock(t *testing.T) {
	le := binary.LittleEndian
	for _, tt := range []struct {
		name   string
		change func(sb []byte)
		want   error
	}{
		{"good", func([]byte) {}, nil},
		{"compressed_files", func(sb []byte) { sb[sbIncompat] |= 0x18 }, nil},
		{"simple_quotas", func(sb []byte) { sb[sbIncompat+2] |= 1 }, nil},
		{"stripe_tree", func(sb []byte) { sb[sbIncompat+1] |= 0x40 }, ErrSuperblock},
		{"wrong_magic", func(sb []byte) { sb[sbMagic]++ }, ErrNotBtrfs},
		{"other_checksum", func(sb []byte) { sb[sbSumType] = 1 }, ErrSuperblock},
		{"a_mirror", func(sb []byte) { le.PutUint64(sb[sbPlace:], 64<<20) }, ErrSuperblock},
		{"seed", func(sb []byte) { sb[sbFlags+4] = 1 }, ErrSuperblock},
		{"metadata_uuid", func(sb []byte) { sb[sbIncompat+1] |= 4 }, ErrSuperblock},
		{"zoned", func(sb []byte) { sb[sbIncompat+1] |= 0x10 }, ErrSuperblock},
		{"unknown_read_only_feature", func(sb []byte) { sb[sbROCompat+7] = 0x80 }, ErrSuperblock},
		{"two_devices", func(sb []byte) { sb[sbDevices] = 2 }, ErrSuperblock},
		{"no_device", func(sb []byte) { sb[sbDevices] = 0 }, ErrSuperblock},
		{"device_of_another", func(sb []byte) { sb[sbDevFsid]++ }, ErrSuperblock},
		{"sector_size", func(sb []byte) { le.PutUint32(sb[sbSectorSize:], 65536) }, ErrSuperblock},
		{"node_size", func(sb []byte) { le.PutUint32(sb[sbNodeSize:], 12288) }, ErrSuperblock},
		{"no_system_chunk", func(sb []byte) { le.PutUint32(sb[sbArraySize:], 0) }, ErrSuperblock},
		{"array_overflows", func(sb []byte) { le.PutUint32(sb[sbArraySize:], maxArray+1) }, ErrSuperblock},
		{"no_bytes", func(sb []byte) { le.PutUint64(sb[sbDevBytes:], 0); le.PutUint64(sb[sbTotalBytes:], 0) }, ErrSuperblock},
		{"negative_size", func(sb []byte) { sb[sbDevBytes+7], sb[sbTotalBytes+7] = 0x80, 0x80 }, ErrSuperblock},
		{"sizes_differ", func(sb []byte) { sb[sbDevBytes+3]++ }, ErrSuperblock},
		{"more_used_than_there", func(sb []byte) { le.PutUint64(sb[sbBytesUsed:], TemplateBytes+1) }, ErrSuperblock},
		{"more_allocated_than_there", func(sb []byte) { le.PutUint64(sb[sbDevUsed:], TemplateBytes+1) }, ErrSuperblock},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := ReadSuperblock(bytes.NewReader(superblock(t, tt.change)))
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if err != nil && s != (Superblock{}) {
				t.Errorf("error with value %+v", s)
			}
		})
	}
	flipped := superblock(t, func([]byte) {})
	flipped[superblockOffset+4000]++
	if _, err := ReadSuperblock(bytes.NewReader(flipped)); !errors.Is(err, ErrSuperblock) {
		t.Errorf("wrong checksum: got %v, want ErrSuperblock", err)
	}
	if _, err := ReadSuperblock(bytes.NewReader(flipped[:len(flipped)-1])); !errors.Is(err, ErrNotBtrfs) {
		t.Errorf("short device: got %v, want ErrNotBtrfs", err)
	}
	marked := superblock(t, func(sb []byte) { sb[sbFlags] |= flagErrors })
	if s, err := ReadSuperblock(bytes.NewReader(marked)); err != nil || !s.Errors {
		t.Errorf("ReadSuperblock = %+v, %v, want errors", s, err)
	}
}

func FuzzReadSuperblock(f *testing.F) {
	f.Add(superblock(f, func([]byte) {})[superblockOffset:])
	f.Add(make([]byte, superblockBytes))
	f.Fuzz(func(t *testing.T, sb []byte) {
		if len(sb) == superblockBytes {
			block(sb).setSum() // get past the checksum: it keeps nobody out
		}
		s, err := ReadSuperblock(bytes.NewReader(append(make([]byte, superblockOffset), sb...)))
		if err != nil && s != (Superblock{}) {
			t.Errorf("error %v with value %+v", err, s)
		}
		if err == nil && (s.Bytes <= 0 || s.Bytes%4096 != 0 || s.Allocated < 0 || s.Allocated > s.Bytes) {
			t.Errorf("impossible size: %+v", s)
		}
	})
}
