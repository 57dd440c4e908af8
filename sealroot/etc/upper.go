package etc

import (
	"fmt"
	"os"
	"path"
	"sort"

	"golang.org/x/sys/unix"

	"sealroot/state/etcmerge"
	"sealroot/state/seed"
)

// change is one file of a new upper layer.
type change struct {
	path     string
	whiteout bool
	entry    etcmerge.Entry // as it is to be
	from     *os.File       // what it is copied from, below path; nil for a whiteout
	text     []byte         // its content in place of from's; nil for from's
}

// changes lists what an upper layer over lower needs to give the merged /etc, sorted:
// nothing that is the same in lower, but for the directories that lead to something.
func changes(lower etcmerge.Tree, plan etcmerge.Plan, image, machine tree) []change {
	merged, all := map[string]change{}, map[string]change{}
	for _, step := range plan {
		if c, ok := changeOf(step, image, machine); ok {
			merged[step.Path] = c
		}
	}
	need := func(c change) {
		all[c.path] = c
		for dir := path.Dir(c.path); dir != "."; dir = path.Dir(dir) {
			all[dir] = merged[dir]
		}
	}
	for name, c := range merged {
		if c.text != nil || !same(c.entry, lower[name]) {
			need(c)
		}
	}
	for name := range lower {
		if _, there := merged[name]; there {
			continue
		}
		// Below what is no directory any more nothing is left to hide.
		if dir := path.Dir(name); dir == "." || merged[dir].entry.Kind == etcmerge.Dir {
			need(change{path: name, whiteout: true})
		}
	}
	list := make([]change, 0, len(all))
	for _, c := range all {
		list = append(list, c)
	}
	sort.Slice(list, func(i, k int) bool { return list[i].path < list[k].path })
	return list
}

// changeOf is what a step of the plan makes; ok is false for no file.
func changeOf(step etcmerge.Step, image, machine tree) (c change, ok bool) {
	if step.Content == etcmerge.Nowhere {
		return change{}, false
	}
	content, meta := machine, machine
	if step.Content == etcmerge.FromImage {
		content = image
	}
	if step.Meta == etcmerge.FromImage {
		meta = image
	}
	c = change{path: step.Path, entry: content.entries[step.Path], from: content.at[step.Path]}
	m := meta.entries[step.Path]
	c.entry.Mode, c.entry.UID, c.entry.GID, c.entry.Flags = m.Mode, m.UID, m.GID, m.Flags
	if step.Content == etcmerge.FromBoth {
		c.text = append([]byte{}, step.Text...) // not nil
	}
	return c, true
}

func same(a, b etcmerge.Entry) bool {
	return a.Kind == b.Kind && a.Sum == b.Sum && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && a.Flags == b.Flags
}

// write makes the files of an upper layer in dir, which is empty. step is asked
// before each.
func write(dir *os.File, list []change, step func(string) error) error {
	for _, c := range list {
		if err := step("write " + c.path); err != nil {
			return err
		}
		if err := writeOne(dir, c); err != nil {
			return fmt.Errorf("cannot make %s: %w", c.path, err)
		}
	}
	// Directories last: what is put into them changes their times.
	for i := len(list) - 1; i >= 0; i-- {
		c := list[i]
		if c.entry.Kind != etcmerge.Dir {
			continue
		}
		to, err := openIn(dir, c.path, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		err = dirAttributes(c, to)
		to.Close()
		if err != nil {
			return fmt.Errorf("cannot make %s: %w", c.path, err)
		}
	}
	return nil
}

func dirAttributes(c change, to *os.File) error {
	from, err := openIn(c.from, c.path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer from.Close()
	if err := seed.Attributes(from, to); err != nil {
		return err
	}
	return setMeta(to, c.entry)
}

func setMeta(f *os.File, e etcmerge.Entry) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Uid != e.UID || st.Gid != e.GID { // a change of owner takes file capabilities away
		if err := unix.Fchown(int(f.Fd()), int(e.UID), int(e.GID)); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(int(f.Fd()), e.Mode); err != nil {
		return err
	}
	return writeFlags(f, e.Flags)
}

func writeOne(dir *os.File, c change) error {
	to, err := openIn(dir, path.Dir(c.path), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer to.Close()
	name := path.Base(c.path)
	switch {
	case c.whiteout:
		return unix.Mknodat(int(to.Fd()), name, unix.S_IFCHR, 0)
	case c.entry.Kind == etcmerge.Dir:
		return unix.Mkdirat(int(to.Fd()), name, 0o700)
	case c.text != nil:
		return writeText(to, name, c)
	}
	from, err := openIn(c.from, path.Dir(c.path), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer from.Close()
	if err := seed.Entry(from, to, name); err != nil {
		return err
	}
	if c.entry.Kind != etcmerge.Regular {
		if err := unix.Fchownat(int(to.Fd()), name, int(c.entry.UID), int(c.entry.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if c.entry.Kind == etcmerge.Symlink {
			return nil
		}
		// It is our own directory, and no link.
		return unix.Fchmodat(int(to.Fd()), name, c.entry.Mode, 0)
	}
	made, err := openIn(to, name, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer made.Close()
	return setMeta(made, c.entry)
}

// writeText makes a file that has its content of both sides, and all else of from.
func writeText(to *os.File, name string, c change) error {
	from, err := openIn(c.from, c.path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer from.Close()
	fd, err := unix.Openat(int(to.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	made := os.NewFile(uintptr(fd), name)
	defer made.Close()
	if err := seed.Attributes(from, made); err != nil {
		return err
	}
	if err := setMeta(made, c.entry); err != nil {
		return err
	}
	if _, err := made.Write(c.text); err != nil { // last, so that its time is now
		return err
	}
	return made.Close()
}
