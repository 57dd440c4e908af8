package boot

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/mount"
)

// systemd wants to know more than another init: that it did not start the machine
// itself, and when the initramfs began. It learns both as from the systemd of an
// initramfs: by arguments, and by a file in the form in which it hands its own state
// on (src/core/main.c, manager-serialize.c).

// moment is a time on the two clocks that systemd keeps.
type moment struct{ real, monotonic time.Duration }

func readMoment() moment {
	read := func(clock int32) time.Duration {
		var now unix.Timespec // stays zero on an error, which systemd takes for unknown
		_ = unix.ClockGettime(clock, &now)
		return time.Duration(now.Nano())
	}
	return moment{real: read(unix.CLOCK_REALTIME), monotonic: read(unix.CLOCK_MONOTONIC)}
}

// serialized is what systemd reads: the initramfs began at start. systemd-analyze
// shows the time from then on as the initrd's.
func serialized(start moment) []byte {
	return fmt.Appendf(nil, "initrd-timestamp=%d %d\n\n", start.real.Microseconds(), start.monotonic.Microseconds())
}

// isSystemd tells from where the init's path leads inside the root whether it is
// systemd.
func isSystemd(target string) bool { return strings.HasSuffix(target, "/systemd/systemd") }

// initArgs are the arguments of the real init, and the file that they speak of; nil
// for another init than systemd. What cannot be handed on is missed by nobody but
// systemd-analyze.
func (b *boot) initArgs(root *os.File, initPath string) ([]string, *os.File) {
	plain := []string{initPath}
	f, err := mount.OpenBeneath(root, initPath, unix.O_PATH, mount.InRoot)
	if err != nil {
		return plain, nil
	}
	defer f.Close()
	target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil || !isSystemd(target) {
		return plain, nil
	}
	state, err := mount.MemoryFile("systemd-state", serialized(b.clock.began))
	if err != nil {
		b.sys.Log.Warn("cannot hand the time of the initramfs to systemd: %v", err)
		return plain, nil
	}
	return append(plain, "--switched-root", "--system", "--deserialize", fmt.Sprint(state.Fd())), state
}

// volatileRoot is where systemd looks for the device below a root that is in memory
// or an overlay (blockdev-util.c), to find the other partitions of the disk.
const volatileRoot = "/run/systemd/volatile-root"

// leaveVolatileRoot tells systemd which device the image is on, where that is not
// the root's.
func (b *boot) leaveVolatileRoot() error {
	if !b.cfg.Root.Usr() && !b.layered {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(volatileRoot), 0o755); err != nil {
		return err
	}
	return os.Symlink("/dev/block/"+b.imageDevNo, volatileRoot)
}
