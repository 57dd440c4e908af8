package resize

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/state"
)

// ioctls of linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// whileReadOnly runs change while nobody can make the inner file system writable, by
// whichever of its mounts: the kernel refuses that of one that is frozen, and has nothing
// to write in one that is read-only. One that is frozen already stays so: whoever did that
// relies on it, if it was not a change that was killed. Errors: ErrCopied where it is
// writable, ErrFrozen.
func (v *Volume) whileReadOnly(change func() error) error {
	if err := v.provedReadOnly(); err != nil {
		return err
	}
	return v.whileFrozen(func() error {
		if err := v.provedReadOnly(); err != nil { // until it was frozen, anybody could
			return err
		}
		return change()
	})
}

// whileFrozen runs change while nobody writes to the inner file system. Errors: ErrFrozen
// where somebody else has it frozen; then change is not run.
func (v *Volume) whileFrozen(change func() error) (err error) {
	// So that the freeze has little to write, while which everybody who writes waits. What goes
	// wrong with it goes wrong there again.
	_ = unix.Syncfs(int(v.root.Fd()))
	if v.undisturbed != nil {
		defer v.undisturbed()()
	}
	err = unix.IoctlSetInt(int(v.root.Fd()), fiFreeze, 0)
	if errors.Is(err, unix.EBUSY) {
		err = ErrFrozen
	}
	if err != nil {
		return fmt.Errorf("cannot freeze the volume: %w", err)
	}
	defer func() { // also after a panic
		if terr := unix.IoctlSetInt(int(v.root.Fd()), fiThaw, 0); terr != nil {
			err = errors.Join(err, fmt.Errorf("cannot thaw the volume: %w", terr))
		}
	}()
	return change()
}

// provedReadOnly is an error where the file system itself is writable: statfs(2) has
// ST_RDONLY already where one of its mounts is not.
func (v *Volume) provedReadOnly() error {
	options, err := superOptions(v.root)
	if err == nil && !slices.Contains(options, "ro") {
		err = fmt.Errorf("cannot write the volume anew while it is writable; restart: it is read-only then, and sealroot state repair does it: %w", ErrCopied)
	}
	return err
}

// replayed is an error where what is in the journal was left there in this boot, because
// replaying it failed: a change of the file system would be lost at the next mount, or
// worse.
func (v *Volume) replayed() error {
	options, err := superOptions(v.root)
	left := func(o string) bool {
		return slices.Contains([]string{"norecovery", "noload", state.Ext4.NoReplay(), state.Btrfs.NoReplay()}, o)
	}
	if err == nil && slices.ContainsFunc(options, left) {
		err = fmt.Errorf("its journal could not be replayed in this boot; restart: %w", ErrReadOnly)
	}
	return err
}

// superOptions are the options of the file system that f lies on, whatever those of the
// mount are by which it was opened.
func superOptions(f *os.File) ([]string, error) {
	var st unix.Statx_t
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st)
	var text []byte
	if err == nil {
		text, err = os.ReadFile("/proc/self/mountinfo")
	}
	if err != nil {
		return nil, fmt.Errorf("cannot inspect how the volume is mounted: %w", err)
	}
	if options := optionsOf(text, st.Mnt_id); options != nil && st.Mask&unix.STATX_MNT_ID != 0 {
		return options, nil
	}
	return nil, errors.New("cannot find how the volume is mounted in /proc/self/mountinfo")
}

// optionsOf are the superblock's options of a mount, by the text of mountinfo
// (proc_pid_mountinfo(5)); nil: it is not there.
func optionsOf(mountinfo []byte, id uint64) []string {
	for line := range bytes.Lines(mountinfo) {
		if words := strings.Fields(string(line)); len(words) >= 10 && words[0] == strconv.FormatUint(id, 10) {
			return strings.Split(words[len(words)-1], ",")
		}
	}
	return nil
}
