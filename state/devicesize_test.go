package state

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/ext4"
	"sealroot/state/luks2"
)

func TestDeviceSize(t *testing.T) {
	const mib = 1 << 20
	for _, tt := range []struct {
		device    DeviceSize
		size, end int64
		sure      bool
		want      int64
	}{
		{Classic, 100 * mib, 80 * mib, true, 80 * mib},
		{Classic, 80 * mib, 80 * mib, true, 80 * mib},
		{Classic, 60 * mib, 80 * mib, true, 80 * mib},
		{Classic, 60 * mib, 80 * mib, false, 80 * mib},
		{Classic, 100 * mib, 80 * mib, false, 100 * mib},
		{Oversized, 100 * mib, 80 * mib, true, 100 * mib},
		{"", 100 * mib, 80 * mib, true, 100 * mib},
	} {
		if got := tt.device.end(tt.size, tt.end, tt.sure); got != tt.want {
			t.Errorf("%q.end(%d, %d, %v) = %d, want %d", tt.device, tt.size, tt.end, tt.sure, got, tt.want)
		}
	}
	for device, want := range map[DeviceSize]int64{Classic: 100 * mib, Oversized: minApparent, "": minApparent} {
		if got := device.apparent(100 * mib); got != want {
			t.Errorf("%q.apparent() = %d, want %d", device, got, want)
		}
	}
}

// cutDevices note what is made and removed, and how long the file is then.
type cutDevices struct {
	inside string // file in place of the decrypted device
	image  string
	steps  []string
	stuck  error // what removing the crypt device says
}

func (c *cutDevices) note(step string) {
	size := int64(-1)
	if info, err := os.Stat(c.image); err == nil {
		size = info.Size()
	}
	c.steps = append(c.steps, fmt.Sprint(step, " ", size>>20))
}

type cutDevice struct {
	*os.File
	size   int64
	remove func() error
}

func (d cutDevice) Path() string   { return d.Name() }
func (d cutDevice) Number() string { return "7:0" }
func (d cutDevice) Size() int64    { return d.size }
func (d cutDevice) Remove() error  { return errors.Join(d.Close(), d.remove()) }

func (c *cutDevices) device(path string, size int64, name string, err error) (Device, error) {
	c.note(name)
	f, ferr := os.OpenFile(path, os.O_RDWR, 0)
	return cutDevice{f, size, func() error { c.note("-" + name); return err }}, ferr
}

func (c *cutDevices) Loop(img *os.File) (Device, error) {
	info, err := img.Stat()
	if err != nil {
		return nil, err
	}
	return c.device(c.image, info.Size(), "loop", nil)
}

func (c *cutDevices) Crypt(_ string, target luks2.CryptTarget, _ Device, _ []byte) (Device, error) {
	return c.device(c.inside, int64(target.LengthBytes), "crypt", c.stuck)
}

