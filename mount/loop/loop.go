// Package loop puts a file behind a loop device.
//
// go-losetup finds a free device and detaches one. It attaches by path and in
// two steps (LOOP_SET_FD, LOOP_SET_STATUS64), between which the device shows the
// whole file with the wrong block size, and has neither LOOP_CONFIGURE nor
// direct I/O; so attaching is done here, by file descriptor, in one step
// (Linux 5.8).
package loop

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/freddierice/go-losetup"
	"golang.org/x/sys/unix"
)

// ErrNoDevice means that no free loop device could be had.
var ErrNoDevice = errors.New("no free loop device")

// Options of an attachment.
type Options struct {
	BlockSize uint32 // logical block size in bytes; 0 means 512
	ReadOnly  bool
	// DirectIO asks for I/O past the page cache. Where the file's file system
	// or its block size does not allow it, the kernel goes on without, and
	// Device.DirectIO says so.
	DirectIO bool
	// Autoclear detaches the file when the last user closes the device.
	Autoclear bool
	Offset    uint64 // bytes of the file before what the device shows
	SizeLimit uint64 // bytes that the device shows; 0 means all to the file's end
}

// Device is an attached loop device. It is held open, so that Autoclear does
// not end it before somebody else has opened it.
type Device struct {
	Path         string // e.g. /dev/loop0
	Major, Minor uint32
	DirectIO     bool // in effect
	number       uint64
	file         *os.File
}

// DevNo is the device as a device-mapper table names it, e.g. "7:0".
func (d Device) DevNo() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// File is the open device; it belongs to d.
func (d Device) File() *os.File { return d.file }

// Release closes our hold of the device and leaves the file attached as long as
// others use it.
func (d Device) Release() error {
	if err := d.file.Close(); err != nil {
		return fmt.Errorf("cannot release %s: %w", d.Path, err)
	}
	return nil
}

// Detach takes the file away from the device. A device in use elsewhere goes
// when its last user closes it.
func (d Device) Detach() error {
	return errors.Join(losetup.New(d.number, os.O_RDONLY).Detach(), d.Release())
}

// FollowFile lets a loop device be as large as its file is now. It may be in use.
func FollowFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("cannot resize a loop device: %w", err)
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("cannot resize %s: LOOP_SET_CAPACITY: %w", path, err)
	}
	return nil
}

// attempts bounds the retries when others take the free device first.
const attempts = 16

// Attach puts f behind a free loop device. The kernel takes its own reference:
// f may be closed. f's access mode must fit Options.ReadOnly.
func Attach(f *os.File, o Options) (Device, error) {
	for range attempts {
		free, err := losetup.GetFree()
		if err != nil {
			return Device{}, fmt.Errorf("cannot attach %s: %w: %w", f.Name(), ErrNoDevice, err)
		}
		d, err := attachTo(free.Path(), f, o)
		if errors.Is(err, unix.EBUSY) {
			continue
		}
		if err != nil {
			return Device{}, fmt.Errorf("cannot attach %s to %s: %w", f.Name(), free.Path(), err)
		}
		return d, nil
	}
	return Device{}, fmt.Errorf("cannot attach %s: %w after %d attempts", f.Name(), ErrNoDevice, attempts)
}

func attachTo(path string, f *os.File, o Options) (Device, error) {
	// GetFree gives a number without a check of its ioctl's result.
	number, err := strconv.ParseUint(strings.TrimPrefix(path, "/dev/loop"), 10, 20)
	if err != nil {
		return Device{}, fmt.Errorf("%w: number %s", ErrNoDevice, path)
	}
	mode := os.O_RDWR
	if o.ReadOnly {
		mode = os.O_RDONLY
	}
	dev, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return Device{}, err
	}
	d := Device{Path: path, number: number, file: dev}
	if err := configureOrClassic(dev, f, o); err != nil {
		dev.Close()
		return Device{}, err
	}
	if err := d.describe(); err != nil {
		return Device{}, errors.Join(err, d.Detach())
	}
	return d, nil
}

// configureOrClassic falls back where LOOP_CONFIGURE is unknown. A bad option
// is EINVAL too; then the second way refuses it as well.
func configureOrClassic(dev, f *os.File, o Options) error {
	err := configure(dev, f, o)
	if !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	if e := classic(dev, f, o); e != nil {
		return errors.Join(err, e)
	}
	return nil
}

// info is what both ways of attaching tell the kernel of the file.
func info(f *os.File, o Options) unix.LoopInfo64 {
	i := unix.LoopInfo64{Offset: o.Offset, Sizelimit: o.SizeLimit}
	if o.ReadOnly {
		i.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	if o.Autoclear {
		i.Flags |= unix.LO_FLAGS_AUTOCLEAR
	}
	if o.DirectIO {
		i.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	// The name is for people and losetup -j only; the last byte stays NUL.
	copy(i.File_name[:unix.LO_NAME_SIZE-1], f.Name())
	return i
}

// configure attaches in one step, LOOP_CONFIGURE.
func configure(dev, f *os.File, o Options) error {
	c := unix.LoopConfig{Fd: uint32(f.Fd()), Size: o.BlockSize, Info: info(f, o)}
	if err := unix.IoctlLoopConfigure(int(dev.Fd()), &c); err != nil {
		return fmt.Errorf("LOOP_CONFIGURE: %w", err)
	}
	return nil
}

// classic attaches in the steps that every kernel has. LOOP_SET_STATUS64
// cannot set the direct I/O flag, which has a call of its own.
func classic(dev, f *os.File, o Options) (err error) {
	fd := int(dev.Fd())
	if err := unix.IoctlSetInt(fd, unix.LOOP_SET_FD, int(f.Fd())); err != nil {
		return fmt.Errorf("LOOP_SET_FD: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0))
		}
	}()
	i := info(f, o)
	i.Flags &= unix.LO_FLAGS_AUTOCLEAR
	if err := unix.IoctlLoopSetStatus64(fd, &i); err != nil {
		return fmt.Errorf("LOOP_SET_STATUS64: %w", err)
	}
	if o.BlockSize != 0 {
		if err := unix.IoctlSetInt(fd, unix.LOOP_SET_BLOCK_SIZE, int(o.BlockSize)); err != nil {
			return fmt.Errorf("LOOP_SET_BLOCK_SIZE: %w", err)
		}
	}
	if o.DirectIO {
		err := unix.IoctlSetInt(fd, unix.LOOP_SET_DIRECT_IO, 1)
		// Not every file system can; as with LOOP_CONFIGURE that is no error.
		if err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("LOOP_SET_DIRECT_IO: %w", err)
		}
	}
	return nil
}

// describe reads back what the kernel made of the options.
func (d *Device) describe() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.file.Fd()), &st); err != nil {
		return fmt.Errorf("cannot look at %s: %w", d.Path, err)
	}
	d.Major, d.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	i, err := unix.IoctlLoopGetStatus64(int(d.file.Fd()))
	if err != nil {
		return fmt.Errorf("cannot read the status of %s: %w", d.Path, err)
	}
	d.DirectIO = i.Flags&unix.LO_FLAGS_DIRECT_IO != 0
	return nil
}
