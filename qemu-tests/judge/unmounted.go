package judge

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

// ErrMounted: a file system was not unmounted in order, so that the next mount has to
// replay its journal.
var ErrMounted = errors.New("a file system is not marked clean")

// Unmounted judges what a machine left that ended in order: the file systems of the state
// partition and of the volume in it are marked clean, neither has anything to replay, and
// their checkers find nothing. Of a case it needs State, Dir, Unlock and what the file
// systems are. Errors: ErrMounted, ErrDamaged, those of the tools; each says of which of
// the two.
func (c Case) Unmounted() error {
	// Before the outer one is mounted to read the volume.
	outer := c.Outer.unmounted(c.State)
	plain := filepath.Join(c.Dir, "plain")
	_, _, err := c.open(plain)
	if err != nil {
		return errors.Join(within("state partition", outer), err)
	}
	defer os.Remove(plain)
	inner := c.Inner.unmounted(plain)
	if inner == nil {
		inner = c.Inner.clean(plain)
	}
	return errors.Join(within("state partition", outer), within("volume", inner))
}

func within(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("the %s: %w", what, err)
}

// What dumpe2fs -h and btrfs inspect-internal dump-super show of a file system in order.
var (
	ext4Clean    = regexp.MustCompile(`(?m)^Filesystem state: +clean$`)
	ext4Recovery = regexp.MustCompile(`(?m)^Filesystem features: .*\bneeds_recovery\b`)
	btrfsNoLog   = regexp.MustCompile(`(?m)^log_root\s+0$`)
)

// unmounted tells whether the superblock says that the file system was unmounted in order.
func (f Filesystem) unmounted(image string) error {
	text, err := f.superblock(image)
	if err != nil {
		return err
	}
	clean := ext4Clean.MatchString(text) && !ext4Recovery.MatchString(text)
	if f == Btrfs {
		clean = btrfsNoLog.MatchString(text)
	}
	if !clean {
		return fmt.Errorf("%w:\n%s", ErrMounted, text)
	}
	return nil
}
