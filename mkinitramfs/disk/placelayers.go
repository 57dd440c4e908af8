package disk

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"sealroot/init/config"
	"sealroot/slots/manifest"
	statelayout "sealroot/state/layout"
)

// layersOf are the layers of the slots that lie on the state partition, each once.
func layersOf(sets []set) []config.Layer {
	var list []config.Layer
	for _, s := range sets {
		for _, l := range s.in.Config.FromState() {
			same := func(o config.Layer) bool { return o.Name == l.Name && o.Hash == l.Hash }
			if !slices.ContainsFunc(list, same) {
				list = append(list, l)
			}
		}
	}
	return list
}

// checkLayers: what a disk or a set holds must be there to be copied, and have room in the
// manifest.
func checkLayers(c *config.Config) error {
	images := c.Images()
	if len(images) > manifest.MaxLayers {
		return fmt.Errorf("cannot describe %d layers with images in the manifest of a slot, at most %d: join some, or make them from: encrypted: %w", len(images), manifest.MaxLayers, ErrOptions)
	}
	for _, l := range images {
		if l.Image == "" {
			return fmt.Errorf("cannot find layer %s: the configuration has its hash, which is enough for an initramfs alone; give image: FILE in its place, so that the file comes along: %w", l.Name, ErrOptions)
		}
	}
	return nil
}

// placeLayers copies images into the file system at a partition, without mounting it.
func (b *Builder) placeLayers(ctx context.Context, disk *os.File, to partition, layers []config.Layer) error {
	// The programs get descriptors: no path is read as options or as a command.
	device := fmt.Sprintf("/proc/self/fd/3?offset=%d", to.start)
	debugfs := func(script string, files ...*os.File) (string, error) {
		t := b.Tools
		t.Files = append([]*os.File{disk}, files...)
		out, err := t.Output(ctx, strings.NewReader(script), "debugfs", "-w", "-f", "-", device)
		if err == nil {
			err = complaint(out)
		}
		return out, err
	}
	if _, err := debugfs("mkdir " + statelayout.Layers + "\nsif " + statelayout.Layers + " mode 040755\n"); err != nil {
		return err
	}
	want := map[string]string{}
	for _, l := range layers {
		f, err := os.Open(l.Image)
		if err != nil {
			return fmt.Errorf("cannot copy layer %s: %w", l.Name, err)
		}
		info, err := f.Stat()
		if err == nil {
			to := statelayout.LayerImage(l.Name, l.Hash)
			_, err = debugfs(fmt.Sprintf("write /proc/self/fd/4 %[1]s\nsif %[1]s mode 0100644\n", to), f)
			want[path.Base(to)] = fmt.Sprintf("100644 0 0 %d", info.Size())
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("cannot copy layer %s: %w", l.Name, err)
		}
	}
	out, err := debugfs("ls -p " + statelayout.Layers + "\n")
	if err != nil {
		return err
	}
	is := map[string]string{}
	for line := range strings.Lines(out) {
		// "/inode/mode/uid/gid/name/size/", debugfs(8)
		if f := strings.Split(strings.TrimSpace(line), "/"); len(f) == 8 && !strings.HasPrefix(f[5], ".") {
			is[f[5]] = strings.Join([]string{f[2], f[3], f[4], f[6]}, " ")
		}
	}
	if !maps.Equal(is, want) {
		return fmt.Errorf("cannot copy the layers to the state partition: there is %v, want %v", is, want)
	}
	t := b.Tools
	t.Files = []*os.File{disk}
	return t.Run(ctx, nil, "e2fsck", "-fn", device)
}

// complaint is what debugfs says beside what it is asked for: it ends with 0 also when
// a command of its has failed, and leaves a file of the right size with half its content.
func complaint(said string) error {
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		listed := strings.HasPrefix(line, "/") && strings.HasSuffix(line, "/")
		if line != "" && !listed && !strings.HasPrefix(line, "debugfs") && !strings.HasPrefix(line, "Allocated inode: ") {
			return fmt.Errorf("debugfs says %.200q; the state partition has its size from --state-size: %w", line, ErrSize)
		}
	}
	return nil
}
