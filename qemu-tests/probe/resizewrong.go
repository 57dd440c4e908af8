package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon/files"
	"sealroot/state/layout"
	"sealroot/state/resize"
)

// resizeWrong does what the library must not, so that a power cut just then would cost
// data, and has the library put it right: the control of the tests that cut the power.
//
//	resizewrong unlink-first   balloons go before their blocks are reserved again
//	resizewrong punch-first    a balloon's blocks are given back before it is on stable storage
//	resizewrong forget         what was given back is not in the record
func resizeWrong(words []string) error {
	if len(words) != 2 {
		return errors.New("usage: resizewrong unlink-first|punch-first|forget")
	}
	wrong := map[string]func(*resize.Volume) error{"unlink-first": unlinkFirst, "punch-first": punchFirst, "forget": forget}[words[1]]
	if wrong == nil {
		return fmt.Errorf("resizewrong knows no %q", words[1])
	}
	v, err := openVolume()
	if err != nil {
		return err
	}
	defer v.Close()
	s, err := v.Measure()
	if err != nil {
		return err
	}
	// There has to be a balloon, and room for another.
	if _, err := v.Resize(context.Background(), s.MinReserved+(s.Reserved-s.MinReserved)/2); err != nil {
		return err
	}
	unix.Sync()
	if err := wrong(v); err != nil {
		return err
	}
	_, err = v.Repair(context.Background())
	return err
}

// balloonsDir is where the balloons of the running system are.
var balloonsDir = filepath.Join(layout.State, "encrypted", layout.Balloons)

func unlinkFirst(*resize.Volume) error {
	names, err := filepath.Glob(filepath.Join(balloonsDir, "*"))
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
	image, err := os.OpenFile(filepath.Join(layout.State, "encrypted.img"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer image.Close()
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