// A file that is longer than its file system is cut with state.device classic, once
// nothing uses it; where a journal may know of more, or the superblock had to be mended,
// it stays as it is. One that is shorter is made longer, if its file system can ever have
// been on this partition. An oversized one is stepped up again.
func TestOpenWithDeviceSize(t *testing.T) {
	const (
		begin = 16
		small = begin + ext4.TemplateBytes>>20 // MiB, where the file system ends
		long  = 128
	)
	recover := func(t *testing.T, f *os.File) { // s_feature_incompat, EXT4_FEATURE_INCOMPAT_RECOVER
		edit(t, f, 0x60, func(b []byte) { b[0] |= 4 })
	}
	short := func(t *testing.T, path string) { // it was cut while another program made the file system larger
		if err := os.Truncate(path, (small-8)<<20); err != nil {
			t.Fatal(err)
		}
	}
	full := func(t *testing.T, path string) {
		short(t, path)
		where := filepath.Dir(path)
		b, err := os.ReadFile(path)
		if err == nil {
			err = unix.Mount("tmpfs", where, "tmpfs", 0, fmt.Sprintf("size=%dM", small+8))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(where, 0); err != nil {
				t.Error(err)
			}
		})
		err = errors.Join(os.WriteFile(path, b[:16<<20], 0o600), os.Truncate(path, (small-8)<<20),
			os.WriteFile(filepath.Join(where, "other"), make([]byte, 32<<20), 0o600))
		if err != nil {
			t.Fatal(err)
		}
	}
	far := func(t *testing.T, f *os.File) { // s_blocks_count_hi: more than any disk here
		edit(t, f, 0x150, func(b []byte) { b[0] = 1 })
	}
	longer := []string{
		fmt.Sprint("loop ", small-8), fmt.Sprint("crypt ", small-8), fmt.Sprint("-crypt ", small-8), fmt.Sprint("-loop ", small-8),
		fmt.Sprint("loop ", small), fmt.Sprint("crypt ", small),
	}
	behind := func(t *testing.T, path string) { // a growing was cut before the file was longer
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err == nil {
			err = errors.Join(f.Truncate(small<<20), Reserve(f, 0, (small+64)<<20), f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	large := func(mib int64) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.Truncate(path, mib<<20); err != nil {
				t.Fatal(err)
			}
		}
	}
	made := []string{fmt.Sprint("loop ", long), fmt.Sprint("crypt ", long)}
	removed := []string{fmt.Sprint("-crypt ", long), fmt.Sprint("-loop ", long)}
	stepped := fmt.Sprint(minApparent >> 20)
	for name, tt := range map[string]struct {
		device DeviceSize
		change func(t *testing.T, inside *os.File)
		image  func(t *testing.T, path string)
		stuck  error
		steps  []string
		// readOnly is what Volume.ReadOnly is.
		readOnly error
		want     int64 // MiB
		err      error
	}{
		"cut":                 {device: Classic, want: small, steps: slices.Concat(made, removed, []string{fmt.Sprint("loop ", small), fmt.Sprint("crypt ", small)})},
		"journal":             {device: Classic, want: long, change: recover, steps: made},
		"torn":                {device: Classic, want: long, change: func(t *testing.T, f *os.File) { edit(t, f, 900, nil) }, steps: made},
		"stuck":               {device: Classic, want: long, stuck: errRecorded, err: ErrMapped, steps: slices.Concat(made, removed)},
		"behind":              {device: Classic, want: small, image: behind, steps: []string{fmt.Sprint("loop ", small), fmt.Sprint("crypt ", small)}},
		"short":               {device: Classic, want: small, image: short, steps: longer},
		"no_room":             {device: Classic, want: small, image: full, steps: longer, readOnly: ErrNoRoom},
		"far":                 {device: Classic, want: small - 8, image: short, change: far, err: ErrDamaged, steps: longer[:4]},
		"oversized":           {device: Oversized, want: minApparent >> 20, steps: []string{"loop " + stepped, "crypt " + stepped}},
		"was_large":           {device: Oversized, image: large(64 << 10), want: minApparent >> 20, steps: []string{"loop 65536", "crypt 65536", "-crypt 65536", "-loop 65536", "loop " + stepped, "crypt " + stepped}},
		"was_not_much_larger": {device: Oversized, image: large(17 << 10), want: 17 << 10, steps: []string{"loop 17408", "crypt 17408"}},
		"was_large_journal":   {device: Oversized, image: large(64 << 10), change: recover, want: 64 << 10, steps: []string{"loop 65536", "crypt 65536"}},
	} {
		t.Run(name, func(t *testing.T) {
			where := t.TempDir()
			imageIn(t, where)
			c := &cutDevices{inside: filepath.Join(t.TempDir(), "inside"), image: filepath.Join(where, ImageName), stuck: tt.stuck}
			inside, err := os.Create(c.inside)
			if err != nil {
				t.Fatal(err)
			}
			defer inside.Close()
			if err := errors.Join(inside.Truncate(112<<20), WriteFilesystem(inside, Ext4, rand.Reader)); err != nil {
				t.Fatal(err)
			}
			if tt.change != nil {
				tt.change(t, inside)
			}
			if tt.image != nil {
				tt.image(t, c.image)
			}
			dir, err := os.Open(where)
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			v, err := Open(dir, c, tt.device, func(l *LockedVolume) ([]byte, error) { return l.Header.Unlock(0, []byte("pw")) })
			info, serr := os.Stat(c.image)
			if !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) || serr != nil || info.Size() != tt.want<<20 || !slices.Equal(c.steps, tt.steps) {
				t.Fatalf("Open: %v, %v, %d bytes, %q; want %v, %d MiB, %q", err, serr, info.Size(), c.steps, tt.err, tt.want, tt.steps)
			}
			if err != nil {
				return
			}
			defer v.Close()
			if !errors.Is(v.ReadOnly, tt.readOnly) || v.ReadOnly != nil && tt.readOnly == nil {
				t.Errorf("read-only: %v, want %v", v.ReadOnly, tt.readOnly)
			}
			// It is checked until it was: by this boot, or one that has room to write to it.
			want := len(tt.steps) == len(longer) && tt.steps[0] == longer[0]
			if sb, err := ext4.ReadSuperblock(inside); v.Superblock.Errors != want || err != nil || sb.Errors != want {
				t.Errorf("to be checked: %v, later %v, %v, want %v", v.Superblock.Errors, sb.Errors, err, want)
			}
			if tt.readOnly != nil {
				return
			}
			there, err := files.Reserved(v.image, 0, tt.want<<20)
			if tt.change == nil && (err != nil || balloon.Total(there) != small<<20) {
				t.Errorf("%v are reserved, want %d MiB: %v", there, small, err)
			}
			if n, err := allocated(v.image); tt.change == nil && (err != nil || n > small<<20+1<<20) {
				t.Errorf("%d bytes are reserved, want %d: %v", n, small<<20, err)
			}
			if err := v.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// edit changes a field of the superblock, with its checksum; nil tears it.
func edit(t *testing.T, f *os.File, at int64, change func(b []byte)) {
	t.Helper()
	b := make([]byte, 1024)
	if _, err := f.ReadAt(b, 1024); err != nil {
		t.Fatal(err)
	}
	if change == nil {
		b[at]++
	} else {
		change(b[at:])
		binary.LittleEndian.PutUint32(b[0x3fc:], ^crc32.Checksum(b[:0x3fc], crc32.MakeTable(crc32.Castagnoli)))
	}
	if _, err := f.WriteAt(b, 1024); err != nil {
		t.Fatal(err)
	}
}
