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
)

// A partition that a cut has left may be made anew. One that something was mounted
// from, or that another program made, may not, whatever has become of it.
func TestCheckUnmounted(t *testing.T) {
	const size = 300 << 20
	tool := func(words ...string) func(t *testing.T, f *os.File) {
		return func(t *testing.T, f *os.File) {
			t.Helper()
			if out, err := exec.Command(words[0], append(words[1:], f.Name())...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", words, err, out)
			}
		}
	}
	write := func(at int64, b []byte) func(t *testing.T, f *os.File) {
		return func(t *testing.T, f *os.File) {
			t.Helper()
			if _, err := f.WriteAt(b, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	ours := func(t *testing.T, f *os.File) {
		t.Helper()
		if err := state.WriteFilesystem(f, state.Ext4, rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	btrfs := func(t *testing.T, f *os.File) {
		t.Helper()
		if err := state.WriteFilesystem(f, state.Btrfs, rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	mounted := func(t *testing.T, f *os.File) {
		t.Helper()
		dir := t.TempDir()
		for _, words := range [][]string{{"mount", "-o", "loop,nodiscard", f.Name(), dir}, {"umount", dir}} {
			if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", words, err, out)
			}
		}
	}
	noise := []byte(strings.Repeat("\xa5", 4096))
	grow := func(t *testing.T, f *os.File) {
		t.Helper()
		tool("e2fsck", "-f", "-p")(t, f)
		tool("resize2fs")(t, f)
	}
	for _, tt := range []struct {
		name  string
		steps []func(t *testing.T, f *os.File)
		empty bool
	}{
		{"nothing_written", nil, true},
		{"noise", []func(*testing.T, *os.File){write(0, noise)}, true},
		{"template", []func(*testing.T, *os.File){ours}, true},
		// A disk writes sectors in any order.
		{"template_without_the_rest", []func(*testing.T, *os.File){ours, write(4096, noise)}, true},
		{"torn_superblock", []func(*testing.T, *os.File){ours, write(1024+512, noise[:512])}, true},
		{"other_half_only", []func(*testing.T, *os.File){ours, write(1024, noise[:512])}, true},
		// s_mtime, s_mnt_count: the kernel sets them when it mounts.
		{"mounted", []func(*testing.T, *os.File){ours, write(1024+0x2c, []byte{1, 2, 3, 4}), write(1024+0x34, []byte{1})}, false},
		{"grown", []func(*testing.T, *os.File){ours, grow}, false},
		{"grown_then_damaged", []func(*testing.T, *os.File){ours, grow, write(4096, noise)}, false},
		{"grown_without_superblock", []func(*testing.T, *os.File){ours, grow, write(1024, noise[:1024])}, false},
		{"mkfs", []func(*testing.T, *os.File){tool("mkfs.ext4", "-q", "-F")}, false},
		{"btrfs_template", []func(*testing.T, *os.File){btrfs}, true},
		{"btrfs_template_over_the_other", []func(*testing.T, *os.File){ours, btrfs}, true},
		{"btrfs_without_superblock", []func(*testing.T, *os.File){btrfs, write(64<<10, noise)}, true},
		{"btrfs_mounted", []func(*testing.T, *os.File){btrfs, mounted}, false},
		{"btrfs_mounted_without_superblock", []func(*testing.T, *os.File){btrfs, mounted, write(64<<10, noise)}, false},
		{"mkfs_btrfs", []func(*testing.T, *os.File){tool("mkfs.btrfs", "-q", "-f")}, false},
		{"swap", []func(*testing.T, *os.File){tool("mkswap")}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "partition"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(size); err != nil {
				t.Fatal(err)
			}
			for _, step := range tt.steps {
				step(t, f)
			}
			if err := state.CheckUnmounted(f); tt.empty && err != nil || !tt.empty && !errors.Is(err, state.ErrNotEmpty) {
				t.Errorf("CheckUnmounted() = %v, want it to be made anew: %v", err, tt.empty)
			}
		})
	}
	t.Run("unreadable", func(t *testing.T) {
		dir, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if err := state.CheckUnmounted(dir); err == nil || errors.Is(err, state.ErrNotEmpty) {
			t.Errorf("CheckUnmounted() of what cannot be read = %v", err)
		}
	})
}
