package prebuilt

import (
	"context"
	"crypto/aes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/crypto/xts"
	"golang.org/x/sys/unix"

	"sealroot/state"
	"sealroot/state/layout"
	"sealroot/state/luks2"
)

// outerFS is the file system of the state partition, in the image of the disk.
type outerFS struct {
	tools       tools
	disk        *os.File
	start, size int64 // of the partition, bytes
}

// device names it to the programs of e2fsprogs, which have the disk as descriptor 3.
func (o outerFS) device() string { return fmt.Sprintf("/proc/self/fd/3?offset=%d", o.start) }

// format makes it, empty, as PID 1 does where it adds the partition.
func (o outerFS) format(ctx context.Context, random io.Reader) error {
	fs, err := o.tools.filesystem(ctx, o.size, random)
	if err != nil {
		return err
	}
	defer fs.Close()
	if err := unix.Fallocate(int(o.disk.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, o.start, o.size); err != nil {
		return fmt.Errorf("cannot clear the partition: %w", err)
	}
	return eachData(fs, func(b []byte, at int64) error {
		_, err := o.disk.WriteAt(b, o.start+at)
		return err
	})
}

// entry is a name in the root directory.
type entry struct {
	mode, size string
	uid, gid   string
}

// list reads the root directory.
func (o outerFS) list(ctx context.Context) (map[string]entry, error) {
	out, err := o.tools.run(ctx, "debugfs", "", []*os.File{o.disk}, "-R", "ls -p /", o.device())
	if err != nil {
		return nil, err
	}
	names := map[string]entry{}
	for line := range strings.Lines(out) {
		// "/inode/mode/uid/gid/name/size/", debugfs(8)
		if f := strings.Split(strings.TrimSpace(line), "/"); len(f) == 8 {
			names[f[5]] = entry{mode: f[2], uid: f[3], gid: f[4], size: f[6]}
		}
	}
	if _, ok := names["."]; !ok {
		return nil, fmt.Errorf("cannot read the state partition: %s", strings.TrimSpace(out))
	}
	return names, nil
}

// unused returns ErrThere where a volume is or was.
func (o outerFS) unused(ctx context.Context) error {
	names, err := o.list(ctx)
	if err != nil {
		return err
	}
	for _, name := range []string{layout.Image, layout.Provisioned, layout.Escrow} {
		if _, there := names[name]; there {
			return fmt.Errorf("cannot make a volume where %s lies: %w", name, ErrThere)
		}
	}
	return nil
}

// addVolume makes encrypted.img in it and returns the volume's UUID.
func (o outerFS) addVolume(ctx context.Context, sizes state.Sizes, opts Options) (string, error) {
	h, key, err := header(sizes, opts)
	if err != nil {
		return "", err
	}
	defer clear(key)
	img, err := unnamed(sizes.Apparent)
	if err != nil {
		return "", err
	}
	defer img.Close()
	if _, err := luks2.WriteNew(img, h, opts.Rand); err != nil {
		return "", err
	}
	if err := o.tools.fill(ctx, img, int64(h.DataOffset()), sizes.Reserved-int64(h.DataOffset()), key, opts.Rand); err != nil {
		return "", err
	}
	files := []*os.File{o.disk, img}
	// The holes of the file are reserved too, as in a volume that PID 1 makes.
	script := fmt.Sprintf("write /proc/self/fd/4 %[1]s\nsif %[1]s mode 0100600\nfallocate %[1]s 0 %[2]d\n",
		layout.Image, sizes.Reserved/state.BlockSize-1)
	want := map[string]int64{layout.Image: sizes.Apparent}
	if opts.Escrow != nil {
		message, err := unnamed(0)
		if err != nil {
			return "", err
		}
		defer message.Close()
		if _, err := message.Write(opts.Escrow); err != nil {
			return "", err
		}
		files = append(files, message)
		script += fmt.Sprintf("write /proc/self/fd/5 %[1]s\nsif %[1]s mode 0100600\n", layout.Escrow)
		want[layout.Escrow] = int64(len(opts.Escrow))
	}
	said, err := o.tools.run(ctx, "debugfs", script, files, "-w", "-f", "-", o.device())
	if err != nil {
		return "", err
	}
	// debugfs ends with 0 also when a command of its has failed.
	names, err := o.list(ctx)
	if err != nil {
		return "", err
	}
	for name, size := range want {
		if is := names[name]; is != (entry{mode: "100600", uid: "0", gid: "0", size: strconv.FormatInt(size, 10)}) {
			return "", fmt.Errorf("debugfs has made %s %+v, want %d bytes: %s", name, is, size, strings.TrimSpace(said))
		}
	}
	if _, err := o.tools.run(ctx, "e2fsck", "", files[:1], "-fn", o.device()); err != nil {
		return "", err
	}
	return h.UUID(), nil
}

// fill puts a file system of size bytes into img behind start, encrypted as dm-crypt
// does it (aes-xts-plain64, in sectors of state.BlockSize).
func (t tools) fill(ctx context.Context, img *os.File, start, size int64, key []byte, random io.Reader) error {
	fs, err := t.filesystem(ctx, size, random)
	if err != nil {
		return err
	}
	defer fs.Close()
	script := fmt.Sprintf("mkdir %[1]s\nsif %[1]s mode 040700\n", layout.Private)
	if _, err := t.run(ctx, "debugfs", script, []*os.File{fs}, "-w", "-f", "-", "/proc/self/fd/3"); err != nil {
		return err
	}
	c, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		return err
	}
	return eachData(fs, func(b []byte, at int64) error {
		for i := 0; i < len(b); i += state.BlockSize {
			sector := b[i : i+state.BlockSize]
			// plain64 counts in 512 bytes whatever the size of the sectors is.
			c.Encrypt(sector, sector, uint64(at+int64(i))/512)
		}
		_, err := img.WriteAt(b, start+at)
		return err
	})
}

// filesystem makes the template's file system, grown to size bytes, in a file that
// vanishes when it is closed. What it does not use is a hole.
func (t tools) filesystem(ctx context.Context, size int64, random io.Reader) (*os.File, error) {
	f, err := unnamed(size)
	if err != nil {
		return nil, err
	}
	err = state.WriteFilesystem(f, state.Ext4, random)
	if err == nil {
		_, err = t.run(ctx, "resize2fs", "", []*os.File{f}, "/proc/self/fd/3", strconv.FormatInt(size/1024, 10)+"K")
	}
	if err == nil {
		_, err = t.run(ctx, "e2fsck", "", []*os.File{f}, "-fn", "/proc/self/fd/3")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// unnamed makes a file of size bytes, all of it a hole.
func unnamed(size int64) (*os.File, error) {
	f, err := os.CreateTemp("", "sealroot-state-")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Remove(f.Name()), f.Truncate(size)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// eachData gives all of f that is no hole to do, in whole blocks; b is its to change.
func eachData(f *os.File, do func(b []byte, at int64) error) error {
	buf := make([]byte, 1<<20)
	for at := int64(0); ; {
		begin, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		begin, end = begin/state.BlockSize*state.BlockSize, (end+state.BlockSize-1)/state.BlockSize*state.BlockSize
		for at = begin; at < end; {
			b := buf[:min(int64(len(buf)), end-at)]
			if _, err := f.ReadAt(b, at); err != nil {
				return err
			}
			if err := do(b, at); err != nil {
				return err
			}
			at += int64(len(b))
		}
	}
}
