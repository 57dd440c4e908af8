package etc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"sealroot/state/etcmerge"
	"sealroot/state/layout"
	"sealroot/state/seed"
)

// Packages have directories of their own in /var. Those of a daemon that a new image
// brings are not in the machine's /var, which was filled once, from an older one.

// newDirTmp is the unfinished copy of a directory, below layout.EtcKept.
const newDirTmp = "var.tmp"

// maxVarTries is how many boots try to add them, each within the time that PID 1 has for
// a merge.
const maxVarTries = 5

// errGivenUp: none of them came to its end.
var errGivenUp = errors.New("it was given up")

// markVar makes the mark (layout.EtcPending) that directories are to be added: a byte for
// each boot that may try, so that nothing has to be written to a full volume. An image that
// comes back adds none: what the machine lacks of its directories was moved or removed since
// they were added, as the rules for migrated data have it. One whose first merge was cut,
// or that gave up, has not added them.
func (m *merger) markVar(image string) error {
	if m.Var == nil {
		return nil
	}
	dir, err := m.ensure(m.kept, image)
	if err != nil {
		return err
	}
	switch err := unix.Faccessat(int(dir.Fd()), addedFile, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("cannot look for %s: %w", addedFile, err)
	}
	name := path.Base(layout.EtcPending(image))
	if err := seed.Remove(dir, name); err != nil {
		return err
	}
	return createFile(dir, name, make([]byte, maxVarTries))
}

// varDirs copies the directories of the image's /var that the machine has not, with all
// that they hold, as long as there is the mark; what it has stays. Each is there whole or
// not at all. Their owners are those of the live layer's account files, by name. A problem
// costs directories alone, and the next boot tries again.
//
// Crash points: one try less, and the directories so far; all of them, and the mark. That is
// renamed at the end, so that there is no moment without one; it is removed where the tries
// are used up, for the image to begin anew when it comes back.
func (m *merger) varDirs() (made int, problem, err error) {
	if m.kept, err = m.dir(m.volume, layout.EtcKept); err != nil || m.kept == nil {
		return 0, nil, err
	}
	dir, err := m.dir(m.kept, m.Image)
	if err != nil || dir == nil {
		return 0, nil, err
	}
	name := path.Base(layout.EtcPending(m.Image))
	mark, err := openIn(dir, name, unix.O_RDWR|unix.O_NONBLOCK)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil, nil
	}
	if err != nil {
		return 0, nil, err
	}
	defer mark.Close()
	info, err := mark.Stat()
	if err != nil {
		return 0, nil, err
	}
	d := dirAdder{merger: m}
	if left := info.Size(); left == 0 {
		problem = fmt.Errorf("%w after %d boots", errGivenUp, maxVarTries)
	} else {
		err := m.step("count a try", func() error { return errors.Join(mark.Truncate(left-1), mark.Sync()) })
		if err != nil {
			return 0, nil, err
		}
		problem = d.all()
	}
	if d.refused != nil {
		return d.made, nil, d.refused
	}
	err = m.step("remove the unfinished copy", func() error { return seed.Remove(m.kept, newDirTmp) })
	switch {
	case err != nil:
	case problem == nil, errors.Is(problem, ErrTooLarge):
		err = m.step("mark as added", func() error {
			if err := unix.Renameat(int(dir.Fd()), name, int(dir.Fd()), addedFile); err != nil {
				return fmt.Errorf("cannot rename the mark of new directories: %w", err)
			}
			return syncDirs(dir)
		})
	case errors.Is(problem, errGivenUp):
		err = m.step("remove the mark", func() error { return errors.Join(seed.Remove(dir, name), syncDirs(dir)) })
	}
	if problem != nil {
		problem = fmt.Errorf("cannot add the image's new directories to /var: %w", problem)
	}
	return d.made, problem, err
}

