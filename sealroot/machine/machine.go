// Package machine is the booted machine as the command sealroot acts on it: the
// boot disk, its slots, and all that says what is started next.
package machine

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/init/cmdline"
	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/mount/blockdev"
	"sealroot/sealroot/bootset"
	"sealroot/slots"
	"sealroot/slots/bls"
	"sealroot/slots/bootlog"
	"sealroot/slots/efi"
	"sealroot/slots/efi/efivarfs"
	"sealroot/slots/esp"
	"sealroot/slots/gpt"
	"sealroot/slots/live"
	"sealroot/slots/manifest"
	"sealroot/verity/signature"
)

// ErrOtherDisk: the disk found is not the one that the boot report names.
var ErrOtherDisk = errors.New("not the disk that was booted from")

// maxImages bounds the names that are looked at in EFI/Linux.
const maxImages = 1000

// espMount is where the ESP is mounted while it is needed by a command that holds
// the lock; others have a place each, beginning so.
const espMount = report.ESP

// efiVars is where systems mount efivarfs.
const efiVars = "/sys/firmware/efi/efivars"

// Machine is the boot disk and what started from it.
type Machine struct {
	disk      *live.Disk
	boot      report.Report
	choice    live.Choice
	refill    int // tries that a commit gives, with boot.recount
	tries     int // boot.tries
	root      config.Root
	replicate []string
	own       []manifest.Layer // of the running system, in partitions of its slot
	esp       live.ESP
	vars      efi.Vars // nil for a disk that is not this machine's
	offline   bool     // opened by OpenDisk
	espErr    error    // why the ESP of such a disk cannot be read
	release   func() error
}

// Open finds the disk that the machine was booted from: the same way as PID 1
// did, and then compared with what PID 1 reported. A zero report, of a machine
// that sealroot did not boot, finds the only disk that has slots. locked says
// that the caller holds the lock of the commands that write.
func Open(boot report.Report, locked bool) (*Machine, error) {
	vars := efivarfs.Dir(efiVars)
	from := boot.Disk.BootPartition // the loader may have known an older UUID
	if from == "" {
		from = startedFrom(vars)
	}
	c, err := readConfig(report.Config)
	if err != nil {
		return nil, err
	}
	disk, err := find(c.Root, from)
	if err != nil {
		return nil, err
	}
	if guid := disk.Table.Disk.String(); boot.Disk.GUID != "" && !strings.EqualFold(guid, boot.Disk.GUID) {
		return nil, fmt.Errorf("cannot use %s: its table has GUID %s, the boot report names %s: %w",
			disk.Block.Node, guid, boot.Disk.GUID, ErrOtherDisk)
	}
	_, noEFI := os.Stat(filepath.Dir(efiVars))
	_, noVars := os.Stat(efiVars)
	c = c.WithDefaults()
	own, err := ownLayers(c)
	if err != nil {
		return nil, err
	}
	m := &Machine{
		disk: disk, own: own, boot: boot, vars: vars, choice: chosen(c, boot, firmware{noEFI == nil, noVars == nil}), refill: refill(c), tries: c.Boot.Tries, replicate: c.Boot.Replicate, root: c.Root,
		esp: live.ESP{Disk: disk, Mounter: mounter{mount.Kernel{}, locked}, Dir: espMount},
	}
	if m.choice.Discoverable {
		if _, err := disk.Discover(c.Wanted(), signature.ReadRootHash); err != nil {
			return nil, err
		}
	}
	if !locked {
		m.esp.Dir = readerMount(os.Getpid())
		m.release = func() error {
			if err := os.Remove(m.esp.Dir); !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		}
	}
	return m, nil
}

// find finds the boot disk. A machine that has no configuration may have slots of
// either kind.
func find(root config.Root, from string) (*live.Disk, error) {
	disk, err := live.Find("/sys", "/dev", root.Naming(), from)
	if root.Source == "" && (errors.Is(err, live.ErrNoDisk) || err == nil && gpt.NamingOf(disk.Table).Usr) {
		return live.Find("/sys", "/dev", gpt.Naming{Usr: true}, from)
	}
	return disk, err
}

// Loaded is the slot whose kernel runs, as far as that can be found out: PID 1
// does not read the ESP to tell whose copy EFI/BOOT/BOOTX64.EFI is.
func (m *Machine) Loaded() (string, error) {
	if m.boot.Slot.Loaded != "" || m.offline || !m.choice.OwnKernels() || m.choice.Loader == live.LoaderGRUB {
		return m.boot.Slot.Loaded, nil
	}
	return loadedFallback(m.esp, m.boot.Slot.Name)
}

// loadedFallback is the slot whose image the fallback file is a copy of; of
// several the running one. When it is none's, the kernel is foreign to all.
func loadedFallback(dir espDir, running string) (slot string, err error) {
	slot = slots.UnknownKernel
	err = dir.With(false, func(dir string) error {
		same, err := efi.FallbackSlots(os.DirFS(dir))
		if len(same) > 0 {
			slot = same[0]
		}
		if slices.Contains(same, running) {
			slot = running
		}
		return err
	})
	return slot, err
}

// Close lets go of what was attached for a disk that is not this machine's.
func (m *Machine) Close() error {
	if m.release == nil {
		return nil
	}
	return m.release()
}

// Refill is how many tries a commit gives; 0 without boot.recount.
func (m *Machine) Refill() int { return m.refill }

// Kept says which store keeps the slots and which loader starts them, in the
// words of the configuration.
func (m *Machine) Kept() (store, loader string) {
	if m.espErr != nil {
		return m.choice.Store, "" // it would have said
	}
	return m.choice.Store, m.choice.Loader
}

