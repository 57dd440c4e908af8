package uevent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Listener is a netlink socket that hears the kernel's uevents.
type Listener struct {
	file *os.File
}

var _ Source = (*Listener)(nil)

// receiveBuffer holds the events of a machine's whole cold start: thousands of
// them come while modules load.
const receiveBuffer = 4 << 20

// kernelGroup is the multicast group of the kernel; group 2 is udev's.
const kernelGroup = 1

// Listen begins to hear events.
func Listen() (*Listener, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("cannot open a uevent socket: %w", err)
	}
	// Past rmem_max with CAP_NET_ADMIN; without it the kernel's limit has to do.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot listen for uevents: %w", err), unix.Close(fd))
	}
	return &Listener{file: os.NewFile(uintptr(fd), "uevent")}, nil
}

// Close ends listening.
func (l *Listener) Close() error { return l.file.Close() }

// Next implements Source. Messages that do not come from the kernel, or cannot
// be read, are dropped.
func (l *Listener) Next(ctx context.Context) ([]Event, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if err := l.file.SetReadDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("cannot set a deadline: %w", err)
	}
	// When ctx ends, a deadline in the past wakes the reader.
	stop := context.AfterFunc(ctx, func() { _ = l.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := l.file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("cannot use the uevent socket: %w", err)
	}
	var events []Event
	var failed error
	err = conn.Read(func(fd uintptr) bool {
		var lost bool
		events, lost, failed = drain(int(fd))
		return lost || failed != nil || len(events) > 0
	})
	if err = errors.Join(failed, err); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			// The end of an earlier call's context came late: look again.
			return nil, nil
		}
		return nil, fmt.Errorf("cannot receive uevents: %w", err)
	}
	return events, nil
}

// drain takes all messages that wait in the socket. When some were lost
// (ENOBUFS) it forgets the others too, so that the caller looks at everything.
func drain(fd int) (events []Event, lost bool, err error) {
	buf := make([]byte, MaxMessage)
	for {
		n, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			if lost {
				return nil, true, nil
			}
			return events, false, nil
		case errors.Is(err, unix.ENOBUFS):
			lost = true
			continue
		case err != nil:
			return nil, false, err
		}
		if nl, ok := from.(*unix.SockaddrNetlink); !ok || nl.Pid != 0 || nl.Groups&kernelGroup == 0 {
			continue
		}
		if e, err := Parse(buf[:n]); err == nil {
			events = append(events, e)
		}
	}
}
