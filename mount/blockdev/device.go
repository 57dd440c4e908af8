package blockdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrLocked means that somebody else holds the lock of a disk.
var ErrLocked = errors.New("disk is locked")

// ErrNotBlock means that a path is not a block device.
var ErrNotBlock = errors.New("not a block device")

// Device is an open block device, with positions in bytes.
type Device struct {
	file         *os.File
	size         int64
	sectorSize   int
	major, minor uint32
}

// Open opens a block device for reading, or for reading and writing.
func Open(path string, write bool) (*Device, error) {
	mode := os.O_RDONLY
	if write {
		mode = os.O_RDWR
	}
	// O_NONBLOCK: a FIFO in the place of the device must not stop us.
	f, err := os.OpenFile(path, mode|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open block device: %w", err)
	}
	d := &Device{file: f}
	if err := d.ask(); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot open block device %s: %w", path, err)
	}
	return d, nil
}

// ask reads what the kernel knows of the device.
func (d *Device) ask() error {
	var st unix.Stat_t
	fd := int(d.file.Fd())
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return ErrNotBlock
	}
	d.major, d.minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	// x/sys has no helper for an ioctl that fills in 64 bits.
	var size uint64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); errno != 0 {
		return fmt.Errorf("BLKGETSIZE64: %w", errno)
	}
	sector, err := unix.IoctlGetInt(fd, unix.BLKSSZGET)
	if err != nil {
		return fmt.Errorf("BLKSSZGET: %w", err)
	}
	d.size, d.sectorSize = int64(size), sector
	return nil
}

// ReadAt implements io.ReaderAt.
func (d *Device) ReadAt(p []byte, off int64) (int, error) { return d.file.ReadAt(p, off) }

// WriteAt implements io.WriterAt.
func (d *Device) WriteAt(p []byte, off int64) (int, error) { return d.file.WriteAt(p, off) }

// Sync returns when everything written is on stable storage.
func (d *Device) Sync() error { return d.file.Sync() }

// Close closes the device and gives up its lock.
func (d *Device) Close() error { return d.file.Close() }

// Size is the device's size in bytes.
func (d *Device) Size() int64 { return d.size }

// SectorSize is the logical sector size in bytes.
func (d *Device) SectorSize() int { return d.sectorSize }

// DevNo is the device as a device-mapper table names it, e.g. "254:1".
func (d *Device) DevNo() string { return devNo(d.major, d.minor) }

// Name is the path that was opened.
func (d *Device) Name() string { return d.file.Name() }

// Lock takes the exclusive flock(2) of the device that writers of partition
// tables, udev among them, take on the whole disk. It tries until ctx ends;
// then the error is ErrLocked.
func (d *Device) Lock(ctx context.Context) (unlock func() error, err error) {
	for {
		err := unix.Flock(int(d.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return d.unlock, nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return nil, fmt.Errorf("cannot lock %s: %w", d.Name(), err)
		}
		// A blocking flock could not be ended by ctx.
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("cannot lock %s: %w: %w", d.Name(), ErrLocked, context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (d *Device) unlock() error {
	if err := unix.Flock(int(d.file.Fd()), unix.LOCK_UN); err != nil {
		return fmt.Errorf("cannot unlock %s: %w", d.Name(), err)
	}
	return nil
}
