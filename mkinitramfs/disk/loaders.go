package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"sealroot/init/config"
	"sealroot/mkinitramfs/grub"
	"sealroot/mkinitramfs/tools"
	"sealroot/slots/efi"
	"sealroot/slots/esp"
	"sealroot/slots/manifest"
)

// bootFiles are the files on the ESP of one slot, and what describes them.
func bootFiles(s set, c esp.Counter) map[string]content {
	files := map[string]content{
		esp.Dir(s.name) + "/" + manifest.File:          {data: s.parts.manifest},
		esp.Dir(s.name) + "/" + manifest.SignatureFile: {data: s.parts.signed},
	}
	for _, part := range bootNames(s.in.Config.Boot.Loader) {
		from := content{path: s.parts.path(part)}
		switch part {
		case manifest.Kernel:
			files[esp.Kernel(s.name)] = from
		case manifest.Initrd:
			files[esp.Initrd(s.name)] = from
		case manifest.UKI:
			files[esp.LinuxDir+"/"+esp.UKIName(s.name, c)] = from
		}
	}
	return files
}

// loader is a boot loader as it goes onto a disk.
type loader struct {
	files map[string]content // on the ESP, of no slot
	bios  *grub.Images       // beside the ESP; nil for none
}

// loader makes the boot loader of the disk. sets holds the slots that are
// filled, names those that there are.
func (b *Builder) loader(ctx context.Context, sets []set, names []string, work string) (loader, error) {
	boot, first := sets[0].in.Config.Boot, sets[0]
	switch boot.Loader {
	case config.LoaderGRUB:
		// All slots are named although one may be empty: it is filled later, and
		// this configuration stays.
		return b.grub(ctx, grub.Settings{Slots: names, Cmdline: first.in.Cmdline, OneBoot: oneBoot(boot.Store)}, work)
	case config.LoaderSystemdBoot:
		return b.systemdBoot(ctx, first.name, work)
	}
	// What firmware without boot entries starts: the committed slot.
	return loader{files: map[string]content{esp.Fallback: {path: first.parts.path(manifest.UKI)}}}, nil
}

func (b *Builder) grub(ctx context.Context, s grub.Settings, work string) (loader, error) {
	cfg, err := grub.Config(s)
	if err != nil {
		return loader{}, err
	}
	bios, err := grub.BIOS(ctx, b.Tools, cfg, work)
	if err != nil {
		return loader{}, err
	}
	program, err := grub.EFI(ctx, b.Tools, cfg, work)
	if err != nil {
		return loader{}, err
	}
	return loader{files: map[string]content{esp.Fallback: {data: program}}, bios: &bios}, nil
}

// systemdBoot makes systemd-boot with the slot as its default.
func (b *Builder) systemdBoot(ctx context.Context, slot, work string) (loader, error) {
	path, err := b.Tools.Data(tools.SystemdBoot)
	if err != nil {
		return loader{}, err
	}
	if b.Signing.Secure != nil {
		signed := filepath.Join(work, "systemd-boot.efi")
		if err := b.Signing.Secure.Sign(ctx, b.Tools, path, signed); err != nil {
			return loader{}, err
		}
		path = signed
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return loader{}, fmt.Errorf("cannot read systemd-boot: %w", err)
	}
	return loader{files: map[string]content{
		esp.Fallback: {data: program}, esp.SystemdBoot: {data: program}, esp.LoaderConf: {data: []byte(loaderConf(slot))},
	}}, nil
}

// loaderConf is loader.conf(5). Nobody at the keyboard chooses an entry or edits
// one, and systemd-boot writes no random seed: a boot of a committed slot writes
// nothing to the disk. Without a default it would start the newest version.
func loaderConf(slot string) string {
	text, _ := efi.ConfDefault("# sealroot: EFI variables choose the slot; this is what holds without them\n"+
		"timeout 0\neditor no\nauto-entries no\nauto-firmware no\nrandom-seed-mode off\n", slot)
	return text
}

// place writes what is beside the ESP.
func (l loader) place(disk *os.File, bios partition) error {
	if l.bios == nil {
		return nil
	}
	return l.bios.Embed(disk, uint64(bios.start/sectorSize), uint64(bios.size/sectorSize))
}

// require checks that the tools and files of other projects are there.
func (b *Builder) require(in SlotInput, disk bool) error {
	l := in.Config.Boot.Loader
	programs := append(imagePrograms(filesystemOf(in)), layerPrograms(in.Config)...)
	var data []tools.DataFile
	if disk {
		programs = append(programs, "mkfs.vfat", "mcopy", "mke2fs")
		if len(in.Config.FromState()) > 0 {
			programs = append(programs, "debugfs", "e2fsck")
		}
	}
	if l == config.LoaderGRUB {
		if disk {
			programs = append(programs, "grub-mkimage")
			data = append(data, tools.GRUBDir, tools.GRUBEFIDir)
		}
	} else {
		programs = append(programs, "objcopy")
		data = append(data, tools.EFIStub)
		if b.Signing.Secure != nil {
			programs = append(programs, b.Signing.Secure.Programs()...)
		}
	}
	if l == config.LoaderSystemdBoot && disk {
		data = append(data, tools.SystemdBoot)
	}
	errs := []error{b.Tools.Require(programs...)}
	for _, d := range data {
		_, err := b.Tools.Data(d)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
