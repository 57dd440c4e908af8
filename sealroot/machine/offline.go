package machine

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/mount"
	"sealroot/mount/blockdev"
	"sealroot/mount/loop"
	"sealroot/slots"
	"sealroot/slots/esp"
	"sealroot/slots/gpt"
	"sealroot/slots/grubenv"
	"sealroot/slots/live"
)

var (
	// ErrInUse: the disk is this machine's, is mounted, or belongs to a virtual
	// machine that runs.
	ErrInUse = errors.New("the disk is in use")
	// ErrNotDisk: neither a disk image nor a whole disk.
	ErrNotDisk = errors.New("not a disk image and not a whole disk")
)

// OpenDisk opens a disk that no machine runs from now: an image file or a whole
// block device. store is the word of the configuration for where its slots are
// kept, "" to find out. Nothing depends on the kernel's own partition scan or on
// udev: each partition that is needed gets a loop device of its own. Close
// detaches them. Errors: ErrInUse, ErrNotDisk.
func OpenDisk(path, store string, write bool) (_ *Machine, err error) {
	f, err := openUnused(path, write)
	if err != nil {
		return nil, err
	}
	a := attachment{file: f, write: write}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.release())
		}
	}()
	disk, err := a.attach()
	if err != nil {
		return nil, fmt.Errorf("cannot use %s: %w", path, err)
	}
	if a.dir, err = os.MkdirTemp("/run", "sealroot-esp-"); err != nil {
		return nil, err
	}
	m := &Machine{
		disk: disk, offline: true, release: a.release, tries: slots.DefaultTries,
		esp: live.ESP{Disk: disk, Mounter: mounter{mount.Kernel{}, true}, Dir: a.dir},
	}
	err = m.esp.With(false, func(dir string) (err error) {
		m.choice, err = detect(dir)
		return err
	})
	switch {
	case store == "" && err != nil:
		return nil, fmt.Errorf("cannot find out where %s keeps its slots (--store says it): %w", path, err)
	case store == live.StoreEFI || store == live.StoreFixed:
		return nil, fmt.Errorf("cannot use %s: a store %q is not on the disk: %w", path, store, ErrNotDisk)
	case store != "":
		// the slots can be read without the ESP; what is on it cannot
		if m.espErr = err; err != nil {
			m.choice.Loader = live.LoaderUKI
		}
		m.choice.Store = store
	}
	return m, nil
}

// OpenFile opens the image of a disk, a file that no machine runs from, to change it.
// Nobody else uses it until it is closed. Errors: ErrInUse, ErrNotDisk.
func OpenFile(path string) (*os.File, error) {
	f, err := openUnused(path, true)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("cannot use %s, only the file of an image: %w", path, ErrNotDisk), err, f.Close())
	}
	return f, nil
}

// openUnused opens an image or a disk and makes sure that nobody else works on
// it. A disk is claimed with O_EXCL, which fails while anything of it is mounted
// or part of a device-mapper device; an image is refused while a loop device
// shows it or while a program, as QEMU does, holds a lock on it.
func openUnused(path string, write bool) (_ *os.File, err error) {
	mode := os.O_RDONLY
	if write {
		mode = os.O_RDWR
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", path, err)
	}
	block := st.Mode&unix.S_IFMT == unix.S_IFBLK
	switch {
	case block && partition(st):
		return nil, fmt.Errorf("cannot use %s, it is a partition: %w", path, ErrNotDisk)
	case block:
		mode |= unix.O_EXCL
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("cannot use %s: %w", path, ErrNotDisk)
	}
	f, err := os.OpenFile(path, mode|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("cannot use %s, a part of it is mounted or runs this machine: %w", path, ErrInUse)
	}
	if err != nil {
		return nil, err
	}
	if !block {
		err = unusedFile(f)
	}
	if err == nil {
		err = flock(f, block)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func partition(st unix.Stat_t) bool {
	_, err := os.Stat(fmt.Sprintf("/sys/dev/block/%d:%d/partition", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	return err == nil
}

// udevTime is how long udev may look at a disk that was just written: it holds
// the same lock meanwhile.
const udevTime = 15 * time.Second

// flock locks the disk against others. Only udev, which locks no file, is
// waited for.
func flock(f *os.File, block bool) error {
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR), block && errors.Is(err, unix.EWOULDBLOCK) && time.Since(begun) < udevTime:
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("cannot use %s, another program has locked it: %w", f.Name(), ErrInUse)
		}
		return fmt.Errorf("cannot lock %s: %w", f.Name(), err)
	}
}

// unusedFile looks for a loop device of the file, and for locks on its bytes.
func unusedFile(f *os.File) error {
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	shown, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, name := range shown {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // detached meanwhile
		}
		other, err := os.Stat(strings.TrimSuffix(string(text), "\n"))
		if err == nil && os.SameFile(mine, other) {
			return fmt.Errorf("cannot use %s, it is attached to /dev/%s: %w",
				f.Name(), filepath.Base(filepath.Dir(filepath.Dir(name))), ErrInUse)
		}
	}
	probe := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &probe); err != nil {
		return fmt.Errorf("cannot look for locks on %s: %w", f.Name(), err)
	}
	if probe.Type != unix.F_UNLCK {
		return fmt.Errorf("cannot use %s, a program holds locks on it (a virtual machine that runs?): %w", f.Name(), ErrInUse)
	}
	return nil
}

