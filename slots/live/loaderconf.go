//go:build !minimal

package live

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"sealroot/bounded"
	"sealroot/slots/efi"
	espnames "sealroot/slots/esp"
)

// maxConf bounds what is read of loader.conf.
const maxConf = 64 << 10

// LoaderConf is the configuration of systemd-boot on an ESP that is mounted at
// this directory. Its default counts when the firmware has forgotten the variable.
type LoaderConf string

// IsDefault says whether the slot is the default there.
func (l LoaderConf) IsDefault(slot string) (bool, error) {
	conf, err := l.read()
	_, changed := efi.ConfDefault(conf, slot)
	return !changed && err == nil, err
}

// SetDefault replaces the file; a power cut leaves the old one or the new one. The
// new name is durable with the folder: ESP.With mounts with dirsync, and the caller
// unmounts or syncs.
func (l LoaderConf) SetDefault(slot string) error {
	conf, err := l.read()
	if err != nil {
		return err
	}
	conf, _ = efi.ConfDefault(conf, slot)
	if err := os.MkdirAll(filepath.Dir(l.path()), 0o755); err != nil {
		return err
	}
	temp := l.path() + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, conf)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	// crash point: loader.conf is the old one
	return os.Rename(temp, l.path())
}

func (l LoaderConf) path() string { return filepath.Join(string(l), espnames.LoaderConf) }

// read returns "" for a file that is not there.
func (l LoaderConf) read() (string, error) {
	b, err := bounded.ReadFile(l.path(), maxConf) // it is written anew, and nothing of it may be lost
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(b), err
}
