package mount

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Attr is a set of attributes of one mount (not of its file system), as
// mount_setattr(2) takes them.
type Attr uint64

// The attributes. They have the kernel's values.
const (
	ReadOnly    Attr = unix.MOUNT_ATTR_RDONLY
	NoSUID      Attr = unix.MOUNT_ATTR_NOSUID
	NoDev       Attr = unix.MOUNT_ATTR_NODEV
	NoExec      Attr = unix.MOUNT_ATTR_NOEXEC
	NoATime     Attr = unix.MOUNT_ATTR_NOATIME
	NoSymfollow Attr = unix.MOUNT_ATTR_NOSYMFOLLOW
)

// ErrOption means that a word is not the name of a mount attribute.
var ErrOption = errors.New("unknown mount option")

// attrNames are the words of mount(8), in the order in which they are printed.
var attrNames = [...]struct {
	attr Attr
	name string
}{
	{ReadOnly, "ro"},
	{NoSUID, "nosuid"},
	{NoDev, "nodev"},
	{NoExec, "noexec"},
	{NoATime, "noatime"},
	{NoSymfollow, "nosymfollow"},
}

// Names lists the attributes as words of mount(8).
func (a Attr) Names() []string {
	var names []string
	for _, n := range attrNames {
		if a&n.attr != 0 {
			names = append(names, n.name)
		}
	}
	return names
}

// ParseAttr reads a list of words such as nosuid; an unknown one is ErrOption.
func ParseAttr(words []string) (Attr, error) {
	var a Attr
next:
	for _, w := range words {
		for _, n := range attrNames {
			if n.name == w {
				a |= n.attr
				continue next
			}
		}
		return 0, fmt.Errorf("%w %q", ErrOption, w)
	}
	return a, nil
}

// mountFlags are the attributes as mount(2) takes them.
func (a Attr) mountFlags() uintptr {
	flags := uintptr(a & (ReadOnly | NoSUID | NoDev | NoExec)) // the same bits
	if a&NoATime != 0 {
		flags |= unix.MS_NOATIME
	}
	if a&NoSymfollow != 0 {
		flags |= unix.MS_NOSYMFOLLOW
	}
	return flags
}
