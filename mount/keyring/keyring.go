// Package keyring hands a volume key to dm-crypt through the kernel's keyring,
// so that the key itself appears in no device-mapper table, which anybody with
// the right privilege can read.
package keyring

import (
	"errors"
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrDescription means that a key's description cannot be used in a
// device-mapper table or as a logon key.
var ErrDescription = errors.New("bad key description")

// With runs use while the calling thread's keyring holds key as a logon key,
// the type whose payload user space can never read back. Afterwards the key is
// revoked and unlinked, whatever use did; dm-crypt has copied it by then.
//
// The keyring belongs to one thread, so use must load the table itself and not
// in another goroutine; With keeps the goroutine on its thread. The description
// needs a colon (keyctl(2), "logon") and no white space. The caller still owns
// key and wipes it.
func With(description string, key []byte, use func() error) (err error) {
	if err := check(description); err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	id, err := unix.AddKey("logon", description, key, unix.KEY_SPEC_THREAD_KEYRING)
	if err != nil {
		return fmt.Errorf("cannot add key %s to the kernel's keyring: %w", description, err)
	}
	defer func() { err = errors.Join(err, drop(id, description)) }()
	return use()
}

func check(description string) error {
	prefix, rest, ok := strings.Cut(description, ":")
	if !ok || prefix == "" || rest == "" || len(description) > 255 {
		return fmt.Errorf("%w %q: want prefix:name", ErrDescription, description)
	}
	for _, r := range description {
		if r <= ' ' || r > '~' {
			return fmt.Errorf("%w %q: want printable ASCII", ErrDescription, description)
		}
	}
	return nil
}

func drop(id int, description string) error {
	if _, err := unix.KeyctlInt(unix.KEYCTL_REVOKE, id, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot revoke key %s: %w", description, err)
	}
	if _, err := unix.KeyctlInt(unix.KEYCTL_UNLINK, id, unix.KEY_SPEC_THREAD_KEYRING, 0, 0); err != nil {
		return fmt.Errorf("cannot unlink key %s: %w", description, err)
	}
	return nil
}
