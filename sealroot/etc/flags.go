package etc

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// What chattr(1) makes immutable or append-only in /etc is so in the overlay alone: since
// Linux 5.15 the kernel keeps it in an extended attribute of the upper layer's file
// (fs/overlayfs/util.c, ovl_set_protattr), which has no such flag itself, so that layers
// are written, moved and removed as others. In a lower layer, and of the upper layer's own
// root, the attribute means nothing.

// flagsAttribute has one letter for each flag, as lsattr(1) shows them.
const flagsAttribute = "trusted.overlay.protattr"

// maxFlags is the longest value that the kernel reads (OVL_PROTATTR_MAX).
const maxFlags = 32

// parseFlags reads the attribute: as the kernel does, nothing from a value with anything
// else in it than the two letters.
func parseFlags(value []byte) (flags string) {
	if len(value) > maxFlags || strings.Trim(string(value), "ai") != "" {
		return ""
	}
	for _, flag := range []string{"a", "i"} { // in the order that the kernel writes
		if strings.Contains(string(value), flag) {
			flags += flag
		}
	}
	return flags
}

// writeFlags gives a file that has none its flags.
func writeFlags(f *os.File, flags string) error {
	if flags == "" {
		return nil
	}
	if err := unix.Fsetxattr(int(f.Fd()), flagsAttribute, []byte(flags), 0); err != nil {
		return fmt.Errorf("cannot set extended attribute %s: %w", flagsAttribute, err)
	}
	return nil
}

// lowest is a tree whose files lie in no upper layer.
func (t tree) lowest() tree {
	for name, e := range t.entries {
		if e.Flags != "" {
			e.Flags = ""
			t.entries[name] = e
		}
	}
	return t
}
