package rootcheck

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// inModules splits the name of a file of a kernel's modules.
func inModules(name string) (release, file string, ok bool) {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(name, "usr/"), "lib/modules/")
	if !ok {
		return "", "", false
	}
	return strings.Cut(rest, "/")
}

const indexFile = "modules.dep"

func isIndex(name string) bool {
	_, file, ok := inModules(name)
	return ok && file == indexFile
}

// readIndexes reads those of a layer, which its tree knows already.
func (l *Layer) readIndexes(tree fs.FS) error {
	if l.Files == nil {
		return nil
	}
	for name, f := range l.Files.files {
		if !isIndex(name) || !f.Mode.IsRegular() {
			continue
		}
		var err error
		if f.Text, err = fs.ReadFile(tree, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		l.Files.files[name] = f
	}
	return nil
}

// drivers are what a tree has for a kernel.
type drivers struct {
	modules []string        // names of the files, below the kernel's directory
	index   map[string]bool // those that its modules.dep names; nil without one
}

// driversOf are a tree's, by the kernel's release.
func driversOf(t *Tree) map[string]drivers {
	all := map[string]drivers{}
	for _, name := range t.order {
		release, file, ok := inModules(name)
		if !ok || !t.files[name].Mode.IsRegular() {
			continue
		}
		d := all[release]
		switch base := path.Base(file); {
		case file == indexFile:
			d.index = map[string]bool{}
			for line := range strings.Lines(string(t.files[name].Text)) {
				if module, _, ok := strings.Cut(line, ":"); ok {
					d.index[module] = true
				}
			}
		case strings.HasSuffix(base, ".ko"), strings.Contains(base, ".ko."):
			d.modules = append(d.modules, file)
		}
		all[release] = d
	}
	return all
}

// driverLayers: modprobe and udev know the modules of one index, which is the topmost.
func (v *verdict) driverLayers(used []Layer) {
	const remedy = "make one index of the root's modules and those of all layers: docs/image-builders.md, Drivers in a layer"
	if len(v.t.order) == 0 {
		return // nobody said which root
	}
	root := driversOf(v.t)
	all := make([]map[string]drivers, len(used))
	releases := map[string]bool{}
	for i, l := range used {
		all[i] = driversOf(l.Files)
		for release := range all[i] {
			if _, ok := root[release]; release == v.w.BootKernel || v.w.BootKernel == "" && ok {
				releases[release] = true
			}
		}
	}
	for _, release := range slices.Sorted(maps.Keys(releases)) {
		dir := path.Join("usr/lib/modules", release)
		top, index := -1, root[release].index
		for i := range used {
			if own := all[i][release].index; own != nil {
				top, index = i, own
			}
		}
		missing := func(modules []string) (list []string) {
			for _, m := range modules {
				if !index[m] {
					list = append(list, m)
				}
			}
			return list
		}
		if top >= 0 {
			if of := missing(slices.Sorted(maps.Keys(root[release].index))); len(of) > 0 {
				v.warn(path.Join(dir, indexFile), remedy, "that of layer %s, %s, lies over the root's and lacks %s: modprobe and udev do not find them", used[top].Name, used[top].Image, some(of))
			}
		}
		for i, l := range used {
			of := missing(all[i][release].modules)
			switch {
			case len(of) == 0:
			case top < 0:
				v.warn(dir, remedy, "layer %s, %s, has modules and no %s, and the root's lacks %s: modprobe and udev do not find them", l.Name, l.Image, indexFile, some(of))
			default:
				v.warn(dir, remedy, "layer %s, %s, has modules that the topmost %s, of layer %s, lacks, %s: modprobe and udev do not find them", l.Name, l.Image, indexFile, used[top].Name, some(of))
			}
		}
	}
}

// some names one of a list, and how many there are.
func some(list []string) string {
	if len(list) == 1 {
		return list[0]
	}
	return fmt.Sprintf("%s and %d more", list[0], len(list)-1)
}
