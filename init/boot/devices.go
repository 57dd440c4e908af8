package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/bounded"
	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/mount/kmod"
	"sealroot/mount/uevent"
	"sealroot/slots"
	"sealroot/slots/gpt"
	"sealroot/slots/live"
)

// loadModules loads what every boot needs and listens for devices before any
// driver is loaded, so that no event is missed.
func (b *boot) loadModules(ctx context.Context) error {
	text, err := bounded.ReadFile(kmod.ListPath, 4<<20)
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
		warnings = b.loader.LoadModaliases(ctx, modaliases(events))
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
	naming := b.cfg.Root.Naming()
	what := "the boot disk: one with a partition " + naming.Label("a", gpt.Data)
	if naming.UUIDs != nil {
		what = "the boot disk: one with a partition of root.partuuids"
	}
	if want != "" {
		what = "the boot disk: the one with partition UUID " + want
	}
	ctx, cancel := context.WithTimeout(ctx, diskDeadline)
	defer cancel()
	var last error
	err := uevent.WaitFor(ctx, what, b.events, func(events []uevent.Event) (bool, error) {
		if err := b.loadDrivers(ctx, events); err != nil {
			return false, err
		}
		b.disk, last = live.Find("/sys", "/dev", naming, want)
		if errors.Is(last, live.ErrNoDisk) {
			return false, nil
		}
		return last == nil, last
	})
	if err != nil {
		if last != nil && !errors.Is(err, last) {
			err = fmt.Errorf("%w: %w", err, last)
		}
		return environmentError(slots.DeviceMissing, "%w", err)
	}
	b.renewGUIDs()
	b.report.Disk = report.Disk{
		Device: b.disk.Block.Node, GUID: b.disk.Table.Disk.String(), FoundBy: report.FoundByLoader, BootPartition: b.disk.LoadedFrom(),
	}
	if want == "" {
		b.report.Disk.FoundBy = report.FoundAlone
	}
	b.report.BootPath = string(b.started())
	b.sys.Log.Info("boot disk %s; %s", b.disk.Block.Node, b.started().Describe())
	return nil
}

// renewGUIDs gives a disk that starts for the first time GUIDs of its own, so that
// the medium it was copied from is no second candidate at later boots. Nothing
// depends on it: a disk that cannot be written keeps those it was built with, and so
// does one that the firmware's boot entries name, or may name unread.
func (b *boot) renewGUIDs() {
	if b.cfg.Boot.NewGUIDs != config.NewGUIDsFirstBoot || b.fw.EFI && !b.fw.Vars {
		return
	}
	renewed, err := b.disk.Renew(b.sys.Rand, b.efiVars())
	switch {
	case errors.Is(err, live.ErrNamed):
		b.sys.Log.Info("%s keeps the GUIDs it was built with: %v", b.disk.Block.Node, err)
	case err != nil:
		b.warn("cannot give the disk new GUIDs: %v", err)
	case renewed:
		b.sys.Log.Info("first boot of %s: it and its partitions have new GUIDs", b.disk.Block.Node)
	}
}

// sameDisk looks once more before the state is touched: a copy of the boot disk
// may have appeared since, and must not be taken for it.
func (b *boot) sameDisk() error {
	again, err := live.Find("/sys", "/dev", b.cfg.Root.Naming(), b.disk.LoadedFrom())
	if err == nil && again.Block.DevNo() != b.disk.Block.DevNo() {
		err = fmt.Errorf("the boot disk was %s and is now %s: %w", b.disk.Block.Node, again.Block.Node, live.ErrAmbiguous)
	}
	if err != nil {
		return environmentError(slots.DeviceMissing, "%w", err)
	}
	return nil
}

func (b *boot) grub() bool { return b.cfg.Boot.Loader == config.LoaderGRUB }

// bootedBy is where the kernel (on x86) shows the loader's type times 16, kexecType that
// of kexec (Documentation/arch/x86/boot.rst, type_of_loader). A loader may say so of
// itself too, and gets nothing by that.
const (
	bootedBy  = "/proc/sys/kernel/bootloader_type"
	kexecType = 0xd
)

// readFirmware asks the kernel and the EFI variables how the machine was started.
func (b *boot) readFirmware(ctx context.Context) {
	text, _ := bounded.ReadFile(bootedBy, 16)
	n, _ := strconv.Atoi(string(bytes.TrimSpace(text)))
	b.fw.Kexec = n>>4 == kexecType
	if _, err := os.Stat("/sys/firmware/efi"); errors.Is(err, os.ErrNotExist) {
		return
	}
	b.fw.EFI = true
	b.loadHints(ctx)
	if err := b.sys.Mounter.Mount(mount.EFIVars()); err != nil {
		b.warn("cannot read EFI variables: %v", err)
		return
	}
	b.fw.Vars = true
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

// watchDrivers loads drivers for devices that appear while a person is asked.
// The function that it returns ends it.
func (b *boot) watchDrivers(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	var failed error // of the goroutine; read when it is done
	load := func(aliases []string) {
		for _, w := range b.loader.LoadModaliases(ctx, aliases) {
			b.sys.Log.Warn("%v", w)
		}
	}
	go func() {
		defer close(done)
		if b.loader == nil || b.events == nil {
			return
		}
		failed = guarded(ctx, func(ctx context.Context) error {
			if all, err := kmod.Modaliases("/sys"); err == nil {
				load(all)
			}
			for {
				events, err := b.events.Next(ctx)
				if err != nil {
					return nil
				}
				load(modaliases(events))
			}
		})
	}()
	return func() {
		cancel()
		<-done
		if failed != nil {
			b.warn("cannot load drivers while a person is asked: %v", failed)
		}
	}
}

func modaliases(events []uevent.Event) []string {
	var aliases []string
	for _, e := range events {
		if a := e.Env["MODALIAS"]; e.Action == "add" && a != "" {
			aliases = append(aliases, a)
		}
	}
	return aliases
}