func (d *dirAdder) all() error {
	machine, err := d.dir(d.volume, "var")
	if err != nil || machine == nil { // the first boot fills it
		return err
	}
	layer, err := d.dir(d.volume, layout.Etc)
	if err != nil {
		return err
	}
	for i, name := range []string{"passwd", "group"} {
		image, err := readSmall(d.lower, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		merged, err := readSmall(layer, name)
		if errors.Is(err, fs.ErrNotExist) { // as the image has it
			merged, err = image, nil
		}
		if err != nil {
			return err
		}
		d.owners[i] = etcmerge.Owners(image, merged)
	}
	return d.add(d.Var, machine, 0)
}

// readSmall reads an account file.
func readSmall(dir *os.File, name string) ([]byte, error) {
	f, err := openIn(dir, name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxAccount {
		return nil, fmt.Errorf("/etc/%s: %w", name, ErrTooLarge)
	}
	text := make([]byte, info.Size())
	_, err = f.ReadAt(text, 0)
	return text, err
}

// dirAdder is one walk through the image's /var.
type dirAdder struct {
	*merger
	owners  owners
	made    int
	refused error // by Step
}

func (d *dirAdder) step(name string, change func() error) error {
	if d.refused = d.Step(name); d.refused != nil {
		return d.refused
	}
	return change()
}

func (d *dirAdder) add(image, machine *os.File, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s: nested deeper than %d: %w", image.Name(), maxDepth, ErrTooLarge)
	}
	list, err := names(image)
	if err != nil {
		return err
	}
	for _, name := range list {
		if err := d.addOne(image, machine, name, depth); err != nil {
			return err
		}
	}
	return nil
}

func (d *dirAdder) addOne(image, machine *os.File, name string, depth int) error {
	from, err := openIn(image, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // a file, or a link
	}
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := openIn(machine, name, unix.O_RDONLY|unix.O_DIRECTORY)
	switch {
	case err == nil:
		defer to.Close()
		return d.add(from, to, depth+1)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP): // the machine has something else there
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := d.step("copy a directory of /var", func() error { return d.copy(from) }); err != nil {
		return err
	}
	return d.step("name a directory of /var", func() error {
		if err := unix.Syncfs(int(d.kept.Fd())); err != nil {
			return fmt.Errorf("cannot sync: %w", err)
		}
		if err := unix.Renameat2(int(d.kept.Fd()), newDirTmp, int(machine.Fd()), name, unix.RENAME_NOREPLACE); err != nil {
			return fmt.Errorf("cannot rename the copy of %s: %w", from.Name(), err)
		}
		d.made++
		return syncDirs(machine, d.kept)
	})
}

// copy makes the unfinished copy.
func (d *dirAdder) copy(from *os.File) error {
	if err := seed.Remove(d.kept, newDirTmp); err != nil {
		return err
	}
	if err := seed.Tree(from, d.kept, newDirTmp); err != nil {
		return err
	}
	dir, err := openIn(d.kept, newDirTmp, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	return d.own(d.kept, newDirTmp, dir)
}

// own gives a file, and all below it, the owner that it has here. dir is the file when
// it is a directory, else nil.
func (d *dirAdder) own(in *os.File, name string, dir *os.File) error {
	if dir != nil {
		list, err := names(dir)
		if err != nil {
			return err
		}
		for _, below := range list {
			next, err := openIn(dir, below, unix.O_RDONLY|unix.O_DIRECTORY)
			if err != nil {
				next = nil // no directory
			}
			err = d.own(dir, below, next)
			if next != nil {
				next.Close()
			}
			if err != nil {
				return err
			}
		}
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(in.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	uid, gid, moved := d.owners.of(st.Uid, st.Gid)
	if !moved {
		return nil
	}
	if err := unix.Fchownat(int(in.Fd()), name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil || dir == nil {
		// Of a file that takes set-uid bits and file capabilities away: they were
		// another one's.
		return err
	}
	return unix.Fchmod(int(dir.Fd()), st.Mode&0o7777)
}