// attachment is what OpenDisk makes and Close undoes.
type attachment struct {
	file  *os.File
	write bool
	dir   string // mount point of the ESP
	loops []loop.Device
}

func (a *attachment) release() error {
	var errs []error
	if a.dir != "" {
		errs = append(errs, os.Remove(a.dir))
	}
	for i := len(a.loops) - 1; i >= 0; i-- {
		errs = append(errs, a.loops[i].Detach())
	}
	a.dir, a.loops = "", nil
	return errors.Join(append(errs, a.file.Close())...)
}

// attach shows the disk and those of its partitions that commands use.
func (a *attachment) attach() (*live.Disk, error) {
	sector, err := sectorSize(a.file)
	if err != nil {
		return nil, err
	}
	o := loop.Options{BlockSize: uint32(sector), ReadOnly: !a.write}
	whole, err := a.loop(o)
	if err != nil {
		return nil, err
	}
	d, err := blockdev.Open(whole.Path, false)
	if err != nil {
		return nil, err
	}
	table, err := gpt.Read(d, d.Size(), d.SectorSize())
	size := d.Size()
	if err = errors.Join(err, d.Close()); err != nil {
		return nil, err
	}
	disk := live.New(blockdev.Disk{
		Name: filepath.Base(whole.Path), Node: whole.Path, Major: whole.Major, Minor: whole.Minor,
		Size: size, SectorSize: sector, ReadOnly: !a.write,
	}, table, gpt.NamingOf(table))
	for _, p := range table.Partitions {
		if p.Name != gpt.LabelESP && p.Name != gpt.LabelLog && !strings.HasSuffix(p.Name, gpt.SigLabel("")[len(gpt.RootLabel("")):]) {
			continue
		}
		o.Offset, o.SizeLimit = uint64(table.Offset(p)), uint64(table.Size(p))
		l, err := a.loop(o)
		if err != nil {
			return nil, err
		}
		disk.Block.Partitions = append(disk.Block.Partitions, blockdev.Partition{
			Number: p.Number, Name: filepath.Base(l.Path), Node: l.Path, Major: l.Major, Minor: l.Minor,
			Start: table.Offset(p), Size: table.Size(p),
		})
	}
	return disk, nil
}

func (a *attachment) loop(o loop.Options) (loop.Device, error) {
	l, err := loop.Attach(a.file, o)
	if err != nil {
		return loop.Device{}, err
	}
	a.loops = append(a.loops, l)
	return l, nil
}

// sectorSize is where the header of the partition table is: in the second
// sector. A table whose primary copy is lost is looked for with 512 bytes.
func sectorSize(f *os.File) (int, error) {
	for _, size := range []int{512, 4096} {
		b := make([]byte, 8)
		if _, err := f.ReadAt(b, int64(size)); err != nil {
			return 0, fmt.Errorf("cannot read the partition table: %w: %w", ErrNotDisk, err)
		}
		if bytes.Equal(b, []byte(gpt.Signature)) {
			return size, nil
		}
	}
	return 512, nil
}

// detect finds out from the ESP how the disk's slots are kept and started.
func detect(dir string) (live.Choice, error) {
	c := live.Choice{Store: live.StoreGPT, Loader: live.LoaderUKI}
	env, err := os.ReadFile(filepath.Join(dir, esp.Grubenv))
	switch {
	case err == nil:
		c.Loader = live.LoaderGRUB
		e, err := grubenv.Parse(env)
		if err != nil {
			return live.Choice{}, err
		}
		switch scheme, _ := grubenv.SchemeOf(e); scheme {
		case grubenv.Darch:
			c.Store = live.StoreDarch
		case grubenv.RAUC:
			c.Store = live.StoreRAUC
		}
	case !errors.Is(err, fs.ErrNotExist):
		return live.Choice{}, err
	}
	if _, err := os.Stat(filepath.Join(dir, esp.SystemdBoot)); err == nil {
		c.Loader = live.LoaderSystemdBoot
		counted, err := counters(dir)
		if err != nil {
			return live.Choice{}, err
		}
		if _, err := os.Stat(filepath.Join(dir, esp.Slots)); counted || err == nil {
			c.Store = live.StoreBLS
		}
	}
	return c, nil
}

// counters says whether the name of an image carries a counter.
func counters(dir string) (bool, error) {
	names, err := imageNames(dir)
	for _, name := range names {
		if _, c, ok := esp.ParseUKIName(name); ok && c.Counted {
			return true, err
		}
	}
	return false, err
}

// noHint is the one-shot of a firmware that is not here.
type noHint struct{}

func (noHint) Get() (string, error) { return "", nil }
func (noHint) Arm(string) error     { return nil }
func (noHint) Clear() error         { return nil }
