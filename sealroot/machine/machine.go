// Package machine is the booted machine as the command sealroot acts on it: the
// boot disk, its slots, and all that says what is started next.
package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/init/cmdline"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/mount/blockdev"
	"sealroot/sealroot/bootset"
	"sealroot/slots"
	"sealroot/slots/bootlog"
	"sealroot/slots/efi"
	"sealroot/slots/efi/efivarfs"
	"sealroot/slots/gpt"
	"sealroot/slots/live"
	"sealroot/verity/signature"
)

// ErrOtherDisk: the disk found is not the one that the boot report names.
var ErrOtherDisk = errors.New("not the disk that was booted from")

// espMount is where the ESP is mounted while it is needed.
const espMount = "/run/sealroot/esp"

// efiVars is where systems mount efivarfs.
const efiVars = "/sys/firmware/efi/efivars"

// Machine is the boot disk and what started from it.
type Machine struct {
	disk *live.Disk
	boot report.Report
	esp  live.ESP
	vars efivarfs.Dir
}

// Open finds the disk that the machine was booted from: the same way as PID 1
// did, and then compared with what PID 1 reported. A zero report, of a machine
// that sealroot did not boot, finds the only disk that has slots.
func Open(boot report.Report) (*Machine, error) {
	vars := efivarfs.Dir(efiVars)
	disk, err := live.Find("/sys", "/dev", startedFrom(vars))
	if err != nil {
		return nil, err
	}
	if guid := disk.Table.Disk.String(); boot.Disk.GUID != "" && !strings.EqualFold(guid, boot.Disk.GUID) {
		return nil, fmt.Errorf("cannot use %s: its table has GUID %s, the boot report names %s: %w",
			disk.Block.Node, guid, boot.Disk.GUID, ErrOtherDisk)
	}
	return &Machine{
		disk: disk, boot: boot, vars: vars,
		esp: live.ESP{Disk: disk, Mounter: mounter{mount.Kernel{}}, Dir: espMount},
	}, nil
}

// startedFrom is the UUID of the partition that the boot loader started from,
// "" when none told.
func startedFrom(vars efi.Vars) string {
	if line, err := os.ReadFile("/proc/cmdline"); err == nil {
		if uuid := cmdline.Parse(string(line)).DiskUUID; uuid != "" {
			return uuid
		}
	}
	if id, err := efi.LoaderPartition(vars); err == nil {
		return id.String()
	}
	return ""
}

// mounter gets along with mounts of the ESP that are there already: one of ours
// left at the same place by a command that was killed, and one of the system
// for writing, beside which Linux makes no read-only one.
type mounter struct{ mount.Mounter }

// Mount mounts p.
func (m mounter) Mount(p mount.Point) error {
	err := m.Mounter.Mount(p)
	if errors.Is(err, unix.EBUSY) && m.Unmount(p.Where) == nil {
		err = m.Mounter.Mount(p)
	}
	if errors.Is(err, unix.EBUSY) && p.Flags&unix.MS_RDONLY != 0 {
		p.Flags &^= unix.MS_RDONLY
		err = m.Mounter.Mount(p)
	}
	if errors.Is(err, unix.ENODEV) {
		err = fmt.Errorf("%w: the running kernel has no %s (is its module in the image?)", err, p.Type)
	}
	return err
}

func (m *Machine) log() live.BootLog { return live.BootLog{Disk: m.disk, BootID: m.boot.BootID} }

// Record is the boot log's record that counts.
func (m *Machine) Record() (bootlog.Record, error) { return m.log().Load() }

// Slots are the live values of the store.
func (m *Machine) Slots() ([]slots.Slot, error) { return m.disk.Store().Load() }

// startedByUKI says that the firmware started a unified kernel image: no boot
// loader stands between, and the firmware's own variables decide.
func (m *Machine) startedByUKI() bool {
	return m.boot.BootPath == "uki" || m.boot.BootPath == "uki-secure-boot"
}

// BootSet is what commit and try act on. changed is told of each place whose
// default was changed.
func (m *Machine) BootSet(changed func(place, slot string)) (bootset.Machine, error) {
	b := bootset.Machine{Store: m.disk.Store(), Log: m.log(), HoldsImage: m.holdsImage}
	loader := bootset.Loader{
		Places:  []bootset.Place{grubDefault{m.esp}, fallbackFile{m.esp}},
		Changed: changed,
	}
	switch {
	case m.startedByUKI():
		hint, err := m.disk.EFIHint(m.vars)
		if err != nil {
			return bootset.Machine{}, err
		}
		loader.Hint = hint
		// The boot order comes first: it has to be right before the file that
		// serves when it is lost is exchanged.
		loader.Places = append([]bootset.Place{bootOrder{hint}}, loader.Places...)
	case m.boot.Slot.Loaded != "" && m.boot.Disk.FoundBy == "loader":
		loader.Hint = live.GrubHint{ESP: m.esp}
	default:
		return b, nil // the kernel was loaded directly: nobody to tell
	}
	b.Loader = loader
	return b, nil
}

// holdsImage looks for what starting the slot takes: a readable signature, and
// the kernel where the loader of this machine looks for it. That the image
// itself is whole is checked by the boot, as always.
func (m *Machine) holdsImage(slot string) error {
	part, err := m.disk.Partition(gpt.SigLabel(slot))
	if err != nil {
		return err
	}
	d, err := blockdev.Open(part.Node, false)
	if err != nil {
		return err
	}
	defer d.Close()
	if _, err := signature.Read(d); errors.Is(err, signature.ErrFormat) {
		return fmt.Errorf("its signature partition: %w: %w", err, bootset.ErrNoImage)
	} else if err != nil {
		return fmt.Errorf("cannot read its signature partition: %w", err)
	}
	var files []string
	switch {
	case m.startedByUKI():
		files = []string{imagePath(slot)}
	case m.boot.Slot.Loaded != "":
		files = []string{"sealroot/" + slot + "/vmlinuz", "sealroot/" + slot + "/initrd"}
	default:
		return nil
	}
	return m.esp.With(false, func(dir string) error { return present(dir, files) })
}

// present demands files that are there and not empty.
func present(dir string, files []string) error {
	for _, name := range files {
		st, err := os.Stat(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) || err == nil && st.Size() == 0 {
			return fmt.Errorf("%s is missing or empty: %w", name, bootset.ErrNoImage)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
