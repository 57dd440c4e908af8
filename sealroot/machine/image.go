package machine

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"sealroot/init/report"
	"sealroot/state/tpm/predict"
)

// Image is what decides the PCRs of this boot: root hash and security version as
// PID 1 verified them, and the unified kernel image that the slot whose kernel
// runs has on the EFI system partition. Beside an error, which says that the
// unified kernel image cannot be read, the rest is right all the same.
func (m *Machine) Image() (predict.Image, error) {
	hash, err := hex.DecodeString(m.boot.Root.RootHash)
	if err != nil || len(hash) == 0 {
		return predict.Image{}, fmt.Errorf("the boot report has root hash %q", m.boot.Root.RootHash)
	}
	c, err := readConfig(report.Config)
	if err != nil {
		return predict.Image{}, err
	}
	im := predict.Image{Role: m.boot.Root.Role, RootHash: hash, SecurityVersion: m.boot.Root.SecurityVersion, RootPCR: c.WithDefaults().Trust.MeasurePCR}
	for _, l := range c.Images() {
		im.Layers = append(im.Layers, predict.Layer{Name: l.Name, RootHash: l.Hash})
	}
	for _, l := range m.boot.Layers {
		if l.Measured { // it was added
			im.Layers = append(im.Layers, predict.Layer{Name: l.Name, RootHash: l.RootHash})
		}
	}
	if m.boot.BootPath != report.PathUKI && m.boot.BootPath != report.PathUKISecureBoot {
		return im, nil
	}
	slot, err := m.Loaded()
	if err != nil {
		return im, err
	}
	err = m.esp.With(false, func(dir string) error {
		image, err := imageOf(dir, slot)
		if err != nil {
			return err
		}
		f, err := os.Open(filepath.Join(dir, image))
		if err != nil {
			return err
		}
		im.Sections, err = predict.ReadUKI(f)
		return errors.Join(err, f.Close())
	})
	if err != nil {
		return im, fmt.Errorf("cannot read the unified kernel image of slot %s, which runs: %w", slot, err)
	}
	return im, nil
}
