// Package uppers collects upper layers of overlays that belonged to a slot with
// another image in it.
package uppers

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/mount"
	"sealroot/state/layout"
	"sealroot/state/seed"
)

// maxNames bounds the directories that are looked at, those of a configuration and of
// the images that a slot ever had.
const maxNames = 1000

// Collect removes from the volume (mounted at this path) what a slot's overlays keep
// for other images than the one with this root hash, which the slot has now: nobody
// can boot those from it any more. An empty hash is for all of them. It returns how many
// it removed, also with an error.
//
// They are renamed into a folder first, sync, and removed there: a power cut leaves
// whole ones, or what no image uses and the next call removes.
func Collect(volume, slot, rootHash string) (removed int, err error) {
	root, err := mount.OpenRoot(volume)
	if err == nil {
		defer root.Close()
		removed, err = collect(root, slot, rootHash)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return removed, nil
	}
	if err != nil {
		return removed, fmt.Errorf("cannot collect upper layers of slot %s: %w", slot, err)
	}
	return removed, nil
}

func collect(volume *os.File, slot, rootHash string) (removed int, err error) {
	overlays, err := names(volume, layout.Overlays)
	if err != nil {
		return 0, err
	}
	var unused []string
	var errs []error
	for _, overlay := range overlays {
		at := path.Join(layout.Overlays, overlay)
		list, err := names(volume, at)
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, mount.ErrUnsafePath) {
			errs = append(errs, err) // nil, or what no overlay can be in either
		}
		for _, name := range list {
			if isUnused(name, slot, rootHash) {
				unused = append(unused, path.Join(at, name))
			}
		}
	}
	if len(unused) > 0 {
		removed, err = moveAside(volume, unused)
		errs = append(errs, err)
	}
	// crash point: all that the folder has
	private, err := openDir(volume, layout.Private)
	if err == nil {
		err = seed.Remove(private, path.Base(layout.OverlaysRemoved))
		private.Close()
	}
	return removed, errors.Join(append(errs, err)...)
}

// moveAside moves directories of the volume into the folder of those that go, durably.
func moveAside(volume *os.File, list []string) (moved int, err error) {
	root := int(volume.Fd())
	if err := unix.Mkdirat(root, layout.OverlaysRemoved, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return 0, fmt.Errorf("cannot make %s: %w", layout.OverlaysRemoved, err)
	}
	aside, err := openDir(volume, layout.OverlaysRemoved)
	if err != nil {
		return 0, err
	}
	defer aside.Close()
	n := 0
	for _, from := range list {
		var err error = unix.EEXIST // what an interrupted call has left
		for errors.Is(err, unix.EEXIST) {
			n++
			err = unix.Renameat2(root, from, root, layout.OverlaysRemoved+"/"+strconv.Itoa(n), unix.RENAME_NOREPLACE)
		}
		if err != nil {
			return moved, fmt.Errorf("cannot move %s aside: %w", from, err)
		}
		moved++
	}
	return moved, unix.Syncfs(int(aside.Fd()))
}

// isUnused tells whether a directory has the name that layout.SlotUpper gives one of
// this slot for another image.
func isUnused(name, slot, rootHash string) bool {
	hash, ok := strings.CutPrefix(name, slot+"-")
	return ok && hash != "" && strings.Trim(hash, "0123456789abcdef") == "" && hash != rootHash
}

func openDir(volume *os.File, at string) (*os.File, error) {
	return mount.OpenBeneath(volume, at, unix.O_RDONLY|unix.O_DIRECTORY, mount.Strict)
}

func names(volume *os.File, at string) ([]string, error) {
	dir, err := openDir(volume, at)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	list, err := dir.Readdirnames(maxNames)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return list, nil
}
