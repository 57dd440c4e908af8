// Package exit ends a machine from memory. systemd-shutdown(8) moves the root to
// /oldroot at the very end and starts /shutdown from what was /run/initramfs
// (https://systemd.io/INITRD_INTERFACE): only there the file systems below the root
// are no longer held by whoever unmounts them.
package exit

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"sealroot/state/layout"
)

// Dir is where systemd-shutdown looks for Program.
const Dir = "/run/initramfs"

// Program is its name in Dir, and as the arguments have it once Dir is the root.
const Program = "/shutdown"

// oldRoot is where systemd-shutdown leaves the root that ends. A root of layers lies on
// files of the state partition, which is mounted in it: to end that, the state goes to
// oldState first.
const (
	oldRoot  = "/oldroot"
	oldState = "/oldstate"
)

// System is what is taken apart.
type System interface {
	// Mounts are the mount points in the order of /proc/self/mountinfo.
	Mounts() ([]string, error)
	// Mappers are the names of the device-mapper devices, Loops the paths of the
	// loop devices in use.
	Mappers() ([]string, error)
	Loops() ([]string, error)

	// Move moves a mount, with all below it, to a directory that it makes.
	Move(from, to string) error
	Unmount(where string) error
	ReadOnly(where string) error
	// Remove removes a device-mapper device, Detach detaches a loop device: while it
	// is in use, that has no effect or is an error.
	Remove(name string) error
	Detach(path string) error
	Sleep(d time.Duration)
}

// Something that is still held is tried again: udev's last children may read a disk.
const (
	idleRounds = 20
	idlePause  = 100 * time.Millisecond
)

// Apart unmounts all below the old root and takes away the devices under it, until
// nothing is left or nothing more goes. What is left is mounted read-only, as far as
// that goes, and named.
func Apart(sys System) (left []string) {
	before := ""
	for idle := 0; ; {
		s, err := look(sys)
		if err != nil {
			left = append(left, err.Error())
		}
		if s.empty() || idle == idleRounds {
			for _, where := range s.mounts {
				if err := sys.ReadOnly(where); err != nil {
					left = append(left, err.Error())
				}
			}
			return append(left, s.names()...)
		}
		if now := strings.Join(s.names(), "\n"); now != before {
			before, idle, left = now, 0, nil
		} else {
			if idle++; idle == 1 {
				_ = sys.Move(oldRoot+layout.State, oldState)
			}
			sys.Sleep(idlePause)
		}
		s.takeAway(sys)
	}
}

// held is what is still there.
type held struct{ mounts, mappers, loops []string }

func (h held) empty() bool { return len(h.mounts)+len(h.mappers)+len(h.loops) == 0 }

func (h held) names() (all []string) {
	for _, list := range []struct {
		kind  string
		names []string
	}{{"mount", h.mounts}, {"device-mapper device", h.mappers}, {"loop device", h.loops}} {
		for _, name := range list.names {
			all = append(all, list.kind+" "+name)
		}
	}
	return all
}

func look(sys System) (h held, err error) {
	mounts, err := sys.Mounts()
	if err == nil {
		h.mounts = append(below(mounts, oldRoot), below(mounts, oldState)...)
		h.mappers, err = sys.Mappers()
	}
	if err == nil {
		h.loops, err = sys.Loops()
	}
	return h, err
}

// below are the mount points in a directory, the last mounted first.
func below(mounts []string, dir string) (in []string) {
	for _, m := range mounts {
		if m == dir || strings.HasPrefix(m, dir+"/") {
			in = append([]string{m}, in...)
		}
	}
	return in
}

// takeAway tries everything once, what lies on something before that. What fails is
// still there at the next look, and is named if it is there at the last.
func (h held) takeAway(sys System) {
	for _, where := range h.mounts {
		_ = sys.Unmount(where)
	}
	for _, name := range h.mappers {
		_ = sys.Remove(name)
	}
	for _, path := range h.loops {
		_ = sys.Detach(path)
	}
}

// parseMounts reads mount points from the text of mountinfo (proc_pid_mountinfo(5)):
// the fifth word of a line, with \040 for a space.
func parseMounts(text string) (mounts []string) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(text) {
		if words := strings.Fields(line); len(words) > 4 {
			mounts = append(mounts, unescape.Replace(words[4]))
		}
	}
	return mounts
}

// unwritten reads from the text of meminfo (proc_meminfo(5)) how much waits for a disk, bytes.
func unwritten(text string) (n int64) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "Dirty:" && words[0] != "Writeback:" {
			continue
		}
		if kib, err := strconv.ParseInt(words[1], 10, 64); err == nil {
			n += kib << 10
		}
	}
	return n
}

// Ending is how the machine ends.
type Ending string

// The words that systemd-shutdown gives its program.
const (
	PowerOff Ending = "poweroff"
	Reboot   Ending = "reboot"
	Halt     Ending = "halt"
	KExec    Ending = "kexec"
)

// ParseEnding reads the first argument of Program. A word that is not known is
// Reboot, with an error: a machine that nobody visits must come back.
func ParseEnding(args []string) (Ending, error) {
	if len(args) == 0 {
		return Reboot, fmt.Errorf("cannot tell how to end: no argument")
	}
	switch e := Ending(args[0]); e {
	case PowerOff, Reboot, Halt, KExec:
		return e, nil
	}
	return Reboot, fmt.Errorf("cannot tell how to end: %q is none of %s, %s, %s, %s", args[0], PowerOff, Reboot, Halt, KExec)
}
