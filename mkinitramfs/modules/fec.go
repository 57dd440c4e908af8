package modules

import (
	"fmt"
	"slices"

	"sealroot/init/config"
)

// CheckFEC tells whether the kernel's dm-verity can repair, when the
// configuration asks for that: only one that can needs reed_solomon. Of a kernel
// that has both built in nothing can be told, and the error is nil. Else it wraps
// ErrNoModule.
func (t *Tree) CheckFEC(cfg *config.Config) error {
	file := t.files["dm_verity"]
	if cfg.Root.Verity.FECRoots == 0 || file == "" || t.builtin["reed_solomon"] ||
		slices.ContainsFunc(t.deps[file], func(d string) bool { return Name(d) == "reed_solomon" }) {
		return nil
	}
	return fmt.Errorf("cannot use root.verity.fec_roots: dm-verity of kernel %s was built without DM_VERITY_FEC; leave it out: %w", t.Release, ErrNoModule)
}
