// Package console talks to the person in front of the machine: on every
// console device the kernel uses, and never through the kernel log, so that
// what is shown here (a recovery key) reaches nobody later.
package console

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Errors of this package.
var (
	// ErrNone means that no console device could be opened.
	ErrNone = errors.New("no console device")
	// ErrIdle means that nobody pressed a key within the time limit.
	ErrIdle = errors.New("nobody pressed a key")
)

// MaxLine is the longest line ReadLine accepts, in bytes; more is dropped.
const MaxLine = 512

// Console is all console devices of the machine at once.
type Console struct {
	ttys  []*os.File
	saved []*unix.Termios
}

// Open opens every device named in root/sys/class/tty/console/active, with
// echo and signal keys off. Close restores the settings.
func Open(root string) (*Console, error) {
	active, err := os.ReadFile(filepath.Join(root, "sys/class/tty/console/active"))
	if err != nil {
		return nil, fmt.Errorf("cannot list console devices: %w", err)
	}
	c := &Console{}
	for _, name := range strings.Fields(string(active)) {
		if name == "tty0" {
			// tty0 follows the foreground terminal for output, but cannot be
			// read before one is chosen: take the first one.
			name = "tty1"
		}
		c.add(filepath.Join(root, "dev", filepath.Base(name)))
	}
	if len(c.ttys) == 0 {
		return nil, fmt.Errorf("cannot open any of %q: %w", strings.TrimSpace(string(active)), ErrNone)
	}
	return c, nil
}

func (c *Console) add(path string) {
	// O_NONBLOCK puts the descriptor under Go's poller, so reads can be ended.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	saved, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err == nil {
		raw := *saved
		// No echo, no line discipline and no signal keys: a key press counts
		// at once, and Ctrl-C means nothing.
		// No flow control either: one Ctrl-S would hold up the boot.
		raw.Iflag &^= unix.IXON | unix.IXOFF
		raw.Lflag &^= unix.ECHO | unix.ECHOE | unix.ECHOK | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
		raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
		if unix.IoctlSetTermios(fd, unix.TCSETS, &raw) != nil {
			saved = nil
		}
	}
	c.ttys = append(c.ttys, os.NewFile(uintptr(fd), path))
	c.saved = append(c.saved, saved)
}

// Flush drops what was typed and not yet read.
func (c *Console) Flush() {
	for _, f := range c.ttys {
		if rc, err := f.SyscallConn(); err == nil {
			rc.Control(func(fd uintptr) { unix.IoctlSetInt(int(fd), unix.TCFLSH, unix.TCIFLUSH) })
		}
	}
}

// Close restores the settings of the devices and closes them.
func (c *Console) Close() error {
	var errs []error
	for i, f := range c.ttys {
		if c.saved[i] != nil {
			rc, err := f.SyscallConn()
			if err == nil {
				// Not TCSETSF: it waits until everything was sent, which may be
				// never. What was typed ahead is for nobody.
				rc.Control(func(fd uintptr) {
					unix.IoctlSetInt(int(fd), unix.TCFLSH, unix.TCIFLUSH)
					unix.IoctlSetTermios(int(fd), unix.TCSETS, c.saved[i])
				})
			}
		}
		errs = append(errs, f.Close())
	}
	c.ttys = nil
	return errors.Join(errs...)
}

// Print writes text to every console; "\n" becomes a new line at the left edge.
func (c *Console) Print(text string) { c.write([]byte(strings.ReplaceAll(text, "\n", "\r\n"))) }

// PrintSecret is Print for bytes that must not become a string; the caller
// keeps and wipes them.
func (c *Console) PrintSecret(text []byte) { c.write(text) }

// PrintSecretIf is PrintSecret on the consoles that have room for so many columns and
// rows, or do not say how many they have, as serial lines.
func (c *Console) PrintSecretIf(columns, rows int, text []byte) {
	for i, f := range c.ttys {
		if rc, err := f.SyscallConn(); err == nil {
			fits := true
			rc.Control(func(fd uintptr) {
				ws, err := unix.IoctlGetWinsize(int(fd), unix.TIOCGWINSZ)
				fits = err != nil || ws.Col == 0 || ws.Row == 0 || int(ws.Col) >= columns && int(ws.Row) >= rows
			})
			if fits {
				writeTo(c.ttys[i:i+1], text)
			}
		}
	}
}

