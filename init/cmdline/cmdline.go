// Package cmdline reads the kernel command line through an allow-list. Whoever
// holds the boot loader's console writes that line, so it may choose between
// things that are trusted anyway and make the boot less chatty, and nothing else.
package cmdline

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"sealroot/verity"
)

// Path is where the kernel shows its command line.
const Path = "/proc/cmdline"

// maxLength is more than any architecture's COMMAND_LINE_SIZE that we boot on,
// in bytes (x86: 2048).
const maxLength = 4096

// CommandLine is what PID 1 takes from the kernel command line.
type CommandLine struct {
	// Slot is the slot whose kernel and initramfs were loaded: "a", "b" or "c",
	// "" when not told.
	Slot string
	// DiskUUID is the partition UUID of the ESP that the loader started from,
	// lower case; "" when not told.
	DiskUUID string
	// Reset asks for a factory reset: a person at the console has to agree.
	Reset bool
	// Quiet asks for warnings only.
	Quiet bool
	// RootHash and Init are those of roothash= (or usrhash=) and init=, "" when not
	// given. Only ParseVouched sets them.
	RootHash, Init string
	// Consoles are the devices of console=, in order and without options:
	// "ttyS0". The last one is /dev/console.
	Consoles []string
	// Ignored are words that are not for PID 1, cut and made printable.
	Ignored []string
	// Refused are words that were meant for an init like this one and are not
	// honoured: known to be dangerous, or ours with an unusable value. Printable.
	Refused []string
}

// Parse reads the line and never fails: what cannot be used is in Ignored or
// Refused. A line that is too long is refused as a whole.
func Parse(line string) CommandLine { return parse(line, "") }

// ParseVouched is Parse for a line that is known to be the image builder's own:
// it honours init= as well, and roothash= for an image of the role root, usrhash= for
// one of the role usr.
func ParseVouched(line, role string) CommandLine { return parse(line, role) }

// parse reads the line; role is "" for one that nobody vouches for.
func parse(line, role string) CommandLine {
	if len(line) > maxLength {
		return CommandLine{Refused: []string{fmt.Sprintf("command line of %d bytes", len(line))}}
	}
	var c CommandLine
	vouched := role != ""
	var slots, disks, hashes, inits []string
	for _, w := range split(line) {
		switch {
		case w.afterDashes:
			c.Ignored = append(c.Ignored, w.printable())
		case w.name == "sealroot.slot":
			slots = append(slots, w.value)
		case w.name == "sealroot.disk":
			disks = append(disks, strings.ToLower(w.value))
		case w.name == "sealroot.reset" && !w.hasValue:
			c.Reset = true
		case w.name == "quiet":
			c.Quiet = true
		case w.name == "panic": // the kernel's, and known
		case w.name == "console":
			c.console(w)
		case vouched && w.name == role+"hash":
			hashes = append(hashes, w.value)
		case vouched && w.name == "init":
			inits = append(inits, w.value)
		case vouched && strings.HasPrefix(w.name, "systemd.verity_"): // read at build time, see Partitions
		case isDangerous(w.name):
			c.Refused = append(c.Refused, w.printable())
		default:
			c.Ignored = append(c.Ignored, w.printable())
		}
	}
	c.Slot = c.one("sealroot.slot", slots, isSlot)
	c.DiskUUID = c.one("sealroot.disk", disks, isUUID)
	c.RootHash = c.one(role+"hash", hashes, verity.IsRootHash)
	c.Init = c.one("init", inits, isProgram)
	return c
}

// one returns the value of a word of ours. Values that contradict each other
// count as not told: neither loaders nor kernels agree on which one wins.
func (c *CommandLine) one(name string, values []string, valid func(string) bool) string {
	if len(values) == 0 {
		return ""
	}
	first := values[0]
	if valid(first) && !slices.ContainsFunc(values, func(v string) bool { return v != first }) {
		return first
	}
	for _, v := range values {
		c.Refused = append(c.Refused, word{name: name, value: v, hasValue: true}.printable())
	}
	return ""
}

func (c *CommandLine) console(w word) {
	device, _, _ := strings.Cut(w.value, ",")
	// The name becomes part of a path below /dev.
	ok := device != "" && len(device) <= 16
	for _, r := range device {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9')
	}
	if !ok {
		c.Refused = append(c.Refused, w.printable())
		return
	}
	// The kernel prefers a console that is named again.
	c.Consoles = slices.DeleteFunc(c.Consoles, func(d string) bool { return d == device })
	c.Consoles = append(c.Consoles, device)
}

func isSlot(s string) bool { return s == "a" || s == "b" || s == "c" }

// isProgram accepts a clean absolute path.
func isProgram(s string) bool { return len(s) > 1 && s[0] == '/' && path.Clean(s) == s }

func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, r := range s {
		switch i {
		case 8, 13, 18, 23:
			if r != '-' {
				return false
			}
		default:
			if (r < '0' || r > '9') && (r < 'a' || r > 'f') {
				return false
			}
		}
	}
	return true
}

// isDangerous knows the words that make other inits trust another root, stop
// for a shell, say more than they should or run another program, or the kernel
// leave something out, wake another system or obey the keyboard; those the kernel
// has obeyed by now, and a person should know. It takes - and _ for the same.
func isDangerous(name string) bool {
	name = strings.ReplaceAll(name, "_", "-")
	switch name {
	case "init", "rdinit", "root", "roothash", "rootimage", "usr", "usrhash", "ostree", "composefs",
		"emergency", "rescue", "single", "s", "1", "debug", "debug-shell", "break",
		"systemd.debug-shell", "systemd.break", "systemd.image-policy", "systemd.volatile", "dm-mod.create",
		"sysrq-always-enabled", "initcall-blacklist", "resume":
		return true
	}
	for _, prefix := range []string{"sealroot.", "systemd.verity", "verity.", "mount.usr", "rd.", "kgdb"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}
