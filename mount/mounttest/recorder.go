// Package mounttest has a recorder that stands in for the kernel in tests of
// code that mounts: what it is asked for becomes a trace to compare.
package mounttest

import (
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"sealroot/mount"
)

// Recorder writes down every step and can fail at one of them. The zero value
// succeeds always. It is a mount.Mounter and mount.RootOps.
type Recorder struct {
	// FailAt is the number, from 1, of the step that fails with FailWith; 0 is none.
	FailAt   int
	FailWith error
	// NoPivot makes Pivot fail with EINVAL, as a kernel before 7.0 does it in
	// an initramfs.
	NoPivot bool
	// Absent are the paths where MoveInto finds nothing mounted.
	Absent []string

	mu    sync.Mutex
	steps []string
}

var (
	_ mount.Mounter = (*Recorder)(nil)
	_ mount.RootOps = (*Recorder)(nil)
)

// Steps returns what was asked for, in order; a step that failed has "failed: "
// before it.
func (r *Recorder) Steps() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.steps...)
}

// Trace is Steps as lines, for golden files.
func (r *Recorder) Trace() string {
	s := r.Steps()
	if len(s) == 0 {
		return ""
	}
	return strings.Join(s, "\n") + "\n"
}

func (r *Recorder) step(format string, args ...any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	line := fmt.Sprintf(format, args...)
	if r.FailAt == len(r.steps)+1 {
		r.steps = append(r.steps, "failed: "+line)
		return fmt.Errorf("cannot %s: %w", line, r.FailWith)
	}
	r.steps = append(r.steps, line)
	return nil
}

// Mount implements mount.Mounter.
func (r *Recorder) Mount(p mount.Point) error { return r.step("%s", p) }

// MountIn implements mount.Mounter.
func (r *Recorder) MountIn(fs mount.Filesystem, where mount.Place) error {
	return r.step("%s %s", fs, where)
}

// Bind implements mount.Mounter.
func (r *Recorder) Bind(b mount.Bind) error { return r.step("%s", b) }

// Overlay implements mount.Mounter. It checks the overlay as the real one does.
func (r *Recorder) Overlay(o mount.Overlay, where mount.Place) error {
	if err := o.Validate(); err != nil {
		return err
	}
	return r.step("%s %s", o, where)
}

// Move implements mount.Mounter.
func (r *Recorder) Move(from, to mount.Place) error { return r.step("mount --move %s %s", from, to) }

// Unmount implements mount.Mounter.
func (r *Recorder) Unmount(where string) error { return r.step("umount %s", where) }

// Detach implements mount.Mounter.
func (r *Recorder) Detach(where string) error { return r.step("umount -l -R %s", where) }

// SetPropagation implements mount.RootOps.
func (r *Recorder) SetPropagation(flag uintptr) error {
	word := map[uintptr]string{unix.MS_PRIVATE: "rprivate", unix.MS_SHARED: "rshared"}[flag]
	return r.step("mount --make-%s /", word)
}

// MoveInto implements mount.RootOps.
func (r *Recorder) MoveInto(path, newRoot string) (bool, error) {
	for _, a := range r.Absent {
		if a == path {
			return false, nil
		}
	}
	err := r.step("mount --move %s %s%s", path, newRoot, path)
	return err == nil, err
}

// HoldRoot implements mount.RootOps.
func (r *Recorder) HoldRoot() error { return r.step("hold /") }

// Pivot implements mount.RootOps.
func (r *Recorder) Pivot(newRoot string) error {
	if err := r.step("pivot_root %s", newRoot); err != nil {
		return err
	}
	if r.NoPivot {
		return unix.EINVAL
	}
	return nil
}

// MoveRoot implements mount.RootOps.
func (r *Recorder) MoveRoot(newRoot string) error {
	return r.step("mount --move %s / and chroot", newRoot)
}

// FreeRoot implements mount.RootOps.
func (r *Recorder) FreeRoot() error { return r.step("free the initramfs") }
