package state

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/state/layout"
)

// A factory reset that keeps /home leaves the volume as it is, key and keyslots too,
// and takes away what is in it. It is no more than that: nothing is destroyed that a
// key of the volume would not still decrypt.
//
// Crash points:
//
//  1. what goes is renamed, one name after the other, into a folder of its own; sync.
//     The request is there: the next boot goes on, before anything of it is used.
//  2. the request is removed, sync. From here on the reset is done.
//  3. the folder is removed. The next boot removes what is left of it.

// SetAside moves what is not to be kept out of the way: all names in the mounted
// volume with that root but those that keep names, and those that hold its keys, its
// rollback floor and the request. It is done when that is on stable storage.
func SetAside(root *os.File, keep func(name string) bool, random io.Reader) error {
	var id [8]byte
	if _, err := io.ReadFull(random, id[:]); err != nil {
		return err
	}
	aside := layout.Removed + hex.EncodeToString(id[:])
	if err := unix.Mkdirat(int(root.Fd()), aside, 0o700); err != nil {
		return fmt.Errorf("cannot make %s: %w", aside, err)
	}
	n := 0
	for _, dir := range [...]string{".", layout.Private} {
		names, err := namesIn(root, dir)
		if err != nil {
			return err
		}
		for _, name := range names {
			from := path.Join(dir, name)
			if stays(from) || dir == "." && keep(name) {
				continue
			}
			n++
			if err := unix.Renameat(int(root.Fd()), from, int(root.Fd()), aside+"/"+strconv.Itoa(n)); err != nil {
				return fmt.Errorf("cannot move %.200q out of the way: %w", from, err)
			}
		}
	}
	if err := unix.Syncfs(int(root.Fd())); err != nil {
		return fmt.Errorf("cannot sync the volume: %w", err)
	}
	return nil
}

// stays says whether a path in the volume is of use to the volume itself.
func stays(path string) bool {
	return slices.Contains([]string{
		layout.Private, "lost+found", layout.ResetRequest, layout.RollbackFloor, layout.RecoveryKey, layout.RecoveryKey + layout.PendingSuffix,
		layout.ManageKey, layout.ManageKey + layout.PendingSuffix,
	}, path) || strings.HasPrefix(path, layout.Removed)
}

// RemoveAside removes what SetAside has moved, also in a boot before this one.
func RemoveAside(root *os.File) error {
	names, err := namesIn(root, layout.Private)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, name := range names {
		if strings.HasPrefix(path.Join(layout.Private, name), layout.Removed) {
			err = errors.Join(err, os.RemoveAll(path.Join(root.Name(), layout.Private, name)))
		}
	}
	return err
}

// namesIn lists a directory of the volume, which is ours.
func namesIn(root *os.File, dir string) ([]string, error) {
	fd, err := unix.Openat(int(root.Fd()), dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	return f.Readdirnames(-1)
}
