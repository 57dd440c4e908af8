package mount

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// RootOps are the steps of a change of the root directory. KernelRoot takes
// them; mounttest.Recorder writes them down.
type RootOps interface {
	// SetPropagation sets MS_PRIVATE or MS_SHARED on "/" and all below it.
	SetPropagation(flag uintptr) error
	// MoveInto moves the mount at path, with all below it, to the same path
	// inside newRoot; done is false when nothing is mounted there.
	MoveInto(path, newRoot string) (done bool, err error)
	// HoldRoot keeps the present root open until FreeRoot.
	HoldRoot() error
	// Pivot makes newRoot the root and detaches the old one. It fails with
	// EINVAL, and has changed nothing, where the kernel cannot.
	Pivot(newRoot string) error
	// MoveRoot moves newRoot's mount over "/" and changes the root to it.
	MoveRoot(newRoot string) error
	// FreeRoot deletes the files of the root that HoldRoot kept.
	FreeRoot() error
}

// Carried are the mounts that go along into the new root.
func Carried() []string { return []string{"/dev", "/proc", "/sys", "/run"} }

// SwitchRoot makes newRoot, which must be a mount point, the root directory of
// this process. The mounts of Carried move into it. From an initramfs,
// pivot_root(2) works since Linux 7.0; before, the kernel answers EINVAL,
// because the initramfs is the root of all mounts and cannot be put anywhere
// else. Then newRoot is moved over "/", and the files of the initramfs, which
// nobody can reach any more, are deleted to give their memory back.
//
// After an error the process may be in either root, and can only report it. A
// failure to free memory is given as warning, because the switch is done.
func SwitchRoot(newRoot string, ops RootOps) (warning, err error) {
	// A shared mount can be neither moved nor pivoted.
	if err := ops.SetPropagation(unix.MS_PRIVATE); err != nil {
		return nil, err
	}
	for _, path := range Carried() {
		if _, err := ops.MoveInto(path, newRoot); err != nil {
			return nil, err
		}
	}
	if err := ops.HoldRoot(); err != nil {
		return nil, err
	}
	err = ops.Pivot(newRoot)
	if errors.Is(err, unix.EINVAL) {
		if err = ops.MoveRoot(newRoot); err == nil {
			warning = ops.FreeRoot()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make %s the root: %w", newRoot, err)
	}
	// Containers on the real system expect mounts to propagate, as systemd
	// sets it up too.
	if err := ops.SetPropagation(unix.MS_SHARED); err != nil {
		return warning, err
	}
	return warning, nil
}