func (c *Console) write(b []byte) { writeTo(c.ttys, b) }

func writeTo(ttys []*os.File, b []byte) {
	for _, f := range ttys {
		// A console that cannot be written (unplugged serial line with flow
		// control) must not hold up the others.
		f.SetWriteDeadline(time.Now().Add(2 * time.Second))
		f.Write(b)
	}
}

// driverBytes is how much a serial port's driver keeps of what was written last
// (drivers/tty/serial/serial_core.c, UART_XMIT_SIZE), pieceBytes what a slow one
// sends well within the time limit of a write.
const (
	driverBytes = 4096
	pieceBytes  = 512
)

// Clear wipes the screens and, where the terminal knows it, the scrollback; and what
// was written last out of the drivers, by NULs, which terminals ignore.
func (c *Console) Clear() {
	c.write([]byte("\x1b[H\x1b[2J\x1b[3J"))
	var nothing [pieceBytes]byte
	for range driverBytes / pieceBytes {
		c.write(nothing[:])
	}
}

type key struct {
	b   byte
	tty int
}

// keys starts one reader for each device; stop ends them all. None outlives it: a
// device that Go cannot poll, and so has no deadline, does not block either (add).
func (c *Console) keys(ctx context.Context) (<-chan key, func()) {
	ctx, cancel := context.WithCancel(ctx)
	out := make(chan key)
	done := make(chan struct{}, len(c.ttys))
	for i, f := range c.ttys {
		f.SetReadDeadline(time.Time{})
		go func() {
			defer func() {
				_ = recover() // as after a read error: no more keys from this one
				done <- struct{}{}
			}()
			var buf [1]byte
			for {
				n, err := f.Read(buf[:])
				if err != nil {
					return
				}
				if n == 1 {
					select {
					case out <- key{buf[0], i}:
					case <-ctx.Done():
						return
					}
				}
			}
		}()
	}
	return out, func() {
		cancel()
		for _, f := range c.ttys {
			f.SetReadDeadline(time.Unix(1, 0))
		}
		for range c.ttys {
			<-done
		}
	}
}

// WaitKey waits for any key, at most idle long: ErrIdle.
func (c *Console) WaitKey(ctx context.Context, idle time.Duration) error {
	in, stop := c.keys(ctx)
	defer stop()
	select {
	case <-in:
		return nil
	case <-time.After(idle):
		return fmt.Errorf("cannot wait longer than %s: %w", idle, ErrIdle)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ReadLine reads a line without showing it; the caller wipes what it returns.
// When no key is pressed for idle, it returns ErrIdle.
func (c *Console) ReadLine(ctx context.Context, idle time.Duration) ([]byte, error) {
	in, stop := c.keys(ctx)
	defer stop()
	lines := make([][]byte, len(c.ttys))
	for i := range lines {
		// Full capacity at once: growing would leave copies behind.
		lines[i] = make([]byte, 0, MaxLine)
	}
	wipe := func(except int) {
		for i := range lines {
			if i != except {
				clear(lines[i][:cap(lines[i])])
			}
		}
	}
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			wipe(-1)
			return nil, ctx.Err()
		case <-timer.C:
			wipe(-1)
			return nil, fmt.Errorf("cannot wait longer than %s: %w", idle, ErrIdle)
		case k := <-in:
			timer.Reset(idle)
			line, end := edit(lines[k.tty], k.b)
			lines[k.tty] = line
			if end {
				wipe(k.tty)
				return line, nil
			}
		}
	}
}

// edit applies one key to a line and tells whether the line is complete.
func edit(line []byte, b byte) ([]byte, bool) {
	switch {
	case b == '\r' || b == '\n':
		return line, true
	case b == 0x7f || b == '\b':
		if n := len(line); n > 0 {
			line[n-1] = 0
			line = line[:n-1]
		}
	case b == 0x15: // Ctrl-U
		clear(line)
		line = line[:0]
	case b >= ' ' && len(line) < cap(line):
		line = append(line, b)
	}
	return line, false
}
