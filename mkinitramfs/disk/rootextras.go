package disk

import (
	"archive/tar"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// listExtras finds out beforehand what extra replaces.
func (f *rootFilter) listExtras() error {
	if f.extra == "" {
		return nil
	}
	return filepath.WalkDir(f.extra, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("cannot read --extra: %w", err)
		}
		rel, err := filepath.Rel(f.extra, p)
		if err != nil {
			return err
		}
		if !d.IsDir() {
			name := filepath.ToSlash(rel)
			f.extras[name] = true
			if to := inUsr(name); f.usr && to != "" {
				f.extras[to] = true
			}
		}
		return nil
	})
}

func (f *rootFilter) addExtras() error {
	if f.extra == "" {
		return nil
	}
	return f.copyDir(f.extra, "", func(rel string) bool { return rel == osReleasePath })
}

// copyDir adds the files of a directory, owned by root. Directories that the
// root has keep their owner and mode.
func (f *rootFilter) copyDir(from, to string, skip func(rel string) bool) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("cannot add files: %w", err)
		}
		rel, err := filepath.Rel(from, p)
		if err != nil || rel == "." || skip(filepath.ToSlash(rel)) {
			return err
		}
		name, err := f.resolve(path.Join(to, filepath.ToSlash(rel)))
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return fmt.Errorf("cannot add files: %w", err)
		}
		if f.usr {
			if to := inUsr(name); to != "" {
				name = to
			} else if info.IsDir() {
				return nil
			} else {
				f.leaveOut(name, tar.TypeReg)
				return nil
			}
		}
		if info.IsDir() {
			if f.seen[name] != 0 {
				return nil
			}
			if err := f.dirs(name); err != nil {
				return err
			}
			return f.dir(name, int64(info.Mode().Perm()))
		}
		return f.copyFile(p, name, info)
	})
}

// resolve follows the symbolic links of the root in the directories of name,
// as /lib → usr/lib: an entry below a link would otherwise hide the link.
func (f *rootFilter) resolve(name string) (string, error) {
	for range 40 {
		i, again := 0, false
		for i < len(name) {
			j := strings.IndexByte(name[i:], '/')
			if j < 0 {
				return name, nil
			}
			i += j
			if target, ok := f.links[name[:i]]; ok {
				if !strings.HasPrefix(target, "/") {
					target = path.Join(path.Dir(name[:i]), target)
				}
				clean, err := cleanName(target)
				if err != nil {
					return "", err
				}
				name, again = path.Join(clean, name[i:]), true
				break
			}
			i++
		}
		if !again {
			return name, nil
		}
	}
	return "", fmt.Errorf("cannot place %s: too many symbolic links: %w", name, ErrRoot)
}

func (f *rootFilter) copyFile(from, name string, info fs.FileInfo) error {
	if kind := f.seen[name]; kind == tar.TypeDir {
		return fmt.Errorf("cannot replace directory %s by a file: %w", name, ErrRoot)
	}
	switch {
	case info.Mode().IsRegular():
		content, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("cannot add file: %w", err)
		}
		return f.file(name, int64(info.Mode().Perm()), content)
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return fmt.Errorf("cannot add link: %w", err)
		}
		if err := f.dirs(name); err != nil {
			return err
		}
		f.seen[name], f.links[name] = tar.TypeSymlink, target
		return f.write(name, &tar.Header{Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777, ModTime: f.now}, nil)
	}
	return fmt.Errorf("cannot add %s: neither file, directory nor symbolic link: %w", from, ErrRoot)
}
