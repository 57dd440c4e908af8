package rootcheck

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"sealroot/init/config"
	"sealroot/verity/osrelease"
)

// LayersRule is the name of the rule about the configuration's layers.
const LayersRule = "layers"

// Layer is what is judged of the image of a layer.
type Layer struct {
	Name       string   // as the configuration has it
	Image      string   // its file, for people
	Filesystem string   // that it has: "squashfs", "erofs" or "unknown"
	Release    []byte   // its extension-release; nil where it has none
	Others     []string // names of layers that it has one for
	Files      *Tree    // what it has; nil where that is not known
	Err        error    // why nothing of it is known
}

// layers: PID 1 compares each layer with the root and the kernel at every boot, and here
// they are known already. What a layer that will be used does to the root no boot looks at.
func (v *verdict) layers() {
	var used []Layer // from the lowest up
	for _, want := range v.w.Config.Images() {
		i := slices.IndexFunc(v.w.Layers, func(l Layer) bool { return l.Name == want.Name })
		if i < 0 {
			continue // the configuration has its hash alone
		}
		if is := v.w.Layers[i]; v.fits(want, is) && is.Files != nil {
			v.over(is)
			used = append(used, is)
		}
	}
	v.driverLayers(used)
}

// fits tells whether a boot will use a layer, and else why not.
func (v *verdict) fits(want config.Layer, is Layer) bool {
	name := osrelease.ExtensionPath(want.Name)
	s, then := Error, "no boot of the image gets past it (on_failure: stop)"
	if want.OnFailure == config.LayerSkip {
		s, then = Warning, "each boot leaves it out (on_failure: skip)"
	}
	switch {
	case is.Err != nil:
		v.warn(name, "look whether it is for this root", "layer %s, %s, cannot be judged: %v", want.Name, is.Image, is.Err)
		return false
	case is.Filesystem != want.Filesystem && is.Filesystem == "unknown":
		v.add(s, name, "make it with sealroot-mkinitramfs layer", "layer %s, %s, is neither squashfs nor erofs: %s", want.Name, is.Image, then)
		return false
	case is.Filesystem != want.Filesystem:
		v.add(s, name, "give the layer filesystem: "+is.Filesystem+" in the configuration, which puts that into the initramfs, or make it with --filesystem "+want.Filesystem,
			"layer %s, %s, has %s, and the configuration means %s: %s", want.Name, is.Image, is.Filesystem, want.Filesystem, then)
		return false
	case is.Release == nil && len(is.Others) > 0:
		v.add(s, name, "give the layer that name in the configuration, or make it with --name "+want.Name,
			"layer %s, %s, calls itself %s: %s", want.Name, is.Image, strings.Join(is.Others, ", "), then)
		return false
	case is.Release == nil:
		v.add(s, name, "make it with sealroot-mkinitramfs layer --name "+want.Name+" --for ID=…", "layer %s, %s, does not have it, which says what a layer is for: %s", want.Name, is.Image, then)
		return false
	}
	release, err := osrelease.Parse(is.Release)
	if err != nil {
		v.add(s, name, "correct the line in the layer's tree", "layer %s, %s: %v: %s", want.Name, is.Image, err, then)
		return false
	}
	root, kernel := v.system(release)
	if !release.Extends(root, kernel) {
		of, system := release.Versus(root, kernel)
		v.add(s, name, "make it for this root (--for of sealroot-mkinitramfs layer, or that file in its tree), or leave it out of the configuration",
			"layer %s, %s, is for %s, and this is %s: %s", want.Name, is.Image, of, system, then)
		return false
	}
	return true
}

// system is what a layer is to go on. What is not known of it is as the layer wants it.
func (v *verdict) system(layer osrelease.Release) (root osrelease.Release, kernel string) {
	root = layer
	if _, f, err := v.osReleaseFile(); err == nil {
		if r, err := osrelease.Parse(f.Text); err == nil { // else rule os-release has a word for it
			root = r
		}
	}
	if kernel = v.w.BootKernel; kernel == "" {
		kernel = layer.Kernel
	}
	return root, kernel
}

// osReleaseFile is the os-release that the image will have, but for what the builder writes
// into it.
func (v *verdict) osReleaseFile() (at string, f File, err error) {
	for _, name := range []string{osrelease.Path, "etc/os-release"} {
		if at, f, err = v.t.file(name); err == nil {
			return at, f, nil
		}
	}
	return at, f, err
}

// Read reads the extension-release of a layer out of its tree, or whose there are in its
// place, and its indexes of modules.
func (l *Layer) Read(tree fs.FS) error {
	if err := l.readIndexes(tree); err != nil {
		return err
	}
	name := osrelease.ExtensionPath(l.Name)
	info, err := fs.Stat(tree, name)
	if err == nil && info.Mode().IsRegular() && l.isFile(name) { // PID 1 takes nothing else
		l.Release, err = fs.ReadFile(tree, name)
		return err
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	entries, err := fs.ReadDir(tree, path.Dir(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if e.Name() == path.Base(name) {
			continue
		}
		if other, ok := strings.CutPrefix(e.Name(), strings.TrimSuffix(path.Base(name), l.Name)); ok {
			l.Others = append(l.Others, other)
		}
	}
	return nil
}

// isFile tells whether a file that was taken out of the image is one there too: for an
// ordinary user others become one.
func (l *Layer) isFile(name string) bool {
	if l.Files == nil {
		return true
	}
	_, f, err := l.Files.file(name)
	return err == nil && f.Mode.IsRegular()
}
