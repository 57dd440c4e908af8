package judge

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/rand"
	"errors"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"golang.org/x/crypto/xts"

	"sealroot/qemu-tests/promises"
	"sealroot/state/balloon"
	"sealroot/state/luks2"
)

const (
	mib  = 1 << 20
	keep = 5
)

// tool runs a program that has to succeed.
func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

// within runs do on a mounted image.
func (v *volume) within(image string, do func(root string)) {
	v.t.Helper()
	dir := v.t.TempDir()
	// However slow the host is, btrfs ends no transaction by time alone.
	tool(v.t, "mount", "-o", "loop,nodiscard,commit=300", image, dir)
	defer tool(v.t, "umount", dir)
	do(dir)
}

// counted is a context that ends when it was asked so often: a Writer asks before each
// file.
type counted struct {
	context.Context
	left int
}

func (c *counted) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// volume is a state partition in the making: its inner file system as it is before
// encryption.
type volume struct {
	t     *testing.T
	of    Filesystem
	inner string
	key   []byte
	head  *luks2.Header
	told  int // promises
	// forgotten: holes are not in the record.
	forgotten bool
	beyond    int64 // bytes that are reserved behind its end
	short     int64 // bytes of its end that the file has not
	// outer is the type of the state partition; in btrfs the file is in a subvolume.
	outer Filesystem
}

