package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"sealroot/init/config"
	"sealroot/mkinitramfs/layer"
	"sealroot/mkinitramfs/rootcheck"
	"sealroot/mkinitramfs/tools"
	"sealroot/verity/osrelease"
)

// What a layer is for stands in its file system, which nobody mounts here: programs of
// squashfs-tools and erofs-utils take it out.

// layerPrograms are the helper programs that look into the layers of a configuration.
func layerPrograms(c *config.Config) []string {
	var programs []string
	for _, l := range c.Images() {
		of := []string{"unsquashfs"}
		if l.Filesystem == erofs {
			of = []string{"fsck.erofs", "fakeroot"}
		}
		if l.Image != "" && !slices.Contains(programs, of[0]) {
			programs = append(programs, of...)
		}
	}
	return programs
}

// readLayers is ReadLayers for what is built here, whose layers have been found.
func (b *Builder) readLayers(ctx context.Context, c *config.Config, work string) (list []rootcheck.Layer, err error) {
	if slices.Contains(b.Ignore, rootcheck.LayersRule) || !slices.ContainsFunc(c.Layers, func(l config.Layer) bool { return l.Image != "" }) {
		return nil, nil
	}
	err = b.step("what the layers are for", func() error {
		list, err = ReadLayers(ctx, b.Tools, c, "", work)
		return err
	})
	return list, err
}

// ReadLayers reads what rootcheck judges of the layers of a configuration from a file in
// dir, of those whose images it names. What is taken out of them is kept near for as long,
// "" for where temporary files are. Its error is tools.ErrMissing, or that of the context
// or of that place; one of an image is a layer's own.
func ReadLayers(ctx context.Context, run tools.Runner, c *config.Config, dir, near string) ([]rootcheck.Layer, error) {
	var list []rootcheck.Layer
	for _, l := range c.Images() {
		if l.Image == "" {
			continue
		}
		is := rootcheck.Layer{Name: l.Name, Image: l.Image}
		if !filepath.IsAbs(l.Image) {
			is.Image = filepath.Join(dir, l.Image)
		}
		out, err := os.MkdirTemp(near, "sealroot-layer-")
		if err != nil {
			return nil, fmt.Errorf("cannot make work directory: %w", err)
		}
		is.Err = readLayer(ctx, run, &is, out)
		if err := errors.Join(openUp(out), os.RemoveAll(out)); err != nil {
			return nil, fmt.Errorf("cannot remove work directory: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if errors.Is(is.Err, tools.ErrMissing) {
			return nil, is.Err
		}
		list = append(list, is)
	}
	return list, nil
}

// readLayer lists what an image has, and takes the files that rules read out, into the
// folder out.
func readLayer(ctx context.Context, run tools.Runner, l *rootcheck.Layer, out string) error {
	im, f, err := layer.OpenFile(l.Image, layer.Find)
	if err != nil {
		return err
	}
	defer f.Close()
	tree := filepath.Join(out, "tree")
	var files map[string]rootcheck.File
	switch l.Filesystem = layer.Filesystem(im.Data); l.Filesystem {
	case squashfs:
		run.Files = []*os.File{f}
		files, err = readSquashfs(ctx, run, im.DataOffset, path.Dir(osrelease.ExtensionPath(l.Name)), tree)
	case erofs:
		files, err = readErofs(ctx, run, im.Data, out, tree)
	default:
		return nil
	}
	if err := errors.Join(err, openUp(out)); err != nil {
		return err
	}
	l.Files = rootcheck.NewTree(files)
	in, err := os.OpenRoot(tree) // no link leads out of it
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close()
	return l.Read(in.FS())
}

// openUp lets whoever builds into the directories of a tree, which have the modes of the
// image.
func openUp(tree string) error {
	return filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() { // before it is read
			err = os.Chmod(path, 0o700)
		}
		return err
	})
}

// CheckLayers judges the layers of a configuration for an initramfs that is made alone,
// with a kernel of that release and for a root (directory or tar), "" for one that is not
// known. Warnings go to log. Its errors are ErrRoot and those of ReadLayers and ReadTree.
func CheckLayers(ctx context.Context, run tools.Runner, c *config.Config, rootfs, release string, log io.Writer) error {
	layers, err := ReadLayers(ctx, run, c, "", "")
	if err != nil || len(layers) == 0 {
		return err
	}
	want := rootcheck.Want{Config: c, Layers: layers, BootKernel: release}
	tree := rootcheck.NewTree(nil)
	if rootfs != "" {
		if tree, err = ReadTree(rootfs, nil); err != nil {
			return err
		}
	}
	rules, _ := rootcheck.Rules()
	want.Ignore = slices.DeleteFunc(rules, func(name string) bool { return name == rootcheck.LayersRule })
	return tell(log, rootcheck.Judge(tree, want))
}
