package resize

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// From before the volume is frozen until it is thawed nothing disturbs the program.
func TestFrozenUndisturbed(t *testing.T) {
	v := newVolume(t, 512<<20, 128<<20)
	frozen := func() bool {
		err := unix.IoctlSetInt(int(v.root.Fd()), fiFreeze, 0)
		if err == nil {
			err = unix.IoctlSetInt(int(v.root.Fd()), fiThaw, 0)
			return err != nil
		}
		return errors.Is(err, unix.EBUSY)
	}
	var held, changed bool
	v.undisturbed = func() func() {
		held = !frozen()
		return func() {
			if held = false; frozen() {
				t.Error("disturbed while it is frozen")
			}
		}
	}
	why := errors.New("for this test")
	err := v.whileFrozen(func() error {
		if changed = true; !held || !frozen() {
			t.Errorf("undisturbed %v, frozen %v, want both", held, frozen())
		}
		return why
	})
	if !errors.Is(err, why) || !changed || held {
		t.Errorf("whileFrozen = %v; still undisturbed %v", err, held)
	}
	func() {
		defer func() {
			if recover() == nil || frozen() || held {
				t.Errorf("after a panic it is frozen, or still undisturbed %v", held)
				_ = unix.IoctlSetInt(int(v.root.Fd()), fiThaw, 0)
			}
		}()
		_ = v.whileFrozen(func() error { panic(why) })
	}()
}