func (m *Machine) kept() (live.Kept, error) {
	c := m.choice
	if m.offline && c.Loader != live.LoaderGRUB {
		c.Direct = true // its settings are in the firmware of another machine
	}
	return m.disk.Open(c, m.esp, m.vars)
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

// mounter gets along with mounts of the ESP that are there already: those of
// commands that were killed, at the same place or at a reader's own, one of the
// system for writing, beside which Linux makes no read-only one, and a read-only
// one of a command that reads meanwhile, which a writer waits for. Only who holds
// the lock may undo a mount that it has not made.
type mounter struct {
	mount.Mounter
	locked bool
}

// How long a writer waits for readers, and how often it looks.
const (
	readerTime = 10 * time.Second
	readerPoll = 50 * time.Millisecond
)

// Mount mounts p.
func (m mounter) Mount(p mount.Point) error {
	err := m.Mounter.Mount(p)
	if errors.Is(err, unix.EBUSY) && m.locked && m.undoDead(p.Where) {
		err = m.Mounter.Mount(p)
	}
	for waited := time.Duration(0); errors.Is(err, unix.EBUSY) && p.Flags&unix.MS_RDONLY == 0 && waited < readerTime; waited += readerPoll {
		time.Sleep(readerPoll)
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

// undoDead unmounts what commands that live no more have left: at where, which
// only who holds the lock uses, and at the places of readers (readerMount).
func (m mounter) undoDead(where string) (undone bool) {
	undone = m.Unmount(where) == nil
	places, err := filepath.Glob(where + "-*")
	if err != nil {
		return undone
	}
	for _, place := range places {
		pid, err := strconv.Atoi(place[len(where)+1:])
		if err != nil || pid < 1 || !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			continue
		}
		undone = m.Unmount(place) == nil || undone
		_ = os.Remove(place) // an empty folder in /run that stays hurts nobody
	}
	return undone
}

// readerMount is where a reader mounts the ESP.
func readerMount(pid int) string { return espMount + "-" + strconv.Itoa(pid) }

func (m *Machine) log() live.BootLog { return live.BootLog{Disk: m.disk, BootID: m.boot.BootID} }

// Record is the boot log's record that counts.
func (m *Machine) Record() (bootlog.Record, error) { return m.log().Load() }

// UpdateRecord changes the boot log's record and makes it durable.
func (m *Machine) UpdateRecord(change func(bootlog.Record) (bootlog.Record, error)) error {
	return m.log().Update(change)
}

// Slots are the live values of the store.
func (m *Machine) Slots() ([]slots.Slot, error) {
	k, err := m.kept()
	if err != nil {
		return nil, err
	}
	return k.Store.Load()
}

// BootSet is what the commands that change slots act on. changed is told of
// each place whose default was changed.
func (m *Machine) BootSet(changed func(place, slot string)) (bootset.Machine, error) {
	k, err := m.kept()
	if err != nil {
		return bootset.Machine{}, err
	}
	b := bootset.Machine{Store: k.Store, HoldsImage: m.holdsImage, Refill: m.refill, Tries: m.Tries()}
	if log := m.log(); !log.Absent() {
		b.Log = log
	}
	// Without the log, no place of a slot is known that it could get back.
	if r, err := m.Record(); err == nil {
		b.Failures = r.SlotFailures()
	}
	if m.espErr != nil {
		return bootset.Machine{}, m.espErr
	}
	if m.offline {
		list, err := k.Store.Load()
		if err != nil {
			return bootset.Machine{}, fmt.Errorf("cannot read the slots: %w", err)
		}
		b.Refill = recounted(list)
	}
	if !m.choice.OwnKernels() {
		return b, nil // nobody to tell
	}
	l := bootset.Loader{Hint: k.Loader, Places: places(m.choice.Loader, k.Loader, m.esp), Changed: changed}
	if k.Loader == nil {
		// without variables of the firmware there are still the files
		b.Unarmed, l.Hint = true, noHint{}
	}
	b.Loader = l
	return b, nil
}

// recounted is how many tries a commit gives on a disk of another machine, whose
// configuration is not known: where committed slots are counted they have some,
// and one without would come last.
func recounted(list []slots.Slot) int {
	most := 0
	for _, s := range list {
		if s.Successful {
			most = max(most, s.Tries)
		}
	}
	if most == 0 {
		return 0
	}
	return max(most, slots.DefaultTries)
}

// holdsImage looks for what starting the slot takes: a readable signature, and
// the kernel where the loader of this machine looks for it. That the image
// itself is whole is checked by the boot, as always.
func (m *Machine) holdsImage(slot string) error {
	part, err := m.disk.InSlot(slot, gpt.Sig)
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
	if !m.choice.OwnKernels() {
		return nil // no loader looks for a kernel
	}
	return m.esp.With(false, func(dir string) error {
		if m.choice.Loader == live.LoaderGRUB {
			return present(dir, []string{esp.Kernel(slot), esp.Initrd(slot)})
		}
		image, err := imageOf(dir, slot)
		if err != nil {
			return err
		}
		return present(dir, []string{image})
	})
}

// imageOf is the path of the slot's unified kernel image, whose name may carry
// a counter. Of several that a power cut left, it is the one that counts.
func imageOf(dir, slot string) (string, error) {
	names, err := imageNames(dir)
	if err != nil {
		return "", err
	}
	if name, ok := bls.FileOf(names, slot); ok {
		return esp.LinuxDir + "/" + name, nil
	}
	return esp.UKI(slot), nil
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

// imageNames lists EFI/Linux, which may be missing.
func imageNames(dir string) ([]string, error) {
	d, err := os.Open(filepath.Join(dir, esp.LinuxDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(maxImages)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return names, nil
}
