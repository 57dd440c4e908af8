package state

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"sealroot/state/layout"
)

// EscrowName is the file beside encrypted.img with the recovery key, encrypted
// to the certificates of the configuration (package escrow).
const EscrowName = layout.Escrow

// WriteEscrow keeps a message as the file EscrowName in dir, and is done when it
// is on stable storage. It is for a volume that has no name yet: one of that name
// is left over from a volume that a power cut ended, and is replaced.
//
// Crash points: until the old file is gone there is the old one, then none, then
// the new one, whole. The volume of each of them never got its name.
func WriteEscrow(dir *os.File, message []byte) error {
	f, err := unnamed(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(message); err != nil {
		return fmt.Errorf("cannot write %s: %w", EscrowName, err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("cannot sync %s: %w", EscrowName, err)
	}
	// crash point: only the file of a volume that was never finished is there
	if err := unix.Unlinkat(int(dir.Fd()), EscrowName, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("cannot remove the old %s: %w", EscrowName, err)
	}
	if err := give(f, dir, EscrowName); err != nil {
		return err
	}
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("cannot sync the state partition: %w", err)
	}
	// crash point: the escrow is there, its volume is not; a new one replaces it
	return nil
}

// give names a file that unnamed made.
func give(f, dir *os.File, name string) error {
	err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), int(dir.Fd()), name, unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		return fmt.Errorf("cannot name %s: %w", name, err)
	}
	return nil
}

// HasEscrow tells whether a plain file EscrowName lies in dir; whose it is only
// the holder of a private key can say.
func HasEscrow(dir *os.File) bool {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), EscrowName, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}
