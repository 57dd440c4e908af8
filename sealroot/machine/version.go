package machine

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sealroot/slots/esp"
	"sealroot/slots/manifest"
)

// Versions are the versions that the manifest of each slot names, by slot. They
// are hints, as the file system they are on is anybody's. A slot without a
// manifest is left out; one that cannot be read is an error beside the others.
func (m *Machine) Versions() (map[string]string, error) {
	all, err := m.disk.Slots()
	if err != nil {
		return nil, err
	}
	versions := map[string]string{}
	err = m.esp.With(false, func(dir string) error {
		var errs []error
		for _, s := range all {
			v, err := versionOf(filepath.Join(dir, esp.Manifest(s.Name)))
			switch {
			case errors.Is(err, fs.ErrNotExist):
			case err != nil:
				errs = append(errs, fmt.Errorf("cannot tell the version of slot %s: %w", s.Name, err))
			default:
				versions[s.Name] = v
			}
		}
		return errors.Join(errs...)
	})
	return versions, err
}

// versionOf reads a manifest for its version. Nothing but a file is waited for.
func versionOf(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, manifest.MaxSize+1))
	if err != nil {
		return "", err
	}
	parsed, err := manifest.Parse(text)
	return parsed.Version, err
}
