// Package dm opens device-mapper devices: dm-verity for the root, dm-crypt for
// the state. It knows nothing of superblocks or LUKS headers; the caller
// describes the device with numbers that it has checked.
package dm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/anatol/devmapper.go"
	"golang.org/x/sys/unix"
)

// Errors that callers tell apart.
var (
	// ErrTarget means that a target's description is not acceptable.
	ErrTarget = errors.New("bad device-mapper target")
	// ErrExists means that a device of the name or UUID is there already.
	ErrExists = errors.New("device-mapper device exists")
	// ErrNoNode means that the device was made and its node did not appear.
	ErrNoNode = errors.New("no device node")
)

// Device is an open mapped device.
type Device struct {
	Name         string
	Path         string // e.g. /dev/dm-0
	Major, Minor uint32
	// ErrorsToo: a verity device answers a read that fails as it answers
	// corruption. It is false with CorruptionEIO, where both are EIO anyway.
	ErrorsToo bool
	// Repairs: a verity device repairs by the parity of its target.
	Repairs bool
}

// DevNo is the device as a table line names it, e.g. "254:0".
func (d Device) DevNo() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// Control makes and removes devices. Use New.
type Control struct {
	kernel kernel
	dev    string // directory of device nodes
	sleep  func(time.Duration)
}

// New is the Control of the running kernel; /dev must be a devtmpfs.
func New() Control {
	return Control{kernel: ioctls{}, dev: "/dev", sleep: time.Sleep}
}

// Verity opens a dm-verity device, read-only. Beside t.OnCorruption the kernel
// is asked to treat a read that fails in the same way, and to repair by t.FEC;
// one that cannot (before 6.12; without DM_VERITY_FEC) is asked without, and
// Device.ErrorsToo and Device.Repairs tell. Blocks are checked in any case.
func (c Control) Verity(name, uuid string, t VerityTarget) (Device, error) {
	var tables []devmapper.Table
	var given []Device // by each of them
	for _, ask := range []Device{{ErrorsToo: true, Repairs: true}, {Repairs: true}, {ErrorsToo: true}, {}} {
		if ask.ErrorsToo && t.OnCorruption == CorruptionEIO || ask.Repairs && t.FEC.Roots == 0 {
			continue // not wanted
		}
		table, err := t.table(ask.ErrorsToo, ask.Repairs)
		if err != nil {
			return Device{}, fmt.Errorf("cannot open verity device %s: %w", name, err)
		}
		tables, given = append(tables, table), append(given, ask)
	}
	d, used, err := c.create(name, uuid, devmapper.ReadOnlyFlag, tables...)
	if err != nil {
		return Device{}, fmt.Errorf("cannot open verity device %s: %w", name, err)
	}
	d.ErrorsToo, d.Repairs = given[used].ErrorsToo, given[used].Repairs
	return d, nil
}

// Crypt opens a dm-crypt device. The key is a logon key of that description in
// a keyring of the calling thread, put there by keyring.With, in whose function
// Crypt is called. With that no secret passes through this package, and the
// ioctl needs no DM_SECURE_DATA_FLAG.
func (c Control) Crypt(name, uuid string, t CryptTarget, keyDescription string) (Device, error) {
	table, err := t.table(keyDescription)
	if err != nil {
		return Device{}, fmt.Errorf("cannot open crypt device %s: %w", name, err)
	}
	flags := uint32(0)
	if t.ReadOnly {
		flags = devmapper.ReadOnlyFlag
	}
	d, _, err := c.create(name, uuid, flags, table)
	if err != nil {
		return Device{}, fmt.Errorf("cannot open crypt device %s: %w", name, err)
	}
	return d, nil
}

// Recrypt exchanges the table of a device that Crypt made for one of another length. It
// may be in use: there is no moment in which this program could end and leave it
// suspended, for the kernel exchanges the tables in one call. The key is given as to
// Crypt, and has to be the same. When it fails the device has the table that it had.
func (c Control) Recrypt(name string, t CryptTarget, keyDescription string) error {
	table, err := t.table(keyDescription)
	if err == nil {
		err = c.exchange(name, table)
	}
	if err != nil {
		return fmt.Errorf("cannot resize crypt device %s: %w", name, err)
	}
	return nil
}

