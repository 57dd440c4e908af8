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
	"sealroot/state/seed"
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
//
// Where a name cannot be moved, those before it are moved back, sync, and the request is
// removed: all is as it was. A cut between these leaves the request and the folder.

// ErrNotSetAside: SetAside has failed, and everything is in its place.
var ErrNotSetAside = errors.New("cannot move all out of the way, nothing was moved")

// SetAside moves what is not to be kept out of the way: all names in the mounted
// volume with that root but those that keep names, and those that hold its keys, its
// rollback floor and the request. It is done when that is on stable storage. Errors:
// ErrNotSetAside; with any other a part of it has been moved, in this boot or before.
func SetAside(root *os.File, keep func(name string) bool, random io.Reader) error {
	before, err := asideFolders(root)
	if err != nil {
		return err
	}
	var id [8]byte
	aside, moved := "", []string(nil)
	if _, err = io.ReadFull(random, id[:]); err == nil {
		aside = layout.Removed + hex.EncodeToString(id[:])
		err = unix.Mkdirat(int(root.Fd()), aside, 0o700)
	}
	if err == nil {
		moved, err = moveAside(root, aside, keep)
	}
	if err == nil {
		err = unix.Syncfs(int(root.Fd()))
	} else if len(before) == 0 && moveBack(root, aside, moved) == nil {
		return fmt.Errorf("%w: %w", ErrNotSetAside, err)
	}
	if err != nil {
		return fmt.Errorf("cannot move all out of the way: %w", err)
	}
	return nil
}

// moveAside moves names into the folder; moved are those that it has moved, of which the
// first is called 1 there.
func moveAside(root *os.File, aside string, keep func(name string) bool) (moved []string, err error) {
	for _, dir := range [...]string{".", layout.Private} {
		names, err := namesIn(root, dir)
		if err != nil {
			return moved, err
		}
		for _, name := range names {
			from := path.Join(dir, name)
			if stays(from) || dir == "." && keep(name) {
				continue
			}
			if err := unix.Renameat(int(root.Fd()), from, int(root.Fd()), aside+"/"+strconv.Itoa(len(moved)+1)); err != nil {
				return moved, fmt.Errorf("%.200q: %w", from, err)
			}
			moved = append(moved, from)
		}
	}
	return moved, nil
}

// moveBack undoes moveAside, and removes the folder if there is one.
func moveBack(root *os.File, aside string, moved []string) error {
	for i, to := range moved {
		if err := unix.Renameat(int(root.Fd()), aside+"/"+strconv.Itoa(i+1), int(root.Fd()), to); err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(int(root.Fd()), aside, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return unix.Syncfs(int(root.Fd()))
}

// stays says whether a path in the volume is of use to the volume itself.
func stays(path string) bool {
	return slices.Contains([]string{
		layout.Private, "lost+found", layout.ResetRequest, layout.RollbackFloor, layout.RecoveryKey, layout.RecoveryKey + layout.PendingSuffix,
		layout.ManageKey, layout.ManageKey + layout.PendingSuffix, layout.Balloons,
	}, path) || strings.HasPrefix(path, layout.Removed)
}

// RemoveAside removes what SetAside has moved, also in a boot before this one.
func RemoveAside(root *os.File) error {
	fd, err := unix.Openat(int(root.Fd()), layout.Private, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return &os.PathError{Op: "open", Path: layout.Private, Err: err}
	}
	private := os.NewFile(uintptr(fd), layout.Private)
	defer private.Close()
	folders, err := asideFolders(root)
	for _, name := range folders {
		err = errors.Join(err, seed.Remove(private, name))
	}
	return err
}

// asideFolders lists the folders of SetAside, below layout.Private.
func asideFolders(root *os.File) ([]string, error) {
	names, err := namesIn(root, layout.Private)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	folders := names[:0]
	for _, name := range names {
		if strings.HasPrefix(layout.Private+"/"+name, layout.Removed) {
			folders = append(folders, name)
		}
	}
	return folders, err
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
