package initramfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sealroot/init/config"
	"sealroot/mkinitramfs/keys"
	"sealroot/mkinitramfs/modules"
)

// Sources says where the parts of an initramfs are on the build machine.
type Sources struct {
	Config     *config.Config
	ConfigDir  string // certificates and keys in the configuration are relative to it
	KeysDir    string // searched after ConfigDir; may be empty
	Init       string // path of PID 1
	ModulesDir string // see modules.Locate
	Release    string // kernel release
	Depmod     modules.Depmod
}

// Gather reads the parts.
func Gather(ctx context.Context, s Sources) (Input, error) {
	in := Input{Certificates: map[config.Role][]File{}}
	var err error
	if in.Init, err = os.ReadFile(s.Init); err != nil {
		return Input{}, fmt.Errorf("cannot read init: %w", err)
	}
	if err := checkBuild(in.Init, s.Config); err != nil {
		return Input{}, err
	}
	for _, role := range config.Roles() {
		if err := in.certificates(s, role); err != nil {
			return Input{}, err
		}
	}
	if in.Escrow, err = s.escrow(); err != nil {
		return Input{}, err
	}
	if in.PCRPublic, err = s.pcrPublic(); err != nil {
		return Input{}, err
	}
	if in.PCRPrevious, err = s.pcrPrevious(in.PCRPublic); err != nil {
		return Input{}, err
	}
	tree, err := modules.Open(ctx, s.ModulesDir, s.Release, s.Depmod)
	if err != nil {
		return Input{}, err
	}
	wants, err := modules.For(s.Config)
	if err != nil {
		return Input{}, err
	}
	if err := tree.CheckLayers(s.Config); err != nil {
		return Input{}, err
	}
	if in.Modules, err = tree.Closure(wants); err != nil {
		return Input{}, err
	}
	if err := tree.CheckWatchdog(s.Config, in.Modules); err != nil {
		return Input{}, err
	}
	if err := tree.CheckFEC(s.Config); err != nil {
		return Input{}, err
	}
	in.ReadModule = tree.ReadModule
	in.Config = s.Config
	return in, nil
}

// certificates reads the certificates of a role.
func (in *Input) certificates(s Sources, role config.Role) error {
	for _, name := range s.Config.Trust.Certificates(role) {
		path, err := s.find(name)
		if err != nil {
			return fmt.Errorf("cannot find certificate of trust.%s: %w", role, err)
		}
		if _, err := keys.LoadCertificate(path); err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("cannot read certificate: %w", err)
		}
		in.Certificates[role] = append(in.Certificates[role], File{filepath.Base(name), content})
	}
	return nil
}

// find looks a file of the configuration up.
func (s Sources) find(name string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	dirs := []string{s.ConfigDir}
	if s.KeysDir != "" {
		dirs = append(dirs, s.KeysDir)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		_, err := os.Stat(path)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("%s is not in %s: %w", name, strings.Join(dirs, " or "), fs.ErrNotExist)
}
