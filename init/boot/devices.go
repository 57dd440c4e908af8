package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/mount"
	"sealroot/mount/kmod"
	"sealroot/mount/uevent"
	"sealroot/slots"
	"sealroot/slots/live"
)

// loadModules loads what every boot needs and listens for devices before any
// driver is loaded, so that no event is missed.
func (b *boot) loadModules(ctx context.Context) error {
	text, err := readBounded(kmod.ListPath, 4<<20)
	if err != nil {
		return fmt.Errorf("cannot read the list of modules: %w", err)
	}
	list, err := kmod.Parse(text)
	if err != nil {
		return fmt.Errorf("cannot use %s: %w", kmod.ListPath, err)
	}
	if err := list.CheckRelease(); err != nil {
		return err
	}
	b.kernelRelease = list.Release
	if b.events, err = uevent.Listen(); err != nil {
		return err
	}
	b.loader = kmod.NewLoader(list, "/sys", b.sys.Modules)
	if err := b.loader.LoadGroup(ctx, kmod.GroupBase); err != nil {
		b.warn("%v", err)
	}
	return b.loadDrivers(ctx, nil)
}

// loadDrivers loads the drivers of devices: of all that sysfs shows, or of
// those that events tell of.
func (b *boot) loadDrivers(ctx context.Context, events []uevent.Event) error {
	var warnings []error
	if len(events) > 0 {
		var aliases []string
		for _, e := range events {
			if a := e.Env["MODALIAS"]; e.Action == "add" && a != "" {
				aliases = append(aliases, a)
			}
		}
		warnings = b.loader.LoadModaliases(ctx, aliases)
	} else {
		var err error
		if warnings, err = b.loader.LoadForDevices(ctx); err != nil {
			return err
		}
	}
	for _, w := range warnings {
		b.warn("%v", w)
	}
	return nil
}

// diskDeadline is how long the boot disk may take to appear; USB disks are slow.
const diskDeadline = 30 * time.Second

// findDisk waits for the boot disk. No other disk is ever looked into for more
// than its partition table.
func (b *boot) findDisk(ctx context.Context) error {
	b.readFirmware(ctx)
	want := b.cmd.DiskUUID
	if want == "" {
		want = b.fw.ESP
	}
	what := "the boot disk: one with a partition root-a"
	if want != "" {
		what = "the boot disk: the one with partition UUID " + want
	}
	ctx, cancel := context.WithTimeout(ctx, diskDeadline)
	defer cancel()
	err := uevent.WaitFor(ctx, what, b.events, func(events []uevent.Event) (bool, error) {
		if err := b.loadDrivers(ctx, events); err != nil {
			return false, err
		}
		disk, err := live.Find("/sys", "/dev", want)
		if errors.Is(err, live.ErrNoDisk) {
			return false, nil
		}
		b.disk = disk
		return err == nil, err
	})
	if err != nil {
		return environmentError(slots.DeviceMissing, "%w", err)
	}
	b.report.Disk.Device, b.report.Disk.GUID, b.report.Disk.FoundBy = b.disk.Block.Node, b.disk.Table.Disk.String(), "loader"
	if want == "" {
		b.report.Disk.FoundBy = "only-candidate"
	}
	b.report.BootPath = string(b.fw.path(b.grub()))
	b.sys.Log.Info("boot disk %s; %s", b.disk.Block.Node, b.fw.path(b.grub()).describe())
	return nil
}

func (b *boot) grub() bool { return b.cfg.Boot.Loader == config.LoaderGRUB }

// readFirmware asks the EFI variables how the machine was started.
func (b *boot) readFirmware(ctx context.Context) {
	if _, err := os.Stat("/sys/firmware/efi"); errors.Is(err, os.ErrNotExist) {
		return
	}
	b.fw.EFI = true
	b.loadHints(ctx)
	if err := b.sys.Mounter.Mount(mount.EFIVars()); err != nil {
		b.warn("cannot read EFI variables: %v", err)
		return
	}
	b.readEFI()
}

// loadHints loads what the ESP and EFI variables need. A module that finds no
// device (efivarfs on a BIOS machine) is not worth a word: what needs it fails
// with an error of its own.
func (b *boot) loadHints(ctx context.Context) {
	if err := b.loader.LoadGroup(ctx, kmod.GroupHint); err != nil && !errors.Is(err, unix.ENODEV) {
		b.warn("%v", err)
	}
}
