package mount

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// KernelRoot are the RootOps that change the root of this process.
type KernelRoot struct {
	old *os.File
}

var _ RootOps = (*KernelRoot)(nil)

// SetPropagation sets the propagation of "/" and all mounts below it.
func (*KernelRoot) SetPropagation(flag uintptr) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|flag, ""); err != nil {
		return fmt.Errorf("cannot set the propagation of /: %w", err)
	}
	return nil
}

// MoveInto moves a mount into the new root. The target is looked up without
// following links, so that a link in the image does not send it elsewhere.
func (*KernelRoot) MoveInto(path, newRoot string) (bool, error) {
	mounted, err := isMountPoint(path)
	if err != nil || !mounted {
		return false, err
	}
	dst, err := Place{Root: newRoot, Path: path}.open(Beneath)
	if err != nil {
		return false, err
	}
	defer dst.Close()
	if err := unix.MoveMount(unix.AT_FDCWD, path, int(dst.Fd()), "", unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return false, fmt.Errorf("cannot move %s to %s: %w", path, dst.Name(), err)
	}
	return true, nil
}

// isMountPoint asks the kernel (statx, since 5.8) whether something is mounted
// exactly there; a missing path is not a mount point.
func isMountPoint(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot look at %s: %w", path, err)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// HoldRoot opens "/" for FreeRoot.
func (k *KernelRoot) HoldRoot() error {
	f, err := os.Open("/")
	if err != nil {
		return fmt.Errorf("cannot hold the old root: %w", err)
	}
	k.old = f
	return nil
}

// Pivot changes the root with pivot_root(".", "."), which stacks the old root
// on the new one, where the next call detaches it; no directory for the old
// root is needed (pivot_root(2)).
func (k *KernelRoot) Pivot(newRoot string) error {
	back, err := os.Open(".")
	if err != nil {
		return fmt.Errorf("cannot open the working directory: %w", err)
	}
	defer back.Close()
	if err := unix.Chdir(newRoot); err != nil {
		return fmt.Errorf("cannot enter the new root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return errors.Join(fmt.Errorf("cannot pivot: %w", err), unix.Fchdir(int(back.Fd())))
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("cannot detach the old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("cannot enter the new root: %w", err)
	}
	err = k.old.Close()
	k.old = nil
	if err != nil {
		return fmt.Errorf("cannot close the old root: %w", err)
	}
	return nil
}

// MoveRoot moves the new root over the old one.
func (*KernelRoot) MoveRoot(newRoot string) error {
	if err := unix.Chdir(newRoot); err != nil {
		return fmt.Errorf("cannot enter the new root: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("cannot move the new root over the old one: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("cannot change the root directory: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("cannot enter the new root: %w", err)
	}
	return nil
}

// FreeRoot deletes what the held root contains.
func (k *KernelRoot) FreeRoot() error {
	old := k.old
	k.old = nil
	return errors.Join(FreeInitramfs(old), old.Close())
}
