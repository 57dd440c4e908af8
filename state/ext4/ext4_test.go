package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"sealroot/tooltest"
)

var (
	testUUID = [16]byte{0x0e, 0x1f, 2, 3, 4, 5, 0x46, 7, 0x88, 9, 10, 11, 12, 13, 14, 15}
	testSeed = [16]byte{0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0x46, 0xa7, 0x88, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf}
)

// newImage is a file of size bytes, full of noise as a new dm-crypt device is.
func newImage(t *testing.T, size int64) *os.File {
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
	return f
}

func TestTemplateIsWhatMke2fsMakes(t *testing.T) {
	version := tooltest.Run(t, "mke2fs", "-V")
	if !strings.Contains(version, "1.47.0") {
		t.Fatalf("mke2fs is not 1.47.0 of Debian 12, on which the template was made: %s", version)
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
	if len(template) > 64<<10 {
		t.Errorf("template has %d bytes, want it small", len(template))
	}
}

func TestWriteTemplateOverNoise(t *testing.T) {
	f := newImage(t, TemplateBytes)
	if err := WriteTemplate(f, testUUID, testSeed); err != nil {
		t.Fatal(err)
	}
	tooltest.Run(t, "e2fsck", "-fn", f.Name())
	head := tooltest.Run(t, "dumpe2fs", "-h", f.Name())
	for _, want := range []string{
		"0e1f0203-0405-4607-8809-0a0b0c0d0e0f",
		"a0a1a2a3-a4a5-46a7-88a9-aaabacadaeaf",
		"metadata_csum_seed",
		"Block count:              16384\n",
		"Total journal size:       16M\n",
	} {
		if !strings.Contains(head, want) {
			t.Errorf("dumpe2fs does not show %q:\n%s", want, head)
		}
	}
	s, err := ReadSuperblock(f)
	if err != nil {
		t.Fatal(err)
	}
	if s.UUID != testUUID || s.Bytes() != TemplateBytes || !s.Clean || s.Errors || s.NeedsRecovery || s.FreeBlocks != 11759 {
		t.Errorf("ReadSuperblock = %+v", s)
	}
	// Red control: the judge does see one wrong byte of the superblock.
	if _, err := f.WriteAt([]byte{1}, superblockOffset+sbUUID); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("e2fsck", "-fn", f.Name()).CombinedOutput(); err == nil {
		t.Errorf("e2fsck accepts a changed superblock:\n%s", out)
	}
	if _, err := ReadSuperblock(f); !errors.Is(err, ErrSuperblock) {
		t.Errorf("ReadSuperblock of a changed superblock = %v, want ErrSuperblock", err)
	}
}

func TestTemplateGrowsOffline(t *testing.T) {
	f := newImage(t, 2<<30)
	if err := WriteTemplate(f, testUUID, testSeed); err != nil {
		t.Fatal(err)
	}
	tooltest.Run(t, "resize2fs", f.Name(), "2G")
	tooltest.Run(t, "e2fsck", "-fn", f.Name())
	s, err := ReadSuperblock(f)
	if err != nil || s.Bytes() != 2<<30 {
		t.Errorf("ReadSuperblock = %+v, %v, want 2 GiB", s, err)
	}
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

func TestResizeMounted(t *testing.T) {
	f := newImage(t, 20<<30)
	if err := WriteTemplate(f, testUUID, testSeed); err != nil {
		t.Fatal(err)
	}
	dir, umount := mounted(t, f.Name())
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	err = Resize(int(d.Fd()), 5<<20)
	if !hasSysResource(t) {
		// A container. That the kernel asks for the privilege still shows that
		// it knows the ioctl; the QEMU tests grow the state at first boot.
		if !errors.Is(err, os.ErrPermission) {
			t.Errorf("Resize without CAP_SYS_RESOURCE = %v, want EPERM", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := Resize(int(d.Fd()), 5<<20); err != nil {
		t.Errorf("Resize to the present size = %v, want nil", err)
	}
	if err := Resize(int(d.Fd()), 1<<20); err == nil {
		t.Error("Resize to a smaller size succeeded")
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), bytes.Repeat([]byte("x"), 100<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	d.Close()
	umount()
	tooltest.Run(t, "e2fsck", "-fn", f.Name())
	s, err := ReadSuperblock(f)
	if err != nil || s.Bytes() != 20<<30 {
		t.Errorf("ReadSuperblock = %+v, %v, want 20 GiB", s, err)
	}
	if head := tooltest.Run(t, "dumpe2fs", "-h", f.Name()); !strings.Contains(head, "Inodes per group:         8192\n") {
		t.Errorf("want 8192 inodes per group (one for 16 KiB):\n%s", head)
	}
}

// hasSysResource tells whether the kernel will let us resize at all.
func hasSysResource(t *testing.T) bool {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return caps>>24&1 != 0 // CAP_SYS_RESOURCE, include/uapi/linux/capability.h
		}
	}
	t.Fatal("/proc/self/status shows no capabilities")
	return false
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
	if err := WriteTemplate(counter, testUUID, testSeed); err != nil {
		t.Fatal(err)
	}
	writes := 1<<30 - counter.after
	for n := range writes {
		if err := WriteTemplate(&failing{after: n}, testUUID, testSeed); !errors.Is(err, os.ErrPermission) {
			t.Errorf("write %d fails: got %v, want ErrPermission", n, err)
		}
	}
}

// superblock returns a valid superblock with bytes changed and the checksum
// made right again.
func superblock(t testing.TB, change func(sb []byte)) []byte {
	t.Helper()
	rec, rest, err := nextRecord(template)
	var b []byte
	for ; err == nil && len(b) < superblockOffset+superblockBytes; rec, rest, err = nextRecord(rest) {
		b = rec.appendTo(b, rec.length)
	}
	if err != nil {
		t.Fatal(err)
	}
	sb := b[superblockOffset:][:superblockBytes]
	change(sb)
	binary.LittleEndian.PutUint32(sb[sbChecksum:], superblockSum(sb))
	return b[:superblockOffset+superblockBytes]
}

func TestReadSuperblock(t *testing.T) {
	le := binary.LittleEndian
	tests := []struct {
		name   string
		change func(sb []byte)
		want   error
	}{
		{"good", func([]byte) {}, nil},
		{"wrong_magic", func(sb []byte) { sb[sbMagic]++ }, ErrNotExt4},
		{"ext3", func(sb []byte) { sb[sbIncompat] &^= incompatExtents }, ErrNotExt4},
		{"huge_block_size", func(sb []byte) { le.PutUint32(sb[sbLogBlockSize:], 7) }, ErrSuperblock},
		{"block_size_overflows", func(sb []byte) { le.PutUint32(sb[sbLogBlockSize:], 1<<31) }, ErrSuperblock},
		{"no_blocks", func(sb []byte) { le.PutUint32(sb[sbBlocksLow:], 0) }, ErrSuperblock},
		{"too_many_blocks", func(sb []byte) { le.PutUint32(sb[sbBlocksHigh:], 1<<30) }, ErrSuperblock},
		{"more_free_than_there", func(sb []byte) { le.PutUint32(sb[sbFreeLow:], 16385) }, ErrSuperblock},
		{"unknown_checksum", func(sb []byte) { sb[sbChecksumType] = 2 }, ErrSuperblock},
	}
	for _, tt := range tests {
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
	if _, err := ReadSuperblock(bytes.NewReader(make([]byte, 2047))); !errors.Is(err, ErrNotExt4) {
		t.Errorf("short device: got %v, want ErrNotExt4", err)
	}
	state := superblock(t, func(sb []byte) {
		sb[sbState] = stateErrors
		sb[sbIncompat] |= incompatRecover
	})
	s, err := ReadSuperblock(bytes.NewReader(state))
	if err != nil || s.Clean || !s.Errors || !s.NeedsRecovery {
		t.Errorf("ReadSuperblock = %+v, %v, want errors, recovery", s, err)
	}
}

func FuzzReadSuperblock(f *testing.F) {
	f.Add(superblock(f, func([]byte) {})[superblockOffset:])
	f.Add(make([]byte, superblockBytes))
	f.Fuzz(func(t *testing.T, sb []byte) {
		if len(sb) == superblockBytes {
			// Get past the checksum: it keeps nobody out.
			binary.LittleEndian.PutUint32(sb[sbChecksum:], superblockSum(sb))
		}
		b := append(make([]byte, superblockOffset), sb...)
		s, err := ReadSuperblock(io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))))
		if err != nil && s != (Superblock{}) {
			t.Errorf("error %v with value %+v", err, s)
		}
		if err == nil && (s.Bytes() == 0 || s.Bytes()/uint64(s.BlockSize) != s.Blocks) {
			t.Errorf("impossible size: %+v", s)
		}
	})
}
