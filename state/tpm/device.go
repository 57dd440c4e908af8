package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// maxResponse is more than any TPM's largest response (TPM2_PT_MAX_RESPONSE_SIZE
// is 4096 everywhere); the kernel's own buffer has this size.
const maxResponse = 4096

// Open opens the TPM below devRoot ("/dev"): tpmrm0, the kernel's resource
// manager, else tpm0. It does not wait for the device to appear. Errors are
// ErrNoTPM and, while someone else holds tpm0 until ctx ends, ErrBusy.
func Open(ctx context.Context, devRoot string) (*TPM, error) {
	var errs []error
	for _, name := range []string{"tpmrm0", "tpm0"} {
		d, err := openDevice(ctx, filepath.Join(devRoot, name))
		if err == nil {
			return New(d), nil
		}
		if !errors.Is(err, unix.ENOENT) {
			return nil, err
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("%w: %w", ErrNoTPM, errors.Join(errs...))
}

// device is a TPM character device (kernel: drivers/char/tpm/tpm-dev-common.c).
// It is used without os.File: the kernel's non-blocking mode (since 4.20) is
// entered by O_NONBLOCK, a write then only queues the command, and read returns
// 0 in place of EAGAIN while there is no answer, which os.File takes for EOF.
type device struct {
	fd    int
	path  string
	stale bool // nobody waited for the last answer: the next read would get it
}

func openDevice(ctx context.Context, path string) (*device, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err == nil {
			return checkDevice(fd, path)
		}
		switch err {
		case unix.EINTR:
			continue
		case unix.EBUSY: // tpm0 has one user at a time
			if err := sleepContext(ctx, 50*time.Millisecond); err != nil {
				return nil, fmt.Errorf("%w: cannot open %s: %w", ErrBusy, path, err)
			}
			continue
		case unix.ENODEV, unix.ENXIO:
			return nil, fmt.Errorf("%w: cannot open %s: %w", ErrNoTPM, path, err)
		}
		return nil, fmt.Errorf("cannot open %s: %w", path, err)
	}
}

func checkDevice(fd int, path string) (*device, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot stat %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		unix.Close(fd)
		return nil, fmt.Errorf("%w: %s is not a character device", ErrNoTPM, path)
	}
	return &device{fd: fd, path: path}, nil
}

// Send implements Transport.
func (d *device) Send(ctx context.Context, command []byte) ([]byte, error) {
	if d.stale {
		if err := d.wait(ctx); err != nil {
			return nil, err
		}
		_, _ = d.read() // an answer to nobody
	}
	if err := d.write(ctx, command); err != nil {
		return nil, err
	}
	d.stale = true
	if err := d.wait(ctx); err != nil {
		return nil, err
	}
	rsp, err := d.read()
	if errors.Is(err, unix.EFAULT) {
		d.reopen()
	}
	return rsp, err
}

// reopen begins anew with the kernel's resource manager: where the TPM did not save
// or load for it what belongs to an open file, that file never works again
// (drivers/char/tpm/tpm2-space.c). What was loaded is gone, as after a lost answer.
func (d *device) reopen() {
	fd, err := unix.Open(d.path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return // tpm0, which has one user, and no resource manager
	}
	unix.Close(d.fd)
	d.fd = fd
}

func (d *device) read() ([]byte, error) {
	rsp := make([]byte, maxResponse)
	n, err := ignoreEINTR(func() (int, error) { return unix.Read(d.fd, rsp) })
	d.stale = false
	if err != nil {
		return nil, fmt.Errorf("%w: cannot read from %s: %w", readError(err), d.path, err)
	}
	if n < headerSize || binary.BigEndian.Uint32(rsp[2:]) != uint32(n) {
		return nil, fmt.Errorf("%w: cannot read from %s: %w", ErrNoTPM, d.path, io.ErrUnexpectedEOF)
	}
	return rsp[:n:n], nil
}

// readError is ErrFails for the errors with which the kernel gives a command up
// (tpm_transmit and the drivers below it): the chip is not ready in time, or the bus
// does not work; EFAULT stands for an answer of another length than it says.
func readError(err error) error {
	switch err {
	case unix.ETIME, unix.EIO, unix.EBUSY, unix.ETIMEDOUT, unix.EREMOTEIO, unix.ECANCELED, unix.EFAULT:
		return ErrFails
	}
	return ErrNoTPM
}

func (d *device) write(ctx context.Context, command []byte) error {
	for {
		n, err := ignoreEINTR(func() (int, error) { return unix.Write(d.fd, command) })
		switch {
		case err == nil && n == len(command):
			return nil
		case err == nil:
			return fmt.Errorf("%w: cannot write to %s: %w", ErrNoTPM, d.path, io.ErrShortWrite)
		case err != unix.EBUSY && err != unix.EAGAIN:
			return fmt.Errorf("%w: cannot write to %s: %w", ErrNoTPM, d.path, err)
		}
		if err := sleepContext(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("%w: cannot write to %s: %w", ErrBusy, d.path, err)
		}
	}
}

// wait returns when an answer can be read. Poll gets a short time limit so that
// a cancelled context, which has no deadline to compute with, is seen too.
func (d *device) wait(ctx context.Context) error {
	for {
		fds := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}
		n, err := ignoreEINTR(func() (int, error) { return unix.Poll(fds, 100) })
		if err != nil {
			return fmt.Errorf("%w: cannot poll %s: %w", ErrNoTPM, d.path, err)
		}
		if n > 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%w: no answer from %s: %w", ErrBusy, d.path, err)
		}
	}
}

// Close implements Transport.
func (d *device) Close() error {
	if err := unix.Close(d.fd); err != nil {
		return fmt.Errorf("cannot close %s: %w", d.path, err)
	}
	return nil
}

func ignoreEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}
