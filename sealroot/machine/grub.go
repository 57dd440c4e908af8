package machine

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"sealroot/slots/esp"
	"sealroot/slots/gpt"
	"sealroot/state/tpm/predict"
)

// GRUB is what EFI GRUB goes by on this machine, but for its names of disk and program,
// and the files that it loads, by slot. A slot without files is left out.
func (m *Machine) GRUB() (g predict.GRUB, files map[string]predict.BootFiles, err error) {
	part, err := m.disk.Partition(gpt.LabelESP)
	if err != nil {
		return predict.GRUB{}, nil, err
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return predict.GRUB{}, nil, err
	}
	list, err := m.disk.Slots()
	if err != nil {
		return predict.GRUB{}, nil, err
	}
	g = predict.GRUB{Partition: part.Number, PartUUID: predict.PartUUIDIn(string(cmdline))}
	files = map[string]predict.BootFiles{}
	err = m.esp.With(false, func(dir string) error {
		program, err := os.Open(filepath.Join(dir, esp.Fallback))
		if err != nil {
			return err
		}
		g.Script, err = predict.ReadGRUBScript(program)
		if err = errors.Join(err, program.Close()); err != nil {
			return fmt.Errorf("%s: %w", esp.Fallback, err)
		}
		for _, s := range list {
			var f predict.BootFiles
			f.Kernel, err = digestOf(filepath.Join(dir, esp.Kernel(s.Name)))
			if err == nil {
				f.Initrd, err = digestOf(filepath.Join(dir, esp.Initrd(s.Name)))
			}
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			files[s.Name] = f
		}
		return nil
	})
	if err != nil {
		return predict.GRUB{}, nil, fmt.Errorf("cannot tell what GRUB measures: %w", err)
	}
	return g, files, nil
}

// digestOf is the SHA-256 of a file.
func digestOf(path string) (d [32]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return d, err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return d, err
	}
	return [32]byte(sum.Sum(nil)), nil
}
