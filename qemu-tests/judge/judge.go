// Package judge says of a state partition that a power cut left whether its encrypted
// volume kept the invariant of resizing: each block of the file system in it is
// reserved in the outer one, but for blocks that balloons hold and nobody ever wrote
// to, and that the record beside the volume knows of; and nothing that was on stable
// storage is lost.
//
// It shares no code with what it judges but the readers of LUKS2 header and record, and what
// PID 1 mends: extents are those of filefrag(8), the file systems are mounted by the host's
// kernel, which replays their journals, and checked by e2fsck(8) and btrfs-check(8). It needs
// root and loop devices, no device mapper: the volume is decrypted here.
package judge

import (
	"crypto/aes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/xts"

	"sealroot/state/balloon"
	"sealroot/state/luks2"
)

var (
	// ErrUnbacked: a block of the inner file system is neither reserved nor held
	// unwritten by a balloon.
	ErrUnbacked = errors.New("the volume has blocks that are not reserved")
	// ErrUnrecorded: a balloon's block is not reserved, and the record does not say so:
	// the next boot would reserve it, or find no room to.
	ErrUnrecorded = errors.New("the record has not all that was given back")
	// ErrShort: encrypted.img ends before the file system in it: nothing could open it.
	ErrShort = errors.New("the file is shorter than the file system in it")
	// ErrDamaged: a file system is damaged, also after its journal was replayed.
	ErrDamaged = errors.New("a file system is damaged")
)

const block = 4096 // of both file systems, and dm-crypt's sector

// Case is what is judged.
type Case struct {
	State string // a file with the state partition: the outer journal is replayed in it
	Dir   string // for copies, and to mount on
	// Outer and Inner are the types of the file systems, Ext4 when empty. Copies of one
	// btrfs are judged one at a time: the kernel knows it by its UUID.
	Outer, Inner Filesystem
	// Place is the folder of encrypted.img on the partition, its root when empty.
	Place string
	// Unlock finds the volume key.
	Unlock func(h *luks2.Header) ([]byte, error)
	// Balloons is the folder of balloons in the volume; without it there are none, as in btrfs.
	Balloons string
	// Record is the file in the partition's root with what was given back; without it
	// there is none.
	Record string
	// Files judges the mounted volume's content.
	Files func(root string) error
}

// Verdict tells how things stand, in bytes.
type Verdict struct {
	Spanned  int64 // by the inner file system's superblock, before its replay or after it
	Reserved int64 // of encrypted.img, up to the end of the inner file system
	Beyond   int64 // reserved beyond it: a grow or shrink was cut
	Balloons int64 // held unwritten
	Double   int64 // held by balloons and still reserved
	File     int64 // of encrypted.img from where the inner file system begins
}

// Judge judges a case. Errors: ErrUnbacked, ErrUnrecorded, ErrShort, ErrDamaged, those of
// Files, those of the tools.
func (c Case) Judge() (v Verdict, err error) {
	plain := filepath.Join(c.Dir, "plain")
	reserved, recorded, err := c.open(plain)
	if err != nil {
		return v, err
	}
	defer os.Remove(plain)
	if err := mended(plain); err != nil {
		return v, err
	}
	before, err := c.Inner.span(plain)
	if err != nil {
		return v, err
	}
	copied, err := written(plain)
	if err != nil {
		return v, err
	}
	info, err := os.Stat(plain)
	if err != nil {
		return v, err
	}
	v.File = info.Size()
	if before > v.File {
		return v, fmt.Errorf("%w: %d bytes, %d of them in the file", ErrShort, before, v.File)
	}
	var held []extent
	err = c.Inner.mounted(plain, filepath.Join(c.Dir, "inner"), func(root string) error {
		if held, err = balloons(filepath.Join(root, c.Balloons)); err != nil {
			return err
		}
		return c.Files(root)
	})
	if err != nil {
		return v, err
	}
	if v.Spanned, err = c.Inner.span(plain); err != nil {
		return v, err
	}
	if v.Spanned = max(v.Spanned, before); v.Spanned > v.File {
		return v, fmt.Errorf("%w: by its journal %d bytes, %d of them in the file", ErrShort, v.Spanned, v.File)
	}
	if err := c.Inner.clean(plain); err != nil {
		return v, err
	}
	after, err := written(plain)
	if err != nil {
		return v, err
	}
	// What the replay wrote has to be reserved, too.
	return v, v.compare(reserved, newSet(held), recorded, after.without(copied))
}

