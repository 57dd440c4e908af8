package resize

import (
	"bytes"
	"crypto/aes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/xts"
	"golang.org/x/sys/unix"

	"sealroot/mount/blockdev"
	"sealroot/mount/loop"
	"sealroot/state"
	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/luks2"
)

var errCut = errors.New("the power is off")

// cutDevices are the devices of a volume without dm-crypt: a loop device over the image
// that ends where the file ended when it was told to follow it, and before that where the
// crypt device would. Each step is one more place to cut the power at, before it or behind.
type cutDevices struct {
	t     *testing.T
	v     *Volume
	path  string // of the loop device, behind the offset
	end   int64  // of the crypt device, in the image
	loop  int64  // of the loop device below it
	steps []string
	cut   int // before step cut/2, or behind it; -1: never
	key   []byte
	bad   bool // the key is not that of the device
}

// step notes what is about to be done, and does it unless the power is off.
func (c *cutDevices) step(name string, do func() error) error {
	n := len(c.steps)
	if c.cut >= 0 && n > c.cut/2 || c.cut == 2*n {
		c.steps = append(c.steps, "off")
		return errCut
	}
	c.steps = append(c.steps, name)
	err := do()
	c.invariant(name)
	if err == nil && c.cut == 2*n+1 {
		return errCut
	}
	return err
}

// invariant holds at every moment: what is in use is never longer than what it is on.
func (c *cutDevices) invariant(after string) {
	c.t.Helper()
	info, err := c.v.image.Stat()
	if err != nil {
		c.t.Fatal(err)
	}
	spanned, err := c.v.in.spanned(false)
	if err != nil {
		c.t.Fatal(err)
	}
	if end := c.v.begin + spanned; end > c.end || c.end > max(c.loop, info.Size()) || end > info.Size() {
		c.t.Errorf("after %s in %q: the file system ends at %d, the crypt device at %d, the loop device at %d, the file at %d", after, c.steps, end, c.end, c.loop, info.Size())
	}
}

func (c *cutDevices) size() (int64, error) { return c.end - c.v.begin, nil }

func (c *cutDevices) prove(_ luks2.CryptTarget, key []byte) error {
	if c.bad {
		return ErrWrongKey
	}
	return nil
}

func (c *cutDevices) recrypt(target luks2.CryptTarget, key []byte) error {
	if !bytes.Equal(key, c.key) {
		c.t.Errorf("the crypt device gets another key")
	}
	return c.step("crypt", func() error {
		if end := int64(target.OffsetBytes + target.LengthBytes); end <= c.loop {
			c.end = end
			return nil
		}
		return unix.EINVAL
	})
}

func (c *cutDevices) followFile() error {
	return c.step("loop", func() error {
		info, err := c.v.image.Stat()
		c.loop = info.Size()
		return errors.Join(err, loop.FollowFile(c.path))
	})
}

// classicVolume is a volume whose devices are as long as its file system, and a file on
// it. The passphrase of its header is pw.
func classicVolume(t *testing.T, kind state.Filesystem, inside int64) (*Volume, *cutDevices, map[string][32]byte) {
	t.Helper()
	v := newVolumeOf(t, kind, 3<<30, inside)
	c := &cutDevices{t: t, v: v, path: v.devices.(kernelDevices).path, end: testBegin + inside, loop: testBegin + inside, cut: -1, key: make([]byte, 64)}
	rand.Read(c.key) // never fails
	h, err := luks2.Format(luks2.FormatParams{UUID: testUUID, VolumeKey: c.key, SectorSize: state.BlockSize, Rand: rand.Reader})
	if err == nil {
		h, err = h.AddKeyslot(0, c.key, []byte("pw"), luks2.RandomSecretKDF(), rand.Reader)
	}
	if err == nil {
		_, err = luks2.WriteNew(v.image, h, rand.Reader)
	}
	if err := errors.Join(err, v.image.Truncate(testBegin+inside), loop.FollowFile(c.path)); err != nil {
		t.Fatal(err)
	}
	v.classic, v.devices = true, c
	v.key = func(h *luks2.Header) ([]byte, error) { return h.Unlock(0, []byte("pw")) }
	return v, c, map[string][32]byte{"file": put(t, v, "file", 5<<20)}
}

