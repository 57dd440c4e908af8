package ext4

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/tooltest"
)

func superblockOf(t *testing.T, f *os.File) []byte {
	t.Helper()
	b := make([]byte, superblockBytes)
	if _, err := f.ReadAt(b, superblockOffset); err != nil {
		t.Fatal(err)
	}
	return b
}

// torn is a file system whose last superblock a power cut tore: a mount has written
// old and then whole, of which only the first sector came to the disk.
func torn(t *testing.T) (f *os.File, whole []byte) {
	t.Helper()
	f = newImage(t, TemplateBytes)
	if err := WriteTemplate(f, testUUID, testSeed); err != nil {
		t.Fatal(err)
	}
	old := superblockOf(t, f)
	dir, umount := mounted(t, f.Name())
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	umount()
	whole = superblockOf(t, f)
	if bytes.Equal(old[:firstSector], whole[:firstSector]) {
		t.Fatal("a mount did not change the superblock")
	}
	if _, err := f.WriteAt(old[firstSector:], superblockOffset+firstSector); err != nil {
		t.Fatal(err)
	}
	return f, whole
}

// What comes out is the superblock that the kernel meant to write; e2fsck is the judge.
func TestMend(t *testing.T) {
	f, whole := torn(t)
	if _, err := ReadSuperblock(f); !errors.Is(err, ErrSuperblock) {
		t.Fatalf("the torn superblock reads with %v, want %v", err, ErrSuperblock)
	}
	if mended, err := Mend(f, TemplateBytes); !mended || err != nil {
		t.Fatalf("Mend = %v, %v", mended, err)
	}
	if got := superblockOf(t, f); !bytes.Equal(got, whole) {
		t.Error("the mended superblock is not the one that the kernel wrote")
	}
	tooltest.Run(t, "e2fsck", "-fn", f.Name())
	if text := tooltest.Run(t, "debugfs", "-R", "cat /file", f.Name()); !strings.Contains(text, "kept") {
		t.Errorf("the file reads %q", text)
	}
	if mended, err := Mend(f, TemplateBytes); mended || err != nil {
		t.Errorf("Mend of a good one = %v, %v, want nothing to be done", mended, err)
	}
}

// Damage is left to e2fsck.
func TestMendLeavesDamage(t *testing.T) {
	for _, tt := range []struct {
		name string
		size int64
		at   int // the byte that is damaged; 0: none
	}{
		{"larger_than_the_device", TemplateBytes - 4096, 0},
		{"blocks_for_each_group", TemplateBytes, 0x21},
		{"inode_size", TemplateBytes, 0x58},
		{"unknown_feature", TemplateBytes, sbIncompat + 2},
		{"read_only_feature", TemplateBytes, sbROCompat + 3},
		{"number_of_blocks", TemplateBytes, sbBlocksHigh},
		{"number_of_inodes", TemplateBytes, 0x01},
		{"inodes_for_each_group", TemplateBytes, 0x29},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, _ := torn(t)
			if tt.at > 0 {
				b := []byte{superblockOf(t, f)[tt.at] ^ 0x10}
				if _, err := f.WriteAt(b, superblockOffset+int64(tt.at)); err != nil {
					t.Fatal(err)
				}
			}
			before := superblockOf(t, f)
			if mended, err := Mend(f, tt.size); mended || err != nil {
				t.Errorf("Mend = %v, %v, want it left alone", mended, err)
			}
			if !bytes.Equal(before, superblockOf(t, f)) {
				t.Error("it was written all the same")
			}
		})
	}
}

// As mke2fs makes it, which the builder has it do for the state partition; not with
// blocks of another size.
func TestMendOfMke2fs(t *testing.T) {
	for blockSize, want := range map[string]bool{"4096": true, "1024": false} {
		f := newImage(t, 1<<30)
		tooltest.Run(t, "mke2fs", "-q", "-t", "ext4", "-F", "-b", blockSize, f.Name())
		if _, err := f.WriteAt([]byte{1, 2, 3, 4}, superblockOffset+sbChecksum); err != nil {
			t.Fatal(err)
		}
		if mended, err := Mend(f, 1<<30); mended != want || err != nil {
			t.Errorf("blocks of %s bytes: Mend = %v, %v, want %v", blockSize, mended, err, want)
		}
		if want {
			tooltest.Run(t, "e2fsck", "-fn", f.Name())
		}
	}
}
