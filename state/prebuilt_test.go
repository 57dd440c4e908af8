package state

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state/layout"
	"sealroot/state/luks2"
)

// headerWith is a header of a volume with this token; "" for none.
func headerWith(t *testing.T, uuid, token string) *luks2.Header {
	t.Helper()
	key := make([]byte, 64)
	h, err := luks2.Format(luks2.FormatParams{UUID: uuid, VolumeKey: key, SectorSize: BlockSize, Rand: rand.Reader})
	if err == nil && token != "" {
		h, err = h.AddToken(0, []byte(token))
	}
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestPrebuiltOf(t *testing.T) {
	good, err := Prebuilt{Reserved: 300 << 20}.Token()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, token string
		want        *Prebuilt
	}{
		{"none", "", nil},
		{"another", `{"type":"systemd-recovery","keyslots":[]}`, nil},
		{"good", string(good), &Prebuilt{300 << 20}},
		{"without_a_size", `{"type":"sealroot-prebuilt","keyslots":[]}`, &Prebuilt{}},
		{"negative", `{"type":"sealroot-prebuilt","keyslots":[],"reserved":"-5"}`, &Prebuilt{}},
		{"no_number", `{"type":"sealroot-prebuilt","keyslots":[],"reserved":[1]}`, &Prebuilt{}},
		{"too_large", `{"type":"sealroot-prebuilt","keyslots":[],"reserved":"9999999999999999999"}`, &Prebuilt{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := PrebuiltOf(headerWith(t, oldUUID, tt.token))
			if (got == nil) != (tt.want == nil) || got != nil && *got != *tt.want {
				t.Errorf("PrebuiltOf() = %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestSizesFor(t *testing.T) {
	const free = 1 << 30
	for want, reserved := range map[int64]int64{0: free / 2, 200 << 20: 200 << 20, 1: 128 << 20, 700<<20 + 1: 700 << 20, 1 << 62: free - layout.KeepFree} {
		s, err := SizesFor(Ext4, free, want)
		if err != nil || s.Reserved != reserved || s.Apparent != minApparent {
			t.Errorf("SizesFor(%d) = %+v, %v, want %d reserved", want, s, err, reserved)
		}
	}
	if _, err := SizesFor(Ext4, 128<<20, 1<<40); !errors.Is(err, ErrNoRoom) {
		t.Errorf("without room: %v, want ErrNoRoom", err)
	}
}

const (
	oldUUID = "11111111-2222-4333-8444-aaaaaaaaaaaa"
	newUUID = "11111111-2222-4333-8444-bbbbbbbbbbbb"
)

// putImage writes a volume of 64 MiB.
func putImage(t *testing.T, dir *os.File, h *luks2.Header) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir.Name(), ImageName))
	if err == nil {
		err = f.Truncate(64 << 20)
	}
	if err == nil {
		err = Reserve(f, 0, 64<<20)
	}
	if err == nil {
		_, err = luks2.WriteNew(f, h, rand.Reader)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// volumeOf returns what encrypted.img is.
func volumeOf(t *testing.T, dir *os.File) *luks2.Header {
	t.Helper()
	f, err := openImage(dir, unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h, err := luks2.Read(f, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// The power goes off between the steps by which a prebuilt volume is replaced: it is
// there and prebuilt, or the new one is; and the next boot comes to the new one.
func TestPowerCutWhileReplacing(t *testing.T) {
	token, err := Prebuilt{Reserved: 64 << 20}.Token()
	if err != nil {
		t.Fatal(err)
	}
	var image *os.File // of the boot
	fresh := func(dir *os.File) (err error) {
		if image, err = unnamed(dir); err != nil {
			return err
		}
		t.Cleanup(func() { image.Close() })
		if err := image.Truncate(64 << 20); err != nil {
			return err
		}
		_, err = luks2.WriteNew(image, headerWith(t, newUUID, ""), rand.Reader)
		return err
	}
	steps := []func(dir *os.File) error{
		emptyPrebuilt,
		fresh,
		func(dir *os.File) error { return give(image, dir, layout.NewImage) },
		func(dir *os.File) error {
			return os.Rename(filepath.Join(dir.Name(), layout.NewImage), filepath.Join(dir.Name(), ImageName))
		},
	}
	for cut := range len(steps) + 1 {
		dir, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		putImage(t, dir, headerWith(t, oldUUID, string(token)))
		if err := os.WriteFile(filepath.Join(dir.Name(), EscrowName), []byte("key of the image"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, step := range steps[:cut] {
			if err := step(dir); err != nil {
				t.Fatal(err)
			}
		}
		h := volumeOf(t, dir)
		done := h.UUID() == newUUID
		if done != (cut == len(steps)) || (PrebuiltOf(h) == nil) != done {
			t.Fatalf("cut after %d steps: volume %s, prebuilt %v", cut, h.UUID(), PrebuiltOf(h))
		}
		if done {
			continue
		}
		// The next boot.
		err = emptyPrebuilt(dir)
		if err == nil {
			err = fresh(dir)
		}
		if err == nil {
			err = giveImage(image, dir, true)
		}
		if h = volumeOf(t, dir); err != nil || h.UUID() != newUUID {
			t.Errorf("cut after %d steps: the next boot has %s, %v", cut, h.UUID(), err)
		}
		names, err := os.ReadDir(dir.Name())
		if err != nil || len(names) != 1 {
			t.Errorf("cut after %d steps: the next boot leaves %v, %v", cut, names, err)
		}
	}
}

// A machine's own volume is never emptied, whatever it is called for.
func TestOwnVolumeIsNotReplaced(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	putImage(t, dir, headerWith(t, oldUUID, ""))
	held := func() int64 {
		f, err := openImage(dir, unix.O_RDONLY)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		n, err := allocated(f)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	_, err = Create(dir, nil, CreateParams{Replaces: &Prebuilt{}})
	if !errors.Is(err, fs.ErrExist) || held() < 64<<20 {
		t.Errorf("Create() = %v, want fs.ErrExist; %d bytes are left", err, held())
	}
	// Control: a prebuilt one has given its room back.
	putImage(t, dir, headerWith(t, oldUUID, `{"type":"sealroot-prebuilt","keyslots":[]}`))
	if err := emptyPrebuilt(dir); err != nil || held() >= 48<<20 {
		t.Errorf("control: emptyPrebuilt() = %v, %d bytes are left", err, held())
	}
}

// PID 1 adds no partition in which the volume would then find no room.
func TestLeastPartition(t *testing.T) {
	for _, tt := range []struct {
		outer, inner Filesystem
		want         int64
	}{
		{Ext4, Ext4, 256}, {Ext4, Btrfs, 334}, {Btrfs, Ext4, 512}, {Btrfs, Btrfs, 512}, {Ext4, "", 256},
	} {
		if got := tt.outer.LeastPartition(tt.inner) >> 20; got != tt.want {
			t.Errorf("%s in %s: %d MiB, want %d", tt.inner, tt.outer, got, tt.want)
		}
	}
}
