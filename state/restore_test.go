package state

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/layout"
	"sealroot/state/luks2"
)

// plainDevice shows a file as the decrypted device.
type plainDevice struct {
	*os.File
	size int64
}

func (d plainDevice) Path() string { return d.Name() }
func (plainDevice) Number() string { return "7:0" }
func (d plainDevice) Size() int64  { return d.size }
func (plainDevice) Remove() error  { return nil }

// What is recorded as given back stays a hole under ext4, whose balloons hold it; btrfs
// may have anything there. Behind either nothing stays reserved.
func TestRestore(t *testing.T) {
	h, err := luks2.Format(luks2.FormatParams{UUID: uuidText([16]byte{1}), VolumeKey: make([]byte, 64), SectorSize: BlockSize, Rand: strings.NewReader(strings.Repeat("x", 4096))})
	if err != nil {
		t.Fatal(err)
	}
	begin := int64(h.DataOffset())
	given := balloon.Range{Start: begin + 8<<20, End: begin + 16<<20}
	for kind, holes := range map[Filesystem]int64{Ext4: given.Bytes(), Btrfs: 0} {
		dir, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		image, err1 := os.Create(filepath.Join(dir.Name(), ImageName))
		inside, err2 := os.Create(filepath.Join(t.TempDir(), "inside"))
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		defer image.Close()
		defer inside.Close()
		const size = 512 << 20
		record, err := balloon.Record{Serial: 1, Volume: h.UUID(), Given: []balloon.Range{given}}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(
			inside.Truncate(size), WriteFilesystem(inside, kind, rand.Reader), image.Truncate(begin+size),
			Reserve(image, begin+200<<20, 8<<20), // a power cut ended the growing
			os.WriteFile(filepath.Join(dir.Name(), layout.GivenBack), append(record, make([]byte, balloon.FileBytes-len(record))...), 0o600),
		); err != nil {
			t.Fatal(err)
		}
		v := &Volume{image: image, crypt: plainDevice{inside, size}, Header: h}
		if err := v.restore(dir, begin+size, begin+size); err != nil || v.ReadOnly != nil || v.Superblock.Type != kind {
			t.Errorf("%s: restore: %v, %v, %+v", kind, err, v.ReadOnly, v.Superblock)
		}
		reserved, err := files.Reserved(image, 0, begin+size)
		if there := balloon.Total(reserved); err != nil || there != begin+v.Superblock.Bytes-holes || v.Reserved != there {
			t.Errorf("%s: %d bytes are reserved, %d said to be, want %d of %d: %v", kind, there, v.Reserved, begin+v.Superblock.Bytes-holes, v.Superblock.Bytes, err)
		}
	}
}

// Whatever else the state partition refuses than room, the volume can be read; what it does
// not take back stays reserved.
func TestRestoreRefused(t *testing.T) {
	h, err := luks2.Format(luks2.FormatParams{UUID: uuidText([16]byte{1}), VolumeKey: make([]byte, 64), SectorSize: BlockSize, Rand: strings.NewReader(strings.Repeat("x", 4096))})
	if err != nil {
		t.Fatal(err)
	}
	begin, size := int64(h.DataOffset()), int64(512<<20)
	for name, c := range map[string]struct {
		reserved int64 // bytes of the image
		readOnly bool
	}{"reserve": {64 << 20, true}, "release": {begin + 400<<20, false}} {
		dir, err1 := os.Open(t.TempDir())
		inside, err2 := os.Create(filepath.Join(t.TempDir(), "inside"))
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir.Name(), ImageName)
		image, err := os.Create(path)
		if err := errors.Join(err, inside.Truncate(size), WriteFilesystem(inside, Ext4, rand.Reader), image.Truncate(begin+size), Reserve(image, 0, c.reserved), image.Close()); err != nil {
			t.Fatal(err)
		}
		image, err = os.Open(path) // by which nothing is reserved or given back
		if err != nil {
			t.Fatal(err)
		}
		v := &Volume{image: image, crypt: plainDevice{inside, size}, Header: h}
		if err := v.restore(dir, begin+size, begin+size); err != nil || (v.ReadOnly != nil) != c.readOnly || v.Unsettled != nil || v.Superblock.Type != Ext4 {
			t.Errorf("%s: restore: %v; read-only: %v", name, err, v.ReadOnly)
		}
		if c.readOnly && !(errors.Is(v.ReadOnly, unix.EBADF) && strings.Contains(v.ReadOnly.Error(), "sealroot state repair")) {
			t.Errorf("%s: read-only: %v", name, v.ReadOnly)
		}
		inside.Close()
		image.Close()
		dir.Close()
	}
}