// exact fails unless file and devices end where the file system does.
func exact(t *testing.T, v *Volume, c *cutDevices) Sizes {
	t.Helper()
	s, err := v.Measure()
	if err != nil {
		t.Fatal(err)
	}
	d, err := blockdev.Open(c.path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if end := s.DataOffset + s.Spanned; s.Apparent != end || c.end != end || c.loop != end || d.Size() != s.Spanned || s.Device != end {
		t.Errorf("the file system ends at %d, the file at %d, the crypt device at %d, the loop device at %d: %+v", end, s.Apparent, c.end, c.loop, s)
	}
	return s
}

// With state.device classic file and devices follow the file system, in an order in
// which none is ever shorter than what it carries.
func TestClassicBtrfs(t *testing.T) {
	v, c, sums := classicVolume(t, state.Btrfs, 512<<20)
	first := exact(t, v, c)
	if !first.Classic || first.MaxReserved <= first.Apparent {
		t.Errorf("Measure = %+v", first)
	}
	for _, tt := range []struct {
		want  int64
		steps string
	}{{first.Reserved + 300<<20, "loop crypt"}, {first.Reserved, "crypt loop"}} {
		c.steps = nil
		if got, err := v.Resize(t.Context(), tt.want); err != nil || got.Reserved != tt.want {
			t.Errorf("to %d: %+v, %v", tt.want, got, err)
		}
		exact(t, v, c)
		if got := strings.Join(c.steps, " "); !strings.HasPrefix(got, tt.steps) {
			t.Errorf("to %d in steps %q, want %s", tt.want, got, tt.steps)
		}
	}
	stop := writer(t, v)
	random := mathrand.New(mathrand.NewPCG(7, 7))
	for i := range 12 {
		m, err := v.Measure()
		if err != nil {
			t.Fatal(err)
		}
		from := min(m.MinReserved+64<<20, m.Reserved)
		want := from + random.Int64N(2<<30-from)
		if _, err := v.Resize(t.Context(), want); err != nil && !errors.Is(err, ErrTooSmall) {
			t.Fatalf("step %d to %d of %+v: %v", i, want, m, err)
		}
		backed(t, v)
		exact(t, v, c)
	}
	for name, sum := range stop() {
		sums[name] = sum
	}
	check(t, v, sums)
}

// ext4 gives back within its size, which leaves the devices alone. A container may not
// make it larger (CAP_SYS_RESOURCE): that is refused, and all is as it was.
func TestClassicExt4(t *testing.T) {
	v, c, sums := classicVolume(t, state.Ext4, 512<<20)
	first := exact(t, v, c)
	v.in.(*ext4FS).resize = func(_ int, blocks uint64) error {
		if end := testBegin + int64(blocks)*state.BlockSize; end != first.Reserved+64<<20 || c.end != end {
			t.Errorf("the kernel is asked for %d blocks on a device that ends at %d", blocks, c.end)
		}
		return unix.EPERM
	}
	if got, err := v.Resize(t.Context(), first.Reserved+64<<20); !errors.Is(err, unix.EPERM) || got.Reserved != first.Reserved {
		t.Errorf("larger: %+v, %v", got, err)
	}
	exact(t, v, c)
	c.steps = nil
	got, err := v.Resize(t.Context(), first.Reserved-300<<20)
	if err != nil || got.Reserved > first.Reserved-299<<20 {
		t.Errorf("smaller: %+v, %v", got, err)
	}
	if got, err = v.Resize(t.Context(), first.Reserved); err != nil || got.Reserved != first.Reserved || len(c.steps) != 0 {
		t.Errorf("as before: %+v, %v, in steps %q", got, err, c.steps)
	}
	exact(t, v, c)
	check(t, v, sums)
}

// What was reserved to grow into, behind the end of the file, comes back where the growing
// does not: ext4 outside makes no hole there.
func TestClassicBehindTheEnd(t *testing.T) {
	v, c, _ := classicVolume(t, state.Ext4, 512<<20)
	first := exact(t, v, c)
	end := first.Apparent
	blocks := func() int64 {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Fstat(int(v.image.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	before := blocks()
	key := v.key
	for name, change := range map[string]func() error{
		"no room": func() error {
			err := v.larger(t.Context(), measured{Sizes: first}, first.OuterTotal)
			if !errors.Is(err, ErrNoRoom) {
				return fmt.Errorf("%v, want %w", err, ErrNoRoom)
			}
			return nil
		},
		"not longer": func() error {
			_, err := v.reserve([]balloon.Range{{Start: end, End: end + 64<<20}})
			if n := blocks(); n < before+64<<20 {
				t.Errorf("%d bytes are reserved after %d", n, before)
			}
			return errors.Join(err, v.trim(first.Spanned, end+64<<20))
		},
		"no key": func() error {
			_, err := v.reserve([]balloon.Range{{Start: end, End: end + 64<<20}})
			v.key = nil
			return errors.Join(err, v.trim(first.Spanned, end+64<<20))
		},
		"cut": func() error {
			_, err := v.reserve([]balloon.Range{{Start: end, End: end + 64<<20}})
			return errors.Join(err, v.fit())
		},
	} {
		if err := change(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n := blocks(); n > before+1<<20 {
			t.Errorf("%s: %d bytes are reserved, %d before", name, n, before)
			if err := v.image.Truncate(end); err != nil {
				t.Fatal(err)
			}
		}
		v.key = key
		exact(t, v, c)
	}
}

// While another program makes the file system larger nothing is cut: the kernel has asked
// for the end of the device before, and goes on.
func TestClassicBusy(t *testing.T) {
	v, c, _ := classicVolume(t, state.Ext4, 512<<20)
	first := exact(t, v, c)
	resize := v.in.(*ext4FS).resize
	v.in.(*ext4FS).resize = func(int, uint64) error { return unix.EBUSY }
	if s, err := v.Resize(t.Context(), first.Reserved+64<<20); !errors.Is(err, unix.EBUSY) || s.Device != first.Device+64<<20 || s.Apparent != s.Device {
		t.Errorf("Resize = %+v, %v after %q; was %+v", s, err, c.steps, first)
	}
	// The next one cuts it.
	v.in.(*ext4FS).resize = resize
	if s, err := v.Resize(t.Context(), first.Reserved); err != nil || s.Reserved != first.Reserved {
		t.Errorf("Resize = %+v, %v", s, err)
	}
	exact(t, v, c)
}

// Without the key, or with another one, nothing is changed, but what needs none.
func TestClassicKey(t *testing.T) {
	for _, kind := range []state.Filesystem{state.Ext4, state.Btrfs} {
		v, c, _ := classicVolume(t, kind, 512<<20)
		first := exact(t, v, c)
		errAsked := errors.New("asked")
		for name, tt := range map[string]struct {
			change func()
			want   error
		}{
			"none":      {func() { v.key = nil }, ErrNoKey},
			"refused":   {func() { v.key = func(*luks2.Header) ([]byte, error) { return nil, errAsked } }, errAsked},
			"of_others": {func() { v.key = func(*luks2.Header) ([]byte, error) { return make([]byte, 64), nil } }, ErrWrongKey},
			"exchanged": {func() { c.bad = true }, ErrWrongKey},
			"of_another_length": {func() {
				editHeader(t, v.image, `"dynamic"`, fmt.Sprintf(`"%d"`, 512<<20))
			}, ErrWrongKey},
		} {
			tt.change()
			got, err := v.Resize(t.Context(), first.Reserved+64<<20)
			if !errors.Is(err, tt.want) || got.Reserved != first.Reserved || len(c.steps) != 0 {
				t.Errorf("%s, %s: %+v, %v after %q, want %v", kind, name, got, err, c.steps, tt.want)
			}
			exact(t, v, c)
			c.bad = false
			editHeader(t, v.image, fmt.Sprintf(`"%d"`, 512<<20), `"dynamic"`)
			v.key = func(h *luks2.Header) ([]byte, error) { return h.Unlock(0, []byte("pw")) }
		}
		v.key = nil
		m, err := v.Resize(t.Context(), first.Reserved-64<<20)
		if kind == state.Btrfs {
			if !errors.Is(err, ErrNoKey) || m.Reserved != first.Reserved {
				t.Errorf("btrfs smaller without a key: %+v, %v", m, err)
			}
			continue
		}
		if back, err2 := v.Resize(t.Context(), first.Reserved); err != nil || err2 != nil || m.Reserved >= first.Reserved || back.Reserved != first.Reserved {
			t.Errorf("given back without a key %+v, %v; taken back %+v, %v", m, err, back, err2)
		}
	}
}

// editHeader changes text in both copies of a LUKS2 header, as anybody can: no key is
// needed (LUKS2 On-Disk Format Specification, 2.1).
func editHeader(t *testing.T, f *os.File, old, text string) {
	t.Helper()
	const csumAt, csumEnd, jsonAt = 448, 512, 4096
	first := make([]byte, jsonAt)
	if _, err := f.ReadAt(first, 0); err != nil {
		t.Fatal(err)
	}
	size := int64(binary.BigEndian.Uint64(first[8:]))
	for _, at := range []int64{0, size} {
		b := make([]byte, size)
		if _, err := f.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		json, _, _ := bytes.Cut(b[jsonAt:], []byte{0})
		json = bytes.ReplaceAll(json, []byte(old), []byte(text))
		clear(b[jsonAt:])
		copy(b[jsonAt:], json)
		clear(b[csumAt:csumEnd])
		sum := sha256.Sum256(b)
		copy(b[csumAt:], sum[:])
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNeedsKey(t *testing.T) {
	s := Sizes{Reserved: 100, GivenBack: 20, MinReserved: 50, MaxReserved: 200}
	for _, tt := range []struct {
		classic    bool
		filesystem string
		reserved   int64
		want       bool
	}{
		{false, "ext4", 200, false}, {false, "btrfs", Smallest, false},
		{true, "ext4", 120, false}, {true, "ext4", 121, true}, {true, "ext4", 60, false}, {true, "ext4", Smallest, false}, {true, "ext4", Largest, true},
		{true, "btrfs", 100, false}, {true, "btrfs", 101, true}, {true, "btrfs", 99, true}, {true, "btrfs", Smallest, true}, {true, "btrfs", Largest, true},
	} {
		s.Classic, s.Filesystem = tt.classic, tt.filesystem
		if got := s.NeedsKey(tt.reserved); got != tt.want {
			t.Errorf("%v, %s: NeedsKey(%d) = %v", tt.classic, tt.filesystem, tt.reserved, got)
		}
	}
}

// The power goes off at each step of growing and of shrinking. What is left is opened as
// a boot does it: nothing is lost, and file and devices end where the file system ends.
func TestClassicCuts(t *testing.T) {
	for _, kind := range []state.Filesystem{state.Ext4, state.Btrfs} {
		for name, by := range map[string]int64{"larger": 200 << 20, "smaller": -128 << 20} {
			if kind == state.Ext4 && by < 0 {
				continue // its devices stay
			}
			cuts := 0
			// A container may not make ext4 larger: there the third step is never done.
			for ended := false; !ended && (kind == state.Btrfs || cuts < 5); cuts++ {
				t.Run(fmt.Sprint(kind, "_", name, "_", cuts), func(t *testing.T) {
					v, c, sums := classicVolume(t, kind, 512<<20)
					c.cut = cuts
					m, err := v.Measure()
					if err != nil {
						t.Fatal(err)
					}
					// The file system's own step counts, too.
					switch in := v.in.(type) {
					case *ext4FS:
						in.resize = func(int, uint64) error { return c.step("fs", func() error { return nil }) }
					case *btrfsFS:
						resize := in.resize
						in.resize = func(fd int, device, size uint64) error {
							return c.step("fs", func() error { return resize(fd, device, size) })
						}
					}
					_, err = v.Resize(t.Context(), m.Reserved+by)
					ended = err == nil
					if err != nil && !errors.Is(err, errCut) {
						t.Fatal(err)
					}
					reopened(t, v, c, sums)
				})
				if cuts > 40 {
					t.Fatal("the resize has no end")
				}
			}
			if cuts < 5 {
				t.Errorf("%s, %s: %d places to cut at", kind, name, cuts)
			}
		}
	}
}

// reopened opens the volume as a boot does, with file and file system as they are now.
func reopened(t *testing.T, v *Volume, c *cutDevices, sums map[string][32]byte) {
	t.Helper()
	check(t, v, sums)
	run(t, "sync", "-f", v.root.Name())
	spanned, err := v.in.spanned(true)
	if err != nil {
		t.Fatal(err)
	}
	// The inner file system stays mounted: the boot has a copy of both.
	copied := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(copied, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, "fsfreeze", "-f", v.root.Name())
	run(t, "cp", "--sparse=always", filepath.Join(v.dir.Name(), state.ImageName), copied)
	run(t, "fsfreeze", "-u", v.root.Name())
	dir, err := os.Open(copied)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	opened, err := state.Open(dir, loopDevices{t}, state.Classic, func(l *state.LockedVolume) ([]byte, error) { return l.Header.Unlock(0, []byte("pw")) })
	if err != nil {
		t.Fatalf("after %q: %v", c.steps, err)
	}
	defer opened.Close()
	info, err := os.Stat(filepath.Join(copied, state.ImageName))
	if err != nil {
		t.Fatal(err)
	}
	d, err := blockdev.Open(opened.Device(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if opened.ReadOnly != nil || opened.Superblock.Bytes != spanned || info.Size() != testBegin+spanned || d.Size() != spanned || opened.Reserved != testBegin+spanned {
		t.Errorf("after %q: file of %d bytes, device of %d, file system of %d, want %d: %+v", c.steps, info.Size(), d.Size(), opened.Superblock.Bytes, spanned, opened)
	}
	image, err := os.Open(filepath.Join(copied, state.ImageName))
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	if there, err := files.Reserved(image, 0, info.Size()); err != nil || balloon.Total(there) != info.Size() {
		t.Errorf("after %q: %v are reserved of %d: %v", c.steps, there, info.Size(), err)
	}
	judge := []string{"btrfs", "check", "--readonly", opened.Device()}
	if opened.Superblock.Type == state.Ext4 {
		judge = []string{"e2fsck", "-fn", opened.Device()}
	}
	run(t, judge[0], judge[1:]...)
}

// loopDevices have a loop device in place of the crypt device.
type loopDevices struct{ t *testing.T }

type loopDevice struct {
	*blockdev.Device
	made loop.Device
}

func (d loopDevice) Path() string   { return d.made.Path }
func (d loopDevice) Number() string { return d.made.DevNo() }
func (d loopDevice) Remove() error  { return errors.Join(d.Device.Close(), d.made.Detach()) }

func (l loopDevices) attach(f *os.File, o loop.Options) (state.Device, error) {
	o.BlockSize = state.BlockSize
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return nil, err
	}
	o.ReadOnly = flags&unix.O_ACCMODE == unix.O_RDONLY
	made, err := loop.Attach(f, o)
	if err != nil {
		return nil, err
	}
	d, err := blockdev.Open(made.Path, !o.ReadOnly)
	return loopDevice{d, made}, err
}

func (l loopDevices) Loop(img *os.File) (state.Device, error) { return l.attach(img, loop.Options{}) }

func (l loopDevices) Crypt(_ string, target luks2.CryptTarget, on state.Device, _ []byte) (state.Device, error) {
	f, err := os.OpenFile(on.Path(), os.O_RDWR, 0)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) { // as on is
		f, err = os.Open(on.Path())
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return l.attach(f, loop.Options{Offset: target.OffsetBytes, SizeLimit: target.LengthBytes})
}

// A key is proved by what the devices read, and not by the header.
func TestProve(t *testing.T) {
	dir := t.TempDir()
	key, other := make([]byte, 64), make([]byte, 64)
	rand.Read(key)   // never fails
	rand.Read(other) // never fails
	plain := make([]byte, balloon.BlockSize)
	rand.Read(plain) // never fails
	c, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		t.Fatal(err)
	}
	hidden := make([]byte, balloon.BlockSize)
	c.Encrypt(hidden, plain, proofAt/512)
	image, err1 := os.Create(filepath.Join(dir, "image"))
	inside, err2 := os.Create(filepath.Join(dir, "inside"))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	defer inside.Close()
	_, err1 = image.WriteAt(hidden, testBegin+proofAt)
	_, err2 = inside.WriteAt(plain, proofAt)
	if err := errors.Join(err1, err2, image.Truncate(testBegin+1<<20), image.Sync(), inside.Sync()); err != nil {
		t.Fatal(err)
	}
	d, err := loop.Attach(image, loop.Options{BlockSize: balloon.BlockSize})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Detach()
	target := luks2.CryptTarget{UUID: testUUID, Encryption: luks2.Encryption, KeySize: len(key), SectorSize: balloon.BlockSize, OffsetBytes: testBegin, LengthBytes: 1 << 20}
	k := kernelDevices{crypt: crypt{path: inside.Name(), loop: d.DevNo(), begin: testBegin, encryption: target.Encryption, sectorSize: target.SectorSize}}
	if err := k.prove(target, key); err != nil {
		t.Error(err)
	}
	if err := k.prove(target, other); !errors.Is(err, ErrWrongKey) {
		t.Errorf("another key: %v, want %v", err, ErrWrongKey)
	}
	if err := k.prove(target, key[:3]); err == nil {
		t.Error("a key of 3 bytes is proved")
	}
	for name, change := range map[string]func(*luks2.CryptTarget){
		"sectors":   func(c *luks2.CryptTarget) { c.SectorSize = 512 },
		"cipher":    func(c *luks2.CryptTarget) { c.Encryption = "aes-cbc-plain64" },
		"beginning": func(c *luks2.CryptTarget) { c.OffsetBytes += balloon.BlockSize },
	} {
		changed := target
		if change(&changed); !errors.Is(k.prove(changed, key), ErrWrongKey) {
			t.Errorf("other %s: want %v", name, ErrWrongKey)
		}
	}
}
