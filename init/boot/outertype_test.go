package boot

import (
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/state"
)

// A state partition keeps its own file system; what the configuration does not have is
// neither mounted as btrfs nor mended as that, whoever put it there.
func TestOuterType(t *testing.T) {
	torn := func(f *os.File) error { _, err := f.WriteAt([]byte("torn"), 64<<10+900); return err }
	for _, tt := range []struct {
		name       string
		made       state.Filesystem
		change     func(*os.File) error
		configured string
		want       state.Filesystem
		mended     bool
	}{
		{"ext4", state.Ext4, nil, "ext4", state.Ext4, false},
		{"btrfs", state.Btrfs, nil, "btrfs", state.Btrfs, false},
		{"ext4_of_an_older_image", state.Ext4, nil, "btrfs", state.Ext4, false},
		{"torn", state.Btrfs, torn, "btrfs", state.Btrfs, true},
		{"btrfs_of_somebody", state.Btrfs, nil, "ext4", state.Ext4, false},
		{"torn_btrfs_of_somebody", state.Btrfs, torn, "ext4", state.Ext4, false},
		{"nothing", "", nil, "btrfs", state.Btrfs, false},
		{"nothing_and_ext4", "", nil, "ext4", state.Ext4, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "partition"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			err = f.Truncate(256 << 20)
			if tt.made != "" {
				err = errors.Join(err, state.WriteFilesystem(f, tt.made, rand.Reader))
			}
			if tt.change != nil {
				err = errors.Join(err, tt.change(f), f.Sync())
			}
			if err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("losetup", "--find", "--show", f.Name()).CombinedOutput()
			if err != nil {
				t.Fatalf("losetup: %v: %s", err, out)
			}
			node := strings.TrimSpace(string(out))
			defer func() {
				if out, err := exec.Command("losetup", "--detach", node).CombinedOutput(); err != nil {
					t.Errorf("losetup: %v: %s", err, out)
				}
			}()
			b, _ := testBoot(&person{}, config.State{PartitionFilesystem: tt.configured})
			if got, mended := b.mendOuter(node); got != tt.want || mended != tt.mended {
				t.Errorf("mendOuter = %q, %v, want %q, %v", got, mended, tt.want, tt.mended)
			}
		})
	}
}
