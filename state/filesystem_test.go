package state_test

import (
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/state"
	"sealroot/state/btrfs"
	"sealroot/state/ext4"
)

// newFilesystem is one of each type, in a file.
func newFilesystem(t *testing.T, kind state.Filesystem) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), string(kind)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := errors.Join(f.Truncate(256<<20), state.WriteFilesystem(f, kind, rand.Reader)); err != nil {
		t.Fatal(err)
	}
	return f
}

// What is written is what blkid takes it for, is read and mended as that, and mounts
// with its options.
func TestFilesystems(t *testing.T) {
	for kind, want := range map[state.Filesystem]struct {
		bytes, superblock int64
	}{
		state.Ext4:  {ext4.TemplateBytes, 1024},
		state.Btrfs: {btrfs.TemplateBytes, 64 << 10},
	} {
		t.Run(string(kind), func(t *testing.T) {
			f := newFilesystem(t, kind)
			if out, err := exec.Command("blkid", "-p", "-o", "value", "-s", "TYPE", f.Name()).Output(); err != nil || strings.TrimSpace(string(out)) != string(kind) {
				t.Errorf("blkid: %q, %v", out, err)
			}
			sb, err := state.ReadSuperblock(f)
			if err != nil || sb.Type != kind || sb.Bytes != want.bytes || sb.NeedsCheck() || sb.NeedsRecovery {
				t.Errorf("ReadSuperblock() = %+v, %v", sb, err)
			}
			dir := t.TempDir()
			options := "loop," + strings.Join(kind.MountOptions(), ",")
			for _, args := range [][]string{{"mount", "-o", options, f.Name(), dir}, {"umount", dir}} {
				if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
					t.Fatalf("%q: %v\n%s", args, err, out)
				}
			}
			if _, err := f.WriteAt([]byte("torn"), want.superblock+900); err != nil {
				t.Fatal(err)
			}
			if _, err := state.ReadSuperblock(f); !errors.Is(err, ext4.ErrSuperblock) && !errors.Is(err, btrfs.ErrSuperblock) {
				t.Errorf("ReadSuperblock() of a torn one = %v", err)
			}
			if mended, err := state.Mend(f, 256<<20); err != nil || !mended {
				t.Errorf("Mend() = %v, %v", mended, err)
			}
			if _, err := state.ReadSuperblock(f); err != nil {
				t.Errorf("ReadSuperblock() of a mended one = %v", err)
			}
		})
	}
	noise, err := os.Create(filepath.Join(t.TempDir(), "noise"))
	if err != nil {
		t.Fatal(err)
	}
	defer noise.Close()
	if err := noise.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	if _, err := state.ReadSuperblock(noise); !errors.Is(err, ext4.ErrNotExt4) || !errors.Is(err, btrfs.ErrNotBtrfs) {
		t.Errorf("ReadSuperblock() of nothing = %v", err)
	}
}

func TestSizesOfBtrfs(t *testing.T) {
	if s, err := state.SizesFor(state.Btrfs, 400<<20, 1); err != nil || s.Reserved != 288<<20 {
		t.Errorf("SizesFor() = %+v, %v, want 288 MiB: 16 for the header, 256 at least for btrfs", s, err)
	}
	if _, err := state.SizesFor(state.Btrfs, 288<<20, 0); !errors.Is(err, state.ErrNoRoom) {
		t.Errorf("SizesFor() with 288 MiB = %v, want %v", err, state.ErrNoRoom)
	}
}
