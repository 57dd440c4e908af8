package resize

import (
	"errors"
	"testing"

	"sealroot/state"
	"sealroot/state/balloon/files"
)

// What changes nothing is no success: who asks for it would ask again.
func TestLessThanAUnit(t *testing.T) {
	v := newVolumeOn(t, state.Btrfs, state.Ext4, 3<<30, 1<<30)
	m, err := v.Measure()
	if err != nil {
		t.Fatal(err)
	}
	if s, err := v.Resize(t.Context(), m.Reserved-1<<20); !errors.Is(err, ErrTooSmall) || s.Reserved != m.Reserved || s.InBalloons != 0 {
		t.Errorf("1 MiB less: %+v, %v, want %v", s, err, ErrTooSmall)
	}
	// A rest beside units is no error.
	if s, err := v.Resize(t.Context(), m.Reserved-101<<20); err != nil || s.Reserved > m.Reserved-90<<20 {
		t.Errorf("101 MiB less: %+v, %v", s, err)
	}
	if _, err := v.Resize(t.Context(), Smallest); err != nil {
		t.Error(err)
	}
}

// A growing for which there is less room than was measured gives back what it has reserved,
// unless somebody has made the file system larger meanwhile: that has its end there.
func TestNoRoomBehindTheEnd(t *testing.T) {
	for _, stray := range []bool{false, true} {
		v := newVolumeOf(t, state.Btrfs, 1<<30, 512<<20)
		sums := map[string][32]byte{"file": put(t, v, "file", 3<<20)}
		m, err := v.measure(false)
		if err != nil {
			t.Fatal(err)
		}
		end := v.begin + m.Spanned
		if stray {
			run(t, "btrfs", "filesystem", "resize", "+300M", v.root.Name())
		}
		// Far more than there is, as if somebody had taken it since it was measured.
		if err := v.larger(t.Context(), m, m.OuterFree+64<<20); !errors.Is(err, ErrNoRoom) {
			t.Errorf("stray %v: %v, want %v", stray, err, ErrNoRoom)
		}
		there, err := files.Reserved(v.image, end, end+64<<20)
		if err != nil || len(there) > 0 != stray {
			t.Errorf("stray %v: %v are reserved behind the old end, %v", stray, there, err)
		}
		check(t, v, sums)
	}
}
