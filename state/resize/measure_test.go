package resize

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
)

// raced has somebody resize between one look of a measurement and the next.
type raced struct {
	inner
	then func()
}

func (r *raced) givenBack() ([]balloon.Range, error) {
	list, err := r.inner.givenBack()
	if then := r.then; then != nil {
		r.then = nil
		then()
	}
	return list, err
}

// What another program gives back while the sizes are taken is not taken for a gap.
func TestMeasureBesideAResize(t *testing.T) {
	v := newVolume(t, 512<<20, 128<<20)
	first, err := v.Measure()
	must(t, first, err)
	other := *v
	resize := func(size int64) func() {
		return func() {
			if s, err := other.Resize(t.Context(), size); err != nil {
				t.Errorf("Resize = %+v, %v", s, err)
			}
		}
	}
	race := &raced{v.in, resize(first.Reserved - 32<<20)}
	v.in = race
	if s, err := v.Measure(); err != nil || s.OverCommitted != 0 || s.GivenBack != 32<<20 {
		t.Errorf("Measure beside a resize = %+v, %v", s, err)
	}
	// One that goes on is not waited for to its end.
	var release func()
	race.then = func() {
		resize(first.Reserved - 48<<20)()
		if release, err = lock(v.lock, unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := v.Measure(); !errors.Is(err, ErrBusy) || s.Spanned != first.Spanned || s.OverCommitted == 0 {
		t.Errorf("Measure beside a resize that goes on = %+v, %v, want %v", s, err, ErrBusy)
	}
	release()
	if s, err := v.Measure(); err != nil || s.OverCommitted != 0 || s.GivenBack != 48<<20 {
		t.Errorf("Measure after it = %+v, %v", s, err)
	}
}

// The sizes that a relative one is computed from stay what they are until it is done.
func TestResizeTo(t *testing.T) {
	v := newVolume(t, 512<<20, 128<<20)
	first, err := v.Measure()
	must(t, first, err)
	s, err := v.ResizeTo(t.Context(), func(now Sizes) int64 {
		f, err := os.Open(v.lock)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) || now.Reserved != first.Reserved {
			t.Errorf("asked with the lock free, %v, for %+v", err, now)
		}
		return now.Reserved - 32<<20
	})
	if err != nil || s.Reserved != first.Reserved-32<<20 {
		t.Errorf("ResizeTo = %+v, %v", s, err)
	}
}
