package judge

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

// asMounted replaces an image by what a power cut would leave of it while it is mounted.
func asMounted(v *volume, image string) string {
	v.t.Helper()
	cut := filepath.Join(v.t.TempDir(), "cut")
	v.within(image, func(root string) {
		tool(v.t, "touch", filepath.Join(root, "file"))
		tool(v.t, "sync", filepath.Join(root, "file"))
		tool(v.t, "cp", "--sparse=always", image, cut)
	})
	return cut
}

// Each of the two file systems, and it alone, is told to be mounted still, or damaged.
func TestUnmounted(t *testing.T) {
	ext4, btrfs := newVolume(t, Ext4), newVolume(t, Btrfs)
	btrfs = btrfs.edited(t, func(string) {}) // it is left as cut
	for _, tt := range []struct {
		name         string
		v            *volume
		outer, inner bool // is left mounted
		damaged      bool
	}{
		{"ext4", ext4, false, false, false},
		{"ext4_inner_mounted", ext4, false, true, false},
		{"ext4_outer_mounted", ext4, true, false, false},
		{"ext4_both_mounted", ext4, true, true, false},
		{"ext4_damaged", ext4, false, false, true},
		{"btrfs", btrfs, false, false, false},
		{"btrfs_inner_mounted", btrfs, false, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := tt.v.edited(t, func(string) {})
			if tt.inner {
				v.inner = asMounted(v, v.inner)
			}
			if tt.damaged {
				tool(t, "debugfs", "-w", "-R", "clri files", v.inner)
			}
			state := v.put()
			if tt.outer {
				state = asMounted(v, state)
			}
			err := Case{State: state, Dir: t.TempDir(), Outer: v.outer, Inner: v.of, Unlock: unlock}.Unmounted()
			if got, want := errors.Is(err, ErrMounted), tt.outer || tt.inner; got != want {
				t.Errorf("Unmounted() = %v, want ErrMounted: %v", err, want)
			}
			if got := errors.Is(err, ErrDamaged); got != tt.damaged {
				t.Errorf("Unmounted() = %v, want ErrDamaged: %v", err, tt.damaged)
			}
			if (tt.outer || tt.inner || tt.damaged) != (err != nil) {
				t.Errorf("Unmounted() = %v", err)
			}
			if err == nil {
				return
			}
			for what, want := range map[string]bool{"the state partition: ": tt.outer, "the volume: ": tt.inner || tt.damaged} {
				if strings.Contains(err.Error(), what) != want {
					t.Errorf("Unmounted() = %v, want %q in it: %v", err, what, want)
				}
			}
		})
	}
}
