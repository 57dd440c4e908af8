package machine

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"sealroot/mount/blockdev"
	"sealroot/sealroot/bootset"
	"sealroot/slots"
	"sealroot/slots/efi"
	"sealroot/slots/esp"
	"sealroot/slots/gpt"
	"sealroot/slots/grubenv"
	"sealroot/slots/guid"
	"sealroot/slots/live"
)

// grubDefault is the variable that grub.cfg takes the default slot from.
type grubDefault struct{ dir espDir }

// Name names the place.
func (grubDefault) Name() string { return "GRUB's default" }

// IsDefault reads the variable. A disk without the file has no GRUB, and there
// nothing is to be set.
func (g grubDefault) IsDefault(slot string) (right bool, err error) {
	err = g.dir.With(false, func(dir string) error {
		f, err := os.Open(filepath.Join(dir, esp.Grubenv))
		if errors.Is(err, fs.ErrNotExist) {
			right = true
			return nil
		}
		if err != nil {
			return err
		}
		right, err = grubenv.Hint{File: f}.IsDefault(slot)
		return errors.Join(err, f.Close())
	})
	return right && err == nil, err
}

// SetDefault writes the variable in place, as GRUB's own save_env does.
func (g grubDefault) SetDefault(slot string) error {
	return g.dir.With(true, func(dir string) error {
		f, err := os.OpenFile(filepath.Join(dir, esp.Grubenv), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return errors.Join(grubenv.Hint{File: f}.SetDefault(slot), f.Close())
	})
}

// bootOrder is the firmware's order of boot entries.
type bootOrder struct{ hint efi.Hint }

// Name names the place.
func (bootOrder) Name() string { return "the firmware's boot order" }

// IsDefault says whether the first entry of BootOrder is the slot's.
func (b bootOrder) IsDefault(slot string) (bool, error) { return b.hint.IsDefault(slot) }

// SetDefault puts the slot's entry first.
func (b bootOrder) SetDefault(slot string) error { return b.hint.SetDefault(slot) }

// loaderDefault is the variable of systemd-boot that names its default.
type loaderDefault struct {
	hint efi.LoaderHint
	conf loaderConf
}

var _ bootset.Chooser = loaderDefault{}

// Name names the loader.
func (loaderDefault) Name() string { return live.LoaderSystemdBoot }

// IsDefault reads the variable. One that is missing is to be set.
func (l loaderDefault) IsDefault(slot string) (bool, error) { return l.hint.IsDefault(slot) }

// Starts goes by the file where the variable names no slot, as systemd-boot does.
func (l loaderDefault) Starts(slot string) (bool, error) {
	now, err := l.hint.Default()
	if err != nil || now != "" {
		return now == slot && err == nil, err
	}
	return l.conf.IsDefault(slot)
}

// SetDefault sets the variable alone: the file is a place of its own.
func (l loaderDefault) SetDefault(slot string) error { return l.hint.SetDefault(slot) }

// loaderConf is the default in the configuration of systemd-boot, which counts
// when the firmware has forgotten the variable.
type loaderConf struct{ dir espDir }

// Name names the file.
func (loaderConf) Name() string { return esp.LoaderConf }

// IsDefault reads the file.
func (l loaderConf) IsDefault(slot string) (right bool, err error) {
	err = l.dir.With(false, func(dir string) (err error) {
		right, err = live.LoaderConf(dir).IsDefault(slot)
		return err
	})
	return right && err == nil, err
}

// SetDefault replaces the file. A power cut leaves the old one or the new one.
func (l loaderConf) SetDefault(slot string) error {
	return l.dir.With(true, func(dir string) error {
		return errors.Join(live.LoaderConf(dir).SetDefault(slot), syncFS(dir))
	})
}

// places are all that name a default, for the loader of the configuration. What
// is in the firmware comes first: it has to be right before the files that serve
// when it is lost. l is nil when the firmware's variables are out of reach.
func places(loader string, l slots.Loader, dir espDir) []bootset.Place {
	switch loader {
	case live.LoaderGRUB:
		return []bootset.Place{grubDefault{dir}, fallbackFile{dir}}
	case live.LoaderSystemdBoot:
		files := []bootset.Place{loaderConf{dir}, fallbackFile{dir}}
		if l, ok := l.(live.SystemdBoot); ok {
			return append([]bootset.Place{loaderDefault{l.LoaderHint, loaderConf{dir}}}, files...)
		}
		return files
	}
	if hint, ok := l.(efi.Hint); ok {
		hint.Exists = partitionExists
		return []bootset.Place{bootOrder{hint}, fallbackFile{dir}}
	}
	return []bootset.Place{fallbackFile{dir}}
}

// partitionExists looks for a partition on all disks. When they cannot be listed
// it may exist.
func partitionExists(id guid.GUID) bool {
	disks, err := blockdev.Scan("/sys", "/dev")
	if err != nil {
		return true
	}
	for _, disk := range disks {
		d, err := blockdev.Open(disk.Node, false)
		if err != nil {
			continue // a drive without a medium
		}
		table, err := gpt.Read(d, d.Size(), d.SectorSize())
		d.Close()
		if err != nil {
			continue // not partitioned so
		}
		if _, err := table.ByUUID(id); err == nil {
			return true
		}
	}
	return false
}
