package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/btrfs"
	"sealroot/state/layout"
	"sealroot/state/resize"
)

// resizeWrong does what the library must not, so that a power cut just then would cost
// data, and has the library put it right: the control of the tests that cut the power.
//
//	resizewrong prepare        both file systems have room for what follows, and a balloon is there
//	resizewrong unlink-first   balloons go before their blocks are reserved again
//	resizewrong punch-first    a balloon's blocks are given back before it is on stable storage
//	resizewrong forget         what was given back is not in the record
//	resizewrong grow-first     btrfs gets larger before that is reserved
//	resizewrong punch-end      the end of btrfs is given back before it is smaller
//	resizewrong cut-first      the file is cut before the file system in it is smaller (state.device: classic)
//	resizewrong repair         the library puts it right
func resizeWrong(words []string) error {
	if len(words) != 2 {
		return errors.New("usage: resizewrong prepare|unlink-first|punch-first|forget|grow-first|punch-end|cut-first|repair")
	}
	do := map[string]func(*resize.Volume) error{
		"prepare": prepare, "unlink-first": unlinkFirst, "punch-first": punchFirst, "forget": forget,
		"grow-first": growFirst, "punch-end": punchEnd, "cut-first": cutFirst, "repair": putRight,
	}[words[1]]
	if do == nil {
		return fmt.Errorf("resizewrong knows no %q", words[1])
	}
	v, err := openVolume()
	if err != nil {
		return err
	}
	defer v.Close()
	return do(v)
}

func prepare(v *resize.Volume) error {
	s, err := v.Measure()
	if err != nil {
		return err
	}
	// From above, as the loop may have ended with less to give back than the state partition
	// takes at once.
	for _, eighths := range []int64{6, 3} {
		_, err := v.Resize(context.Background(), s.MinReserved+(s.MaxReserved-s.MinReserved)/8*eighths)
		// Chunks of btrfs may keep it larger, and the state partition takes back whole units only.
		if (s.Filesystem == "btrfs" || s.Unit > balloon.BlockSize) && errors.Is(err, resize.ErrTooSmall) {
			continue
		}
		if err != nil {
			return err
		}
	}
	unix.Sync()
	return nil
}

// balloonsDir is where the balloons of the running system are.
var balloonsDir = filepath.Join(layout.State, "encrypted", layout.Balloons)

func unlinkFirst(*resize.Volume) error {
	names, err := filepath.Glob(filepath.Join(balloonsDir, "[0-9]*"))
	if err == nil && len(names) == 0 {
		err = errors.New("there is no balloon")
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		const immutable = 0x10 // FS_IMMUTABLE_FL
		flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err == nil {
			err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags&^immutable))
		}
		if err = errors.Join(err, f.Close(), os.Remove(name)); err != nil {
			return err
		}
	}
	unix.Sync()
	return nil
}

func punchFirst(v *resize.Volume) error {
	s, err := v.Measure()
	if err != nil {
		return err
	}
	image, err := os.OpenFile(volumeImage(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer image.Close()
	// The balloon may not be on stable storage before its blocks are given back: on a host
	// that stands still the journal's timer would see to it.
	if err := commitRarely(volumeRoot); err != nil {
		return err
	}
	const size = 16 << 20
	f, err := os.OpenFile(filepath.Join(balloonsDir, "90000000"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		return err
	}
	extents, err := files.Map(f, 0, size)
	if err != nil {
		return err
	}
	for _, e := range extents {
		if err := unix.Fallocate(int(image.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, s.DataOffset+e.Physical, e.Length); err != nil {
			return err
		}
	}
	return image.Sync()
}

// commitRarely has a mounted ext4 end no transaction by time alone, from now on.
func commitRarely(dir string) error {
	f, err := unix.Fspick(unix.AT_FDCWD, dir, unix.FSPICK_CLOEXEC)
	if err != nil {
		return err
	}
	err = unix.FsconfigSetString(f, "commit", "300")
	if err == nil {
		err = unix.FsconfigReconfigure(f)
	}
	unix.Sync() // one that has begun has its time already
	return errors.Join(err, unix.Close(f))
}

func forget(*resize.Volume) error {
	f, err := os.OpenFile(filepath.Join(layout.State, layout.GivenBack), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		_, err = f.WriteAt(make([]byte, info.Size()), 0)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// putRight has the library repair. To set the file's length it has to grow.
func putRight(v *resize.Volume) error {
	s, err := v.Repair(context.Background())
	if err == nil && s.Apparent < s.DataOffset+s.Spanned {
		_, err = v.Resize(context.Background(), s.Reserved+s.GivenBack+wrongBytes)
	}
	return err
}

// cutFirst grows before, in order, into the middle of a group of ext4: there nothing is.
func cutFirst(v *resize.Volume) error {
	const group, cut = 128 << 20, 16 << 20
	s, err := v.Measure()
	if err != nil {
		return err
	}
	want := s.Spanned + group
	want += group/2 - want%group
	if s, err = v.Resize(context.Background(), s.Reserved+s.GivenBack+want-s.Spanned); err != nil {
		return err
	}
	image, err := os.OpenFile(volumeImage(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = image.Truncate(s.DataOffset + s.Spanned - cut)
	return errors.Join(err, image.Sync(), image.Close())
}

// wrongBytes is by how much btrfs is made larger, or loses.
const wrongBytes = 32 << 20

func growFirst(v *resize.Volume) error {
	s, err := v.Measure()
	if err != nil {
		return err
	}
	root, err := os.Open(volumeRoot)
	if err != nil {
		return err
	}
	const device = 1 // of the template
	err = btrfs.Resize(int(root.Fd()), device, uint64(s.Spanned+wrongBytes))
	return errors.Join(err, unix.Syncfs(int(root.Fd())), root.Close())
}

// punchEnd grows before, in order: what is given back holds nothing.
func punchEnd(v *resize.Volume) error {
	s, err := v.Measure()
	if err != nil {
		return err
	}
	if s, err = v.Resize(context.Background(), s.Reserved+2*wrongBytes); err != nil {
		return err
	}
	image, err := os.OpenFile(volumeImage(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(image.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, s.DataOffset+s.Spanned-wrongBytes, wrongBytes)
	return errors.Join(err, image.Sync(), image.Close())
}
