package etc

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/state/seed"
)

// tidy ends what a merge has begun before, as a power cut left it: next is the old
// layer when the live one was merged after it, and else not whole. A layer that nobody
// merged was the old one of the first merge, and is kept for a trial.
func (m *merger) tidy(live owner) error {
	next, err := m.dir(m.kept, nextDir)
	if err != nil {
		return err
	}
	if next != nil {
		old, err := readOwner(next)
		if err != nil {
			return err
		}
		before, err := m.isBefore(next, old, live)
		if err != nil {
			return err
		}
		switch {
		case before:
			err = m.step("put before aside", func() error { return rename(m.kept, nextDir, m.kept, beforeDir) })
		case old.image == "" || old.merge >= live.merge:
			err = m.step("remove next", func() error { return seed.Remove(m.kept, nextDir) })
		default:
			err = m.putAside(m.kept, nextDir, old)
		}
		if err != nil {
			return err
		}
	}
	if err := m.tidyBefore(); err != nil {
		return err
	}
	images, err := names(m.kept)
	if err != nil {
		return err
	}
	images = slices.DeleteFunc(images, func(name string) bool { return !isIdentity(name) })
	for _, image := range images {
		if err := m.tidyFailed(image); err != nil {
			return err
		}
	}
	for _, image := range images { // now: what is removed tells which of them was on trial
		if err := m.tidyMerges(image, live); err != nil {
			return err
		}
	}
	return nil
}

// tidyMerges removes the merges of an image that no layer comes from.
func (m *merger) tidyMerges(image string, live owner) error {
	dir, err := m.dir(m.kept, image)
	if err != nil || dir == nil {
		return err
	}
	aside, err := m.aside(image)
	if err != nil {
		return err
	}
	list, err := names(dir)
	if err != nil {
		return err
	}
	for _, name := range list {
		if !strings.HasPrefix(name, "merge-") || image == live.image && name == mergeDir(live.merge) || name == mergeDir(aside) {
			continue
		}
		if err := m.step("remove "+name, func() error { return seed.Remove(dir, name) }); err != nil {
			return err
		}
	}
	return nil
}

// isBefore tells whether next is the layer of before the first merge, with something in
// it, for an image on trial. Once that has its name, next is one that was being made.
func (m *merger) isBefore(next *os.File, old, live owner) (bool, error) {
	if old.image != "" || live.merge != 1 {
		return false, nil
	}
	there, err := m.dir(m.kept, beforeDir)
	if err != nil || there != nil {
		return false, err
	}
	trial, err := m.onTrial(live.image + "/" + mergeDir(live.merge))
	if err != nil || !trial {
		return false, err
	}
	list, err := names(next)
	return len(list) > 0, err
}

// putAside gives the layer of an image, in dir as name, its own name: that of one that
// failed where the image was on trial, so that what was changed then is not taken for
// what a committed image had.
func (m *merger) putAside(dir *os.File, name string, old owner) error {
	to, err := m.ensure(m.kept, old.image)
	if err != nil {
		return err
	}
	trial, err := m.onTrial(old.image + "/" + mergeDir(old.merge))
	if err != nil {
		return err
	}
	aside := upperDir
	if trial {
		aside = failedDir
	}
	if err := m.step("remove "+aside, func() error { return seed.Remove(to, aside) }); err != nil {
		return err
	}
	return m.step("put aside", func() error { return rename(dir, name, to, aside) })
}

// rename gives an old layer a name.
func rename(from *os.File, name string, to *os.File, as string) error {
	if err := unix.Renameat2(int(from.Fd()), name, int(to.Fd()), as, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("cannot rename the old upper layer: %w", err)
	}
	return syncDirs(from, to)
}
