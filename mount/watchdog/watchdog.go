// Package watchdog drives the machine's hardware watchdog: a timer that resets
// the machine when nobody feeds it. The device is described in the kernel's
// Documentation/watchdog/watchdog-api.rst, its attributes in
// Documentation/ABI/testing/sysfs-class-watchdog.
package watchdog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Path is the device: the first watchdog, which systemd takes too.
const Path = "/dev/watchdog0"

// sysDir holds the attributes of the device at Path.
const sysDir = "/sys/class/watchdog/watchdog0"

var (
	// ErrNoDevice means that the machine has no watchdog, or no driver for it.
	ErrNoDevice = errors.New("no watchdog device")
	// ErrNoWayOut means that a watchdog, once started, could not be stopped
	// again, or that nobody can tell.
	ErrNoWayOut = errors.New("the watchdog could not be stopped again")
)

// Options say what a watchdog is opened for.
type Options struct {
	Timeout time.Duration // whole seconds
	// Endless accepts a watchdog that cannot be stopped: somebody will feed it
	// for as long as the machine runs.
	Endless bool
}

// Info is what driver and kernel say of a watchdog.
type Info struct {
	Identity string
	// Timeout is what the driver took: it may round, or know only one.
	Timeout time.Duration
	// NoWayOut: once started it runs for ever (CONFIG_WATCHDOG_NOWAYOUT).
	NoWayOut bool
	// Fired: the watchdog ended what ran before.
	Fired bool
	// StopsOnClose: the driver knows no magic close, so that closing the device
	// always stops it.
	StopsOnClose bool
}

// Dog is a running watchdog.
type Dog struct {
	info Info
	dev  device
}

// Info tells what was opened.
func (d *Dog) Info() Info { return d.info }

// device is an open watchdog device; kernelDevice is the real one.
type device interface {
	io.WriteCloser
	support() (*unix.WatchdogInfo, error)
	setTimeout(seconds int) error
	timeout() (seconds uint32, err error)
}

// Open starts the watchdog of the file system at root ("/" on a real machine).
// Errors wrap ErrNoDevice, or ErrNoWayOut when the watchdog was left alone
// because of it. A timeout that the driver refuses is no error: Info.Timeout
// differs then.
func Open(root string, o Options) (*Dog, error) {
	info, err := look(filepath.Join(root, sysDir), o)
	if err != nil {
		return nil, fmt.Errorf("cannot use %s: %w", Path, err)
	}
	// O_WRONLY is all that the interface needs; opening starts the timer.
	f, err := os.OpenFile(filepath.Join(root, Path), os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrNoDevice, err)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open watchdog: %w", err)
	}
	d := &Dog{info: info, dev: kernelDevice{f}}
	d.start(o.Timeout)
	return d, nil
}

// look reads, before anything is started, whether the watchdog can be stopped.
func look(dir string, o Options) (Info, error) {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return Info{}, ErrNoDevice
	}
	info := Info{Identity: attribute(dir, "identity")}
	if status, err := strconv.ParseUint(attribute(dir, "bootstatus"), 10, 32); err == nil {
		info.Fired = status&unix.WDIOF_CARDRESET != 0
	}
	switch attribute(dir, "nowayout") {
	case "0":
	case "1":
		info.NoWayOut = true
	default:
		// Without CONFIG_WATCHDOG_SYSFS there is no attribute. A watchdog that
		// runs on in a system that does not feed it would reset it for ever.
		if !o.Endless {
			return Info{}, fmt.Errorf("%w: %s/nowayout does not tell", ErrNoWayOut, sysDir)
		}
	}
	if info.NoWayOut && !o.Endless {
		return Info{}, fmt.Errorf("%w: the kernel or the driver's parameter says nowayout", ErrNoWayOut)
	}
	return info, nil
}

// attribute reads one short text of sysfs, "" when there is none.
func attribute(dir, name string) string {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 128))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// start sets the timeout and asks what came of it. A driver that cannot answer
// is fed as if it had obeyed.
func (d *Dog) start(timeout time.Duration) {
	if s, err := d.dev.support(); err == nil {
		d.info.Identity = unix.ByteSliceToString(s.Identity[:])
		d.info.StopsOnClose = s.Options&unix.WDIOF_MAGICCLOSE == 0
	}
	d.info.Timeout = timeout
	refused := d.dev.setTimeout(int(timeout / time.Second))
	if seconds, err := d.dev.timeout(); err == nil && seconds > 0 {
		d.info.Timeout = time.Duration(seconds) * time.Second
	} else if refused != nil {
		d.info.Timeout = shortest
	}
}

// shortest is taken for the timeout of a driver that neither takes one nor
// tells its own.
const shortest = 4 * time.Second

// Feed starts the timer anew. After Disarm it arms the watchdog again.
func (d *Dog) Feed() error {
	// A write feeds with every driver, and takes a magic close back.
	if _, err := d.dev.Write([]byte{0}); err != nil {
		return fmt.Errorf("cannot feed watchdog: %w", err)
	}
	return nil
}

// Disarm makes the end of this process's hold of the device (Close, or exec)
// stop the watchdog; until then it runs.
func (d *Dog) Disarm() error {
	if _, err := d.dev.Write([]byte{'V'}); err != nil {
		return fmt.Errorf("cannot disarm watchdog: %w", err)
	}
	return nil
}

// Close gives the device back. Without Disarm before it the watchdog runs on
// (but see Info.StopsOnClose).
func (d *Dog) Close() error {
	if err := d.dev.Close(); err != nil {
		return fmt.Errorf("cannot close watchdog: %w", err)
	}
	return nil
}

// kernelDevice is a device of the running kernel.
type kernelDevice struct{ *os.File }

func (k kernelDevice) support() (*unix.WatchdogInfo, error) {
	return unix.IoctlGetWatchdogInfo(int(k.Fd()))
}

func (k kernelDevice) setTimeout(seconds int) error {
	return unix.IoctlSetPointerInt(int(k.Fd()), unix.WDIOC_SETTIMEOUT, seconds)
}

func (k kernelDevice) timeout() (uint32, error) {
	return unix.IoctlGetUint32(int(k.Fd()), unix.WDIOC_GETTIMEOUT)
}