// exchange tries again where a signal has ended the kernel's wait for requests that are
// under way; an older one says EINVAL then, and has dropped the table.
func (c Control) exchange(name string, table devmapper.Table) (err error) {
	const tries = 8
	for range tries {
		if err = c.kernel.Load(name, 0, table); err != nil {
			break
		}
		if err = c.kernel.Swap(name); !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	if err == nil {
		return nil
	}
	// Without the new table nothing but a device that was left suspended is resumed.
	return errors.Join(err, c.kernel.Clear(name), c.kernel.Resume(name))
}

// create makes the device and loads the first of the tables that the kernel
// takes, and says which; a device that cannot be used is removed again.
func (c Control) create(name, uuid string, flags uint32, tables ...devmapper.Table) (d Device, used int, err error) {
	if err := checkName(name, uuid); err != nil {
		return Device{}, 0, err
	}
	if err := c.kernel.Create(name, uuid); err != nil {
		if errors.Is(err, unix.EBUSY) {
			err = fmt.Errorf("%w: %w", ErrExists, err)
		}
		return Device{}, 0, err
	}
	if used, err = c.load(name, flags, tables); err == nil {
		d, err = c.activate(name)
	}
	if err != nil {
		return Device{}, 0, errors.Join(err, c.Remove(name))
	}
	return d, used, nil
}

// load tries the tables in order. EINVAL is what a target says of an option that
// it does not know. Its version does not tell: restart_on_error came in Linux
// 6.12 within version 1.10.0 of verity.
func (c Control) load(name string, flags uint32, tables []devmapper.Table) (used int, err error) {
	for used = range tables {
		if err = c.kernel.Load(name, flags, tables[used]); !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	return used, err
}

func (c Control) activate(name string) (Device, error) {
	if err := c.kernel.Resume(name); err != nil {
		return Device{}, err
	}
	info, err := c.kernel.Info(name)
	if err != nil {
		return Device{}, err
	}
	d := Device{Name: name, Major: unix.Major(info.DevNo), Minor: unix.Minor(info.DevNo)}
	d.Path = filepath.Join(c.dev, fmt.Sprintf("dm-%d", d.Minor))
	if err := c.waitNode(d); err != nil {
		return Device{}, err
	}
	return d, nil
}

// waitNode waits for the node, which devtmpfs makes before the ioctl returns:
// the loop is for a /dev that something else fills.
func (c Control) waitNode(d Device) error {
	const tries, pause = 100, 20 * time.Millisecond
	for i := range tries {
		if i > 0 {
			c.sleep(pause)
		}
		var st unix.Stat_t
		err := unix.Lstat(d.Path, &st)
		switch {
		case errors.Is(err, unix.ENOENT):
			continue
		case err != nil:
			return &os.PathError{Op: "lstat", Path: d.Path, Err: err}
		case st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != unix.Mkdev(d.Major, d.Minor):
			return fmt.Errorf("%w: %s is not block device %s", ErrNoNode, d.Path, d.DevNo())
		}
		return nil
	}
	return fmt.Errorf("%w: %s did not appear in %v", ErrNoNode, d.Path, tries*pause)
}

// Remove removes a device. One that is still open for a moment (a probing udev)
// is tried again for about a second.
func (c Control) Remove(name string) error {
	const tries, pause = 20, 50 * time.Millisecond
	var err error
	for i := range tries {
		if i > 0 {
			c.sleep(pause)
		}
		if err = c.RemoveNow(name); !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	return err
}

// RemoveNow removes a device that nobody has open.
func (c Control) RemoveNow(name string) error {
	if err := c.kernel.Remove(name); err != nil {
		return fmt.Errorf("cannot remove device %s: %w", name, err)
	}
	return nil
}

// Status returns what the targets of a device say of their state: for verity
// "V" (valid) or "C" (corruption found), for crypt "".
func (c Control) Status(name string) ([]Status, error) {
	s, err := c.kernel.Status(name, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot read the status of device %s: %w", name, err)
	}
	return s, nil
}

// Table returns the loaded table of a device. For crypt the key stands there
// as its keyring description.
func (c Control) Table(name string) ([]Status, error) {
	s, err := c.kernel.Status(name, unix.DM_STATUS_TABLE_FLAG)
	if err != nil {
		return nil, fmt.Errorf("cannot read the table of device %s: %w", name, err)
	}
	return s, nil
}

// checkName holds the limits of struct dm_ioctl (uapi/linux/dm-ioctl.h), which
// devmapper.go would cut at without a word.
func checkName(name, uuid string) error {
	if name == "" || len(name) >= unix.DM_NAME_LEN || filepath.Base(name) != name {
		return fmt.Errorf("%w: name %q", ErrTarget, name)
	}
	if len(uuid) >= unix.DM_UUID_LEN {
		return fmt.Errorf("%w: UUID %q is too long", ErrTarget, uuid)
	}
	return nil
}
