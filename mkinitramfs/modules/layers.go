package modules

import (
	"fmt"

	"sealroot/init/config"
)

// CheckLayers tells whether the kernel has the file systems of the configuration's layers.
// Else it wraps ErrNoModule.
func (t *Tree) CheckLayers(cfg *config.Config) error {
	for _, l := range cfg.Images() {
		if fs := l.Filesystem; t.files[fs] == "" && !t.builtin[fs] {
			return fmt.Errorf("cannot use layer %s: kernel %s has no %s; make the layer with another file system (--filesystem, and filesystem: in the configuration): %w", l.Name, t.Release, fs, ErrNoModule)
		}
	}
	return nil
}
