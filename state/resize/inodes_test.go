package resize

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/ext4"
)

// useInodes makes empty files until none is left.
func useInodes(t *testing.T, v *Volume) {
	t.Helper()
	for i := 0; ; i++ {
		dir := filepath.Join(v.root.Name(), fmt.Sprint("many", i/1000))
		err := os.MkdirAll(dir, 0o700)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600)
		}
		if errors.Is(err, unix.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// With no inode free the volume gives back as long as spare files are there, and says that
// it cannot without them; behind its end, balloons or not, there are more.
func TestNoInodes(t *testing.T) {
	v := newVolume(t, 1<<30, 100<<20)
	before, err := v.Repair(t.Context()) // as the service does when it starts
	if err != nil {
		t.Fatal(err)
	}
	useInodes(t, v)
	m, err := v.Measure()
	if err != nil || m.Inodes.Free != 0 || m.Inodes.All < 8192 || m.MinReserved > before.Reserved-32<<20 {
		t.Fatalf("with no inode left: %+v, %v", m, err)
	}
	steps := 0
	for ; m.MinReserved < m.Reserved; steps++ {
		had := m.Reserved
		if m, err = v.Resize(t.Context(), had-2<<20); err != nil || m.Reserved > had-1<<20 {
			t.Fatalf("step %d of giving back: %+v, %v", steps, m, err)
		}
	}
	if steps != 8 {
		t.Errorf("gave back %d times, want as often as there are spare files", steps)
	}
	if _, err := v.Resize(t.Context(), m.Reserved-2<<20); !errors.Is(err, ErrTooSmall) {
		t.Errorf("giving back without a spare file: %v, want %v", err, ErrTooSmall)
	}
	if err := v.smaller(t.Context(), 2<<20); !errors.Is(err, ErrTooSmall) {
		t.Errorf("a balloon without an inode: %v, want %v", err, ErrTooSmall)
	}
	backed(t, v)
	if err := os.RemoveAll(filepath.Join(v.root.Name(), "many0")); err != nil {
		t.Fatal(err)
	}
	had := m.Reserved
	if m, err = v.Resize(t.Context(), had-2<<20); err != nil || m.Reserved > had-1<<20 {
		t.Errorf("giving back with inodes: %+v, %v", m, err)
	}
	useInodes(t, v)
	had = m.Reserved
	if m, err = v.Resize(t.Context(), had-2<<20); err != nil || m.Reserved > had-1<<20 {
		t.Errorf("giving back with new spare files: %+v, %v", m, err)
	}
	backed(t, v)
}

// What is added behind the end is reserved before the kernel is asked, and no balloon is
// taken back for it.
func TestExtend(t *testing.T) {
	v := newVolume(t, 512<<20, 100<<20)
	m, err := v.Measure()
	if err != nil {
		t.Fatal(err)
	}
	if m, err = v.Resize(t.Context(), m.Reserved-16<<20); err != nil {
		t.Fatal(err)
	}
	asked := int64(0)
	v.in.(*ext4FS).resize = func(_ int, blocks uint64) error { // the kernel refuses it in a container
		asked = int64(blocks) * 4096
		held, err := files.Reserved(v.image, testBegin+m.Spanned, 4<<30)
		if err == nil && balloon.Total(held) != asked-m.Spanned {
			t.Errorf("the kernel is asked for %d bytes with %v reserved behind the end", asked, held)
		}
		return err
	}
	got, err := v.Extend(t.Context(), m.Inodes.FirstBytes)
	if err != nil || asked != m.Spanned+m.Inodes.FirstBytes || got.GivenBack != m.GivenBack || got.GivenBack < 15<<20 {
		t.Errorf("%+v, %v, asked for %d bytes, want %d more than %+v", got, err, asked, m.Inodes.FirstBytes, m)
	}
}

func TestExtendRefusals(t *testing.T) {
	v := newVolume(t, 512<<20, 128<<20)
	m, err := v.Measure()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		n    int64
		want error
	}{
		"nothing":   {4095, nil},
		"no_room":   {m.MaxReserved - m.Reserved + 64<<20, ErrNoRoom},
		"too_large": {m.Apparent, ErrTooLarge},
	} {
		if got, err := v.Extend(t.Context(), c.n); !errors.Is(err, c.want) || got.Reserved != m.Reserved || got.Spanned != m.Spanned {
			t.Errorf("%s: %+v, %v, want %v", name, got, err, c.want)
		}
	}
	run(t, "mount", "-o", "remount,ro", v.root.Name())
	if _, err := v.Extend(t.Context(), 8<<20); !errors.Is(err, ErrReadOnly) {
		t.Errorf("read-only: %v, want %v", err, ErrReadOnly)
	}
}

func TestInodesOf(t *testing.T) {
	const group = 128 << 20
	sb := ext4.Superblock{BlockSize: 4096, GroupBlocks: 32768, GroupInodes: 8192}
	for spanned, first := range map[uint64]int64{64 << 20: 72 << 20, group: leastGroup, group + 4096: group + leastGroup - 4096} {
		sb.Blocks = spanned / 4096
		want := Inodes{All: 7, Free: 3, PerGroup: 8192, GroupBytes: group, FirstBytes: first, RestBytes: first - leastGroup}
		if got := inodesOf(sb, 7, 3); got != want {
			t.Errorf("%d bytes: %+v, want %+v", spanned, got, want)
		}
	}
	if got := inodesOf(ext4.Superblock{BlockSize: 4096, Blocks: 1}, 7, 3); got != (Inodes{}) {
		t.Errorf("without groups: %+v", got)
	}
}
