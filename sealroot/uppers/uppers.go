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
// can boot those from it any more. It returns how many it removed, also with an error.
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
	var errs []error
	for _, overlay := range overlays {
		n, err := collectOne(volume, overlay, slot, rootHash)
		removed += n
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, mount.ErrUnsafePath) {
			errs = append(errs, err) // nil, or what no overlay can be in either
		}
	}
	return removed, errors.Join(errs...)
}

func collectOne(volume *os.File, overlay, slot, rootHash string) (removed int, err error) {
	at := path.Join(layout.Overlays, overlay)
	list, err := names(volume, at)
	if err != nil {
		return 0, err
	}
	dir, err := mount.OpenBeneath(volume, at, unix.O_RDONLY|unix.O_DIRECTORY, mount.Strict)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	for _, name := range list {
		if !isUnused(name, slot, rootHash) {
			continue
		}
		if err := seed.Remove(dir, name); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}

// isUnused tells whether a directory has the name that layout.SlotUpper gives one of
// this slot for another image.
func isUnused(name, slot, rootHash string) bool {
	hash, ok := strings.CutPrefix(name, slot+"-")
	return ok && hash != "" && strings.Trim(hash, "0123456789abcdef") == "" && hash != rootHash
}

func names(volume *os.File, at string) ([]string, error) {
	dir, err := mount.OpenBeneath(volume, at, unix.O_RDONLY|unix.O_DIRECTORY, mount.Strict)
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