// newVolume makes an inner file system with promises: ext4 of 96 MiB with a balloon of 32,
// or a btrfs of 128 MiB as a power cut leaves it, the promises in its log.
func newVolume(t *testing.T, of Filesystem) *volume {
	t.Helper()
	v := &volume{t: t, of: of, inner: filepath.Join(t.TempDir(), "inner"), key: make([]byte, 64)}
	rand.Read(v.key)
	h, err := luks2.Format(luks2.FormatParams{UUID: "5d1c2b3a-0000-4000-8000-000000000001", VolumeKey: v.key, Rand: rand.Reader})
	if err == nil {
		h, err = h.AddKeyslot(0, v.key, []byte("secret"), luks2.RandomSecretKDF(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	v.head = h
	cut := filepath.Join(t.TempDir(), "cut")
	if of == Btrfs {
		tool(t, "truncate", "-s", "128M", v.inner)
		tool(t, "mkfs.btrfs", "-q", "-K", v.inner)
	} else {
		tool(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0", v.inner, "96M")
	}
	v.within(v.inner, func(root string) {
		for _, dir := range []string{"files", "balloons"} {
			if err := os.Mkdir(filepath.Join(root, dir), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		tool(t, "sync", "-f", root)
		var err error
		const files = keep + 3
		w := promises.Writer{Dir: filepath.Join(root, "files"), Keep: keep, Most: mib, Rand: mathrand.New(mathrand.NewPCG(1, 2))}
		if v.told, err = w.Run(&counted{t.Context(), files}); err != nil || v.told != files {
			t.Fatalf("%d promised files, %v, want %d", v.told, err, files)
		}
		if of == Btrfs {
			tool(t, "cp", "--sparse=always", v.inner, cut)
			return
		}
		tool(t, "fallocate", "-l", "32M", filepath.Join(root, "balloons/1"))
	})
	if of == Btrfs {
		v.inner = cut
	}
	return v
}

// put makes the state partition: all that the inner file system spans is reserved,
// what was written encrypted, and then holes are punched into encrypted.img.
func (v *volume) put(holes ...piece) string {
	t := v.t
	t.Helper()
	state := filepath.Join(t.TempDir(), "state")
	place := ""
	if v.outer == Btrfs {
		place = subvolume
		tool(t, "truncate", "-s", "512M", state)
		tool(t, "mkfs.btrfs", "-q", "-K", state)
	} else {
		tool(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-E", "nodiscard", state, "256M")
	}
	cipher, err := xts.NewCipher(aes.NewCipher, v.key)
	if err != nil {
		t.Fatal(err)
	}
	written, err := extents(v.inner)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := os.ReadFile(v.inner)
	if err != nil {
		t.Fatal(err)
	}
	v.within(state, func(root string) {
		if place != "" {
			root = filepath.Join(root, place)
			tool(t, "btrfs", "subvolume", "create", root)
			tool(t, "chattr", "+C", root)
		}
		path := filepath.Join(root, "encrypted.img")
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		h, err := luks2.WriteNew(f, v.head, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		offset := int64(h.DataOffset())
		tool(t, "fallocate", "-l", strconv.FormatInt(offset+int64(len(plain))+v.beyond, 10), path)
		if err := f.Truncate(1 << 30); err != nil {
			t.Fatal(err)
		}
		for _, e := range written {
			b := bytes.Clone(plain[e.start:min(e.end, int64(len(plain)))])
			for i := 0; i < len(b); i += block {
				cipher.Encrypt(b[i:i+block], b[i:i+block], uint64(e.start+int64(i))/512)
			}
			if _, err := f.WriteAt(b, offset+e.start); err != nil {
				t.Fatal(err)
			}
		}
		record := balloon.Record{Serial: 1, Volume: h.UUID()}
		for _, p := range holes {
			if !v.forgotten {
				record.Given = append(record.Given, balloon.Range{Start: offset + p.start, End: offset + p.end})
			}
			tool(t, "fallocate", "-p", "-n", "-o", strconv.FormatInt(offset+p.start, 10), "-l", strconv.FormatInt(p.end-p.start, 10), path)
		}
		if v.short > 0 {
			if err := f.Truncate(offset + int64(len(plain)) - v.short); err != nil {
				t.Fatal(err)
			}
		}
		text, err := record.Encode()
		if err == nil {
			err = os.WriteFile(filepath.Join(root, "record"), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	return state
}

// balloon is where the volume's balloon is.
func (v *volume) balloon() (held set) {
	v.t.Helper()
	v.within(v.inner, func(root string) {
		list, err := balloons(filepath.Join(root, "balloons"))
		if err != nil {
			v.t.Fatal(err)
		}
		held = newSet(list)
	})
	if held.bytes() != 32*mib {
		v.t.Fatalf("the balloon holds %d bytes", held.bytes())
	}
	return held
}

// subvolume is where the volume is on a btrfs.
const subvolume = "sub"

func unlock(h *luks2.Header) ([]byte, error) { return h.Unlock(0, []byte("secret")) }

func (v *volume) judge(state string) (Verdict, error) {
	place := ""
	if v.outer == Btrfs {
		place = subvolume
	}
	return Case{
		State: state, Dir: v.t.TempDir(), Outer: v.outer, Inner: v.of, Place: place, Balloons: "balloons", Record: "record",
		Unlock: unlock,
		Files: func(root string) error {
			_, err := promises.Check(filepath.Join(root, "files"), keep, v.told)
			return err
		},
	}.Judge()
}

// Whatever is wrong turns the judge red, and what may be is green.
func TestJudge(t *testing.T) {
	v := newVolume(t, Ext4)
	held := v.balloon()
	rest := set{{0, 96 * mib}}.without(held)
	end := rest[len(rest)-1].end
	for _, tt := range []struct {
		name      string
		edit      func(root string) // the inner file system, after the balloon was looked at
		holes     set
		want      error
		forgotten bool
	}{
		{"nothing_given_back", nil, nil, nil, false},
		{"balloon_given_back", nil, held, nil, false},
		{"a_part_of_the_balloon", nil, set{{held[0].start, held[0].start + block}}, nil, false},
		{"balloon_given_back_and_forgotten", nil, held, ErrUnrecorded, true},
		{"a_block_beside_the_balloon", nil, set{{held[0].start - block, held[0].start}}, ErrUnbacked, false},
		{"the_balloon_unlinked_first", func(root string) { os.Remove(filepath.Join(root, "balloons/1")) }, held, ErrUnbacked, false},
		{"the_balloon_written_to", func(root string) {
			f, err := os.OpenFile(filepath.Join(root, "balloons/1"), os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt(make([]byte, block), 0)
				err = errors.Join(err, f.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
		}, held, ErrUnbacked, false},
		{"the_end_not_reserved", nil, set{{end - block, end}}, ErrUnbacked, false},
		{"a_promise_lost", breakPromise(t), nil, promises.ErrBroken, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := v.edited(t, tt.edit)
			c.forgotten = tt.forgotten
			got, err := c.judge(c.put(tt.holes...))
			if !errors.Is(err, tt.want) || tt.want == nil && got.Spanned != 96*mib {
				t.Errorf("Judge() = %+v, %v, want %v", got, err, tt.want)
			}
			if tt.want == nil && got.Balloons-got.Double != tt.holes.bytes() {
				t.Errorf("%+v: %d bytes of holes, want %d", got, got.Balloons-got.Double, tt.holes.bytes())
			}
		})
	}
}

// A file may be longer than its file system, and never shorter: such as one that was cut
// before that was smaller.
func TestJudgeShort(t *testing.T) {
	for _, of := range []Filesystem{Ext4, Btrfs} {
		v := newVolume(t, of)
		v.short = block
		if got, err := v.judge(v.put()); !errors.Is(err, ErrShort) {
			t.Errorf("Judge() of a file that %s has not whole = %+v, %v", of, got, err)
		}
	}
}

// edited is a copy of the volume, changed.
func (v *volume) edited(t *testing.T, edit func(root string)) *volume {
	t.Helper()
	c := *v
	c.t = t
	if edit != nil {
		c.inner = filepath.Join(t.TempDir(), "inner")
		tool(t, "cp", "--sparse=always", v.inner, c.inner)
		c.within(c.inner, edit)
	}
	return &c
}

// breakPromise truncates a promised file.
func breakPromise(t *testing.T) func(root string) {
	return func(root string) {
		names, err := filepath.Glob(filepath.Join(root, "files", "f-*"))
		if err == nil && len(names) < 2 {
			err = errors.New("too few files")
		}
		if err == nil {
			err = os.Truncate(names[len(names)/2], 1)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// The same of btrfs, whose only way to give back is a smaller size.
func TestJudgeBtrfs(t *testing.T) {
	v := newVolume(t, Btrfs)
	const end = 128 * mib
	for _, tt := range []struct {
		name   string
		edit   func(root string)
		beyond int64 // reserved behind the end
		holes  set
		want   error
	}{
		{"as_it_was_cut", nil, 0, nil, nil},
		{"reserved_beyond", nil, 8 * mib, nil, nil},
		{"a_part_given_back_beyond", nil, 8 * mib, set{{end, end + mib}}, nil},
		{"the_end_punched_first", nil, 0, set{{end - block, end}}, ErrUnbacked},
		{"a_block_punched", nil, 8 * mib, set{{64 * mib, 64*mib + block}}, ErrUnbacked},
		{"a_promise_lost", breakPromise(t), 0, nil, promises.ErrBroken},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := v.edited(t, tt.edit)
			c.beyond = tt.beyond
			got, err := c.judge(c.put(tt.holes...))
			if !errors.Is(err, tt.want) || tt.want == nil && (got.Spanned != end || got.Beyond != tt.beyond-tt.holes.bytes() || got.Balloons != 0) {
				t.Errorf("Judge() = %+v, %v, want %v", got, err, tt.want)
			}
		})
	}
	// On a state partition that is btrfs, too.
	nested := *v
	nested.outer = Btrfs
	if _, err := nested.judge(nested.put()); err != nil {
		t.Errorf("Judge() on btrfs = %v", err)
	}
	if _, err := nested.judge(nested.put(piece{end - block, end})); !errors.Is(err, ErrUnbacked) {
		t.Errorf("Judge() of a hole on btrfs = %v", err)
	}
	// Without their log the promises are lost: they were made since the last transaction.
	c := v.edited(t, nil)
	c.inner = filepath.Join(t.TempDir(), "inner")
	tool(t, "cp", "--sparse=always", v.inner, c.inner)
	tool(t, "btrfs", "rescue", "zero-log", c.inner)
	if _, err := c.judge(c.put()); !errors.Is(err, promises.ErrBroken) {
		t.Errorf("Judge() without the log = %v", err)
	}
}

// A volume whose own file system is damaged, one whose key is another, and one of
// another type.
func TestJudgeRefuses(t *testing.T) {
	for _, of := range []Filesystem{Ext4, Btrfs} {
		v := newVolume(t, of)
		whole := v.inner
		v = v.edited(t, func(string) {})
		f, err := os.OpenFile(v.inner, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		damaged := []int64{block} // the group descriptors
		if of == Btrfs {
			damaged = rootTrees(t, v.inner)
		}
		for _, at := range damaged {
			if _, err := f.WriteAt(make([]byte, block), at); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := v.judge(v.put()); !errors.Is(err, ErrDamaged) {
			t.Errorf("Judge() of a damaged %s = %v", of, err)
		}
		v.inner = whole
		state := v.put()
		v.of = map[Filesystem]Filesystem{Ext4: Btrfs, Btrfs: Ext4}[of]
		if _, err := v.judge(state); !errors.Is(err, ErrDamaged) {
			t.Errorf("Judge() of %s for %s = %v", of, v.of, err)
		}
		v.of = of
		rand.Read(v.key)
		if _, err := v.judge(v.put()); !errors.Is(err, ErrDamaged) {
			t.Errorf("Judge() of noise = %v", err)
		}
	}
}

// rootTrees are where both copies of a btrfs's tree of roots are.
func rootTrees(t *testing.T, image string) (places []int64) {
	t.Helper()
	super, err := run("btrfs", "inspect-internal", "dump-super", image)
	if err != nil {
		t.Fatal(err)
	}
	root := regexp.MustCompile(`(?m)^root\s+(\d+)$`).FindStringSubmatch(super)
	text, err := run("btrfs-map-logical", "-l", root[1], image)
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range regexp.MustCompile(`(?m)^mirror \d logical \d+ physical (\d+) `).FindAllStringSubmatch(text, -1) {
		at, err := strconv.ParseInt(found[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		places = append(places, at)
	}
	if len(places) != 2 {
		t.Fatalf("btrfs-map-logical tells %s", text)
	}
	return places
}

func TestParseExtents(t *testing.T) {
	const head = "Filesystem type is: ef53\nFile size of x is 8192 (2 blocks of 4096 bytes)\n ext:     logical_offset:        physical_offset: length:   expected: flags:\n"
	got, err := parseExtents(head +
		"   0:        0..       4:    2781775..   2781779:      5:             unwritten\n" +
		"   1:       10..      10:         20..        20:      1:    2781780: last,eof\nx: 2 extents found\n")
	if err != nil || len(got) != 2 || got[0] != (extent{0, 5 * block, 2781775 * block, true}) || got[1] != (extent{10 * block, 11 * block, 20 * block, false}) {
		t.Errorf("parseExtents() = %+v, %v", got, err)
	}
	if got, err := parseExtents("x: 0 extents found\n"); err != nil || got != nil {
		t.Errorf("parseExtents() of an empty file = %+v, %v", got, err)
	}
	for _, bad := range []string{
		"", "x: 1 extent found\n",
		head + "   0:        0..       4:    2781775..   2781779:      5:             delalloc\nx: 1 extent found\n",
		head + "   0:        0..       4:    2781775..   2781779:      6:             last\nx: 1 extent found\n",
		head + "   0:        0..       4:    what\nx: 1 extent found\n",
	} {
		if got, err := parseExtents(bad); err == nil {
			t.Errorf("parseExtents(%q) = %+v", bad, got)
		}
	}
}