// compare judges sets of bytes of the inner device.
func (v *Verdict) compare(reserved, held, recorded, replayed set) error {
	all := set{{0, v.Spanned}}
	inside := reserved.both(all)
	v.Reserved, v.Beyond = inside.bytes(), reserved.bytes()-inside.bytes()
	v.Balloons, v.Double = held.bytes(), held.both(reserved).bytes()
	if left := all.without(reserved).without(held); len(left) > 0 {
		return fmt.Errorf("%w: %d bytes in %d pieces, the first from %d to %d of %d; balloons hold %d bytes",
			ErrUnbacked, left.bytes(), len(left), left[0].start, left[0].end, v.Spanned, v.Balloons)
	}
	if left := all.without(reserved).without(recorded); len(left) > 0 {
		return fmt.Errorf("%w: %d bytes are missing in %d pieces, the first from %d to %d", ErrUnrecorded, left.bytes(), len(left), left[0].start, left[0].end)
	}
	if left := replayed.without(reserved); len(left) > 0 {
		return fmt.Errorf("%w: the replay of the journal wrote to %d bytes, the first from %d to %d",
			ErrUnbacked, left.bytes(), left[0].start, left[0].end)
	}
	return nil
}

// open replays the outer journal and decrypts the volume into a file. It returns what of
// the inner device is reserved, and what is not by the record.
func (c Case) open(plain string) (reserved, recorded set, err error) {
	if err := mended(c.State); err != nil {
		return nil, nil, err
	}
	err = c.Outer.mounted(c.State, filepath.Join(c.Dir, "outer"), func(root string) error {
		img, err := os.Open(filepath.Join(root, c.Place, "encrypted.img"))
		if err != nil {
			return err
		}
		defer img.Close()
		info, err := img.Stat()
		if err != nil {
			return err
		}
		h, err := luks2.Read(img, info.Size())
		if err != nil {
			return err
		}
		key, err := c.Unlock(h)
		if err != nil {
			return err
		}
		defer clear(key)
		offset := int64(h.DataOffset())
		if recorded, err = c.record(root, h.UUID(), offset); err != nil {
			return err
		}
		list, err := extents(img.Name())
		if err != nil {
			return err
		}
		var inner []extent
		for _, e := range list {
			if e.end > offset {
				e.start = max(e.start, offset)
				inner = append(inner, e)
				reserved = append(reserved, piece{e.start - offset, e.end - offset})
			}
		}
		return decrypt(plain, img, info.Size(), offset, key, inner)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("cannot open the volume of %s: %w", c.State, err)
	}
	return joined(reserved), joined(recorded), c.Outer.clean(c.State)
}

// record reads what of the inner device, which begins at offset, the record says was given
// back.
func (c Case) record(root, volume string, offset int64) (given set, err error) {
	if c.Record == "" {
		return nil, nil
	}
	file, err := os.ReadFile(filepath.Join(root, c.Record))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	record, _ := balloon.Latest(file, volume)
	for _, g := range record.Given {
		given = append(given, piece{g.Start - offset, g.End - offset})
	}
	return given, nil
}

// decrypt writes the volume's content into a file, as dm-crypt would show it
// (aes-xts-plain64). What was never written is a hole there: it would be noise.
func decrypt(plain string, img io.ReaderAt, size, offset int64, key []byte, list []extent) error {
	cipher, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		return err
	}
	out, err := os.OpenFile(plain, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := out.Truncate(size - offset); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for _, e := range list {
		if e.unwritten {
			continue
		}
		for at := e.start; at < e.end; at += int64(len(buf)) {
			b := buf[:min(int64(len(buf)), e.end-at)]
			if n, err := img.ReadAt(b, at); n < len(b) {
				return fmt.Errorf("cannot read encrypted.img at %d: %w", at, err)
			}
			for i := 0; i < len(b); i += block {
				cipher.Decrypt(b[i:i+block], b[i:i+block], uint64(at-offset+int64(i))/512)
			}
			if _, err := out.WriteAt(b, at-offset); err != nil {
				return err
			}
		}
	}
	return out.Close()
}

// balloons returns what the files in a folder hold without having written to it.
func balloons(dir string) (held []extent, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		list, err := extents(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			if e.unwritten {
				held = append(held, extent{start: e.physical, end: e.physical + e.end - e.start})
			}
		}
	}
	return held, err
}

func run(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}
