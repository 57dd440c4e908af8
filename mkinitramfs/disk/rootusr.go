package disk

import (
	"archive/tar"
	"fmt"
	"path"
	"slices"
	"strings"
)

// factoryDir is where systemd looks for the first content of a root of which
// nothing but /usr is left (file-hierarchy(7)), and PID 1 for that of /etc, /home
// and /var.
const factoryDir = "usr/share/factory"

// inUsr is the path below usr/ that a path of the root gets in an image of /usr; ""
// for what has no place there.
func inUsr(name string) string {
	top, _, _ := strings.Cut(name, "/")
	switch top {
	case "usr":
		return name
	case "etc", "home", "var":
		return path.Join(factoryDir, name)
	}
	return ""
}

// fromUsr is the path of the root that a path of such an image stands for.
func fromUsr(name string) string {
	if rest, ok := strings.CutPrefix("usr/"+name, factoryDir+"/"); ok {
		return rest
	}
	return "usr/" + name
}

// mergedDirs are those that a root with a merged /usr has as links into it.
func mergedDirs() []string { return []string{"bin", "lib", "lib32", "lib64", "libx32", "sbin"} }

// emptyDirs are those whose content belongs to no image.
func emptyDirs() []string {
	return []string{".", "boot", "dev", "efi", "lost+found", "media", "mnt", "proc", "run", "state", "sys", "tmp"}
}

// place finds the place of an entry of the root in an image of /usr; ok is false
// when it gets none. What /usr itself has in its factory stays, so /usr comes first.
func (f *rootFilter) place(name string, h *tar.Header) (to string, ok bool, err error) {
	top, _, below := strings.Cut(name, "/")
	if slices.Contains(mergedDirs(), top) {
		if below || h.Typeflag != tar.TypeSymlink {
			return "", false, fmt.Errorf("cannot take /usr of a root whose /%s is no link into it: merge it (package usrmerge): %w", top, ErrRoot)
		}
		f.links[name] = h.Linkname
		f.merged = append(f.merged, name)
		return "", false, nil
	}
	to = inUsr(name)
	if to == "" {
		f.leaveOut(name, h.Typeflag)
		return "", false, nil
	}
	if h.Typeflag == tar.TypeSymlink {
		f.links[name] = h.Linkname
	}
	if to != name {
		parent := f.seen[path.Dir(to)]
		if f.seen[to] != 0 || f.extras[to] || parent != 0 && parent != tar.TypeDir {
			f.dropped[name] = true
			return "", false, nil
		}
		if err := f.dirs(to); err != nil {
			return "", false, err
		}
	}
	if h.Typeflag == tar.TypeLink {
		target := inUsr(h.Linkname)
		if f.seen[target] == 0 {
			return "", false, fmt.Errorf("cannot take the hard link %s to %s, which is no part of /usr: %w", name, h.Linkname, ErrRoot)
		}
		h.Linkname = target
	}
	return to, true, nil
}

// leaveOut counts the files that an image of /usr has no place for.
func (f *rootFilter) leaveOut(name string, kind byte) {
	top, _, _ := strings.Cut(name, "/")
	if kind != tar.TypeDir && !slices.Contains(emptyDirs(), top) {
		f.left[top]++
	}
}

// leftOut says what was left out, for a person; "" for nothing.
func (f *rootFilter) leftOut() string {
	var list []string
	for _, top := range sortedKeys(f.left) {
		list = append(list, fmt.Sprintf("/%s (%d)", top, f.left[top]))
	}
	if list == nil {
		return ""
	}
	return "not in the image, as root.source usr-verity takes /usr, /etc, /home and /var: files of " + strings.Join(list, ", ")
}

// checkMerged: PID 1 makes the links anew, where /usr has what they lead to.
func (f *rootFilter) checkMerged() error {
	for _, name := range f.merged {
		if f.seen["usr/"+name] == 0 {
			return fmt.Errorf("cannot take /usr of a root with the link /%s and no /usr/%s: %w", name, name, ErrRoot)
		}
	}
	return nil
}
