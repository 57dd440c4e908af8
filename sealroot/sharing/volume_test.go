package sharing

import (
	"context"
	"errors"
	"testing"
	"time"

	"sealroot/state/balance"
	"sealroot/state/resize"
)

// resizer is one whose volume has 8 GiB reserved of a partition with 16 GiB.
type resizer struct {
	sizes    resize.Sizes
	err      error
	reserved int64
	extended int64
	repaired int
}

func (r *resizer) Measure() (resize.Sizes, error) { return r.sizes, r.err }
func (r *resizer) ResizeTo(_ context.Context, want func(resize.Sizes) int64) (resize.Sizes, error) {
	r.reserved = want(r.sizes)
	after := r.sizes
	after.Reserved = r.reserved
	return after, r.err
}
func (r *resizer) Extend(_ context.Context, n int64) (resize.Sizes, error) {
	r.extended = n
	after := r.sizes
	after.Reserved, after.Spanned = after.Reserved+n, after.Spanned+n
	return after, r.err
}
func (r *resizer) Repair(context.Context) (resize.Sizes, error) {
	r.repaired++
	return r.sizes, r.err
}

// taken is one whose room somebody takes after it was measured, or a part of it.
type taken struct {
	*resizer
	change func(*resize.Sizes)
}

func (r taken) Measure() (resize.Sizes, error) { return r.sizes, nil }

func (r taken) ResizeTo(_ context.Context, want func(resize.Sizes) int64) (resize.Sizes, error) {
	after := r.sizes
	want(after)
	r.change(&after)
	return after, r.err
}

func (r taken) Extend(context.Context, int64) (resize.Sizes, error) {
	after := r.sizes
	r.change(&after)
	return after, r.err
}

func eight() resize.Sizes {
	return resize.Sizes{
		Apparent: 20 * gib, DataOffset: 16 << 20, Spanned: 9 * gib, GivenBack: gib, InBalloons: gib, Reserved: 8*gib + 16<<20,
		InnerFree: 5 * gib, InnerUsed: 2 * gib, OuterFree: 6 * gib, OuterTotal: 16 * gib,
		MinReserved: 4*gib + 16<<20, MaxReserved: 13 * gib,
	}
}

func TestResized(t *testing.T) {
	r := &resizer{sizes: eight()}
	v := Resized{r}
	want := balance.Sizes{Outer: 16 * gib, OuterFree: 6 * gib, Inner: 7 * gib, InnerFree: 5 * gib, Device: 19*gib - 16<<20, Largest: true, Slack: gib, Balloons: gib}
	if got, err := v.Measure(); err != nil || got != want {
		t.Errorf("Measure() = %+v, %v, want %+v", got, err, want)
	}
	r.sizes.Apparent = 16*gib - 4096 // a boot makes it larger
	if got, err := v.Measure(); err != nil || got.Largest {
		t.Errorf("Measure() of a device that is less than the partition = %+v, %v", got, err)
	}
	r.sizes.Apparent = 20 * gib
	r.sizes.Classic = true // its devices bound nothing
	if got, err := v.Measure(); err != nil || got.Device != 0 {
		t.Errorf("Measure() of a classic one = %+v, %v", got, err)
	}
	r.sizes.Classic, r.sizes.Moving = false, 2*gib // while a scrub runs so much has to be free beside it
	if got, err := v.Measure(); err != nil || got.OuterFree != 4*gib {
		t.Errorf("Measure() during a scrub = %+v, %v", got, err)
	}
	r.sizes.Moving, r.sizes.Copied = 0, gib
	if _, err := v.Measure(); !errors.Is(err, resize.ErrCopied) {
		t.Errorf("Measure() after a snapshot: %v, want %v", err, resize.ErrCopied)
	}
	r.sizes.OverCommitted = gib
	if got, err := v.Measure(); err != nil || got.Gap != gib || got.Copied != gib {
		t.Errorf("Measure() after a snapshot, with a gap = %+v, %v", got, err)
	}
	r.sizes.Copied, r.sizes.OverCommitted = 0, 0
	if err := v.Resize(context.Background(), 6*gib); err != nil || r.reserved != 7*gib+16<<20 {
		t.Errorf("Resize: %v, %d reserved, want 1 GiB less", err, r.reserved)
	}
	for size, want := range map[int64]int64{gib: 4*gib + 16<<20, 15 * gib: 13 * gib} {
		if err := v.Resize(context.Background(), size); err != nil || r.reserved != want {
			t.Errorf("Resize to %d: %v, %d reserved, want %d, which is possible", size, err, r.reserved, want)
		}
	}
	for name, c := range map[string]struct {
		err    error
		change func(*resize.Sizes)
		failed bool
	}{
		"taken":     {resize.ErrTooSmall, func(s *resize.Sizes) { s.MinReserved = s.Reserved }, false},
		"a_part":    {resize.ErrTooSmall, func(s *resize.Sizes) { s.Reserved -= gib / 2 }, false},
		"refused":   {resize.ErrTooSmall, func(*resize.Sizes) {}, true},
		"no_room":   {resize.ErrNoRoom, func(*resize.Sizes) {}, true},
		"all_taken": {resize.ErrNoRoom, func(s *resize.Sizes) { s.MinReserved = s.Reserved }, false},
		"nothing":   {nil, func(s *resize.Sizes) { s.Reserved -= 4096 }, true},
		"different": {resize.ErrBusy, func(s *resize.Sizes) { s.Reserved -= gib / 2 }, true},
	} {
		r.err = c.err
		if err := (Resized{taken{r, c.change}}).Resize(context.Background(), 6*gib); c.failed != (err != nil) || c.err != nil && c.failed && !errors.Is(err, c.err) || c.err == nil && !errors.Is(err, ErrNothing) {
			t.Errorf("%s: Resize: %v", name, err)
		} else if busy := c.err == resize.ErrBusy; busy != errors.Is(err, balance.ErrNotNow) {
			t.Errorf("%s: Resize: %v, want not now: %v", name, err, busy)
		}
	}
	r.err, r.reserved = nil, 0
	r.sizes.MaxReserved = r.sizes.Reserved
	if err := v.Resize(context.Background(), 9*gib); !errors.Is(err, ErrNothing) || r.reserved != 0 {
		t.Errorf("Resize where there is no room: %v, asked for %d", err, r.reserved)
	}
	if err := v.Reserve(context.Background()); err != nil || r.repaired != 1 {
		t.Errorf("Reserve: %v, repaired %d times", err, r.repaired)
	}
	r.err, r.reserved = resize.ErrBusy, 0
	if _, err := v.Measure(); !errors.Is(err, resize.ErrBusy) || !errors.Is(err, balance.ErrNotNow) {
		t.Errorf("Measure: %v", err)
	}
	if err := v.Resize(context.Background(), 6*gib); !errors.Is(err, resize.ErrBusy) || r.reserved != 0 {
		t.Errorf("Resize of what cannot be measured: %v, %d", err, r.reserved)
	}
}

// faster is one whom somebody resizes between the look and the lock.
type faster struct {
	*resizer
	by int64
}

func (r faster) ResizeTo(_ context.Context, want func(resize.Sizes) int64) (resize.Sizes, error) {
	now := r.sizes
	now.Reserved, now.Spanned, now.InnerFree, now.OuterFree = now.Reserved+r.by, now.Spanned+r.by, now.InnerFree+r.by, now.OuterFree-r.by
	r.reserved = want(now)
	now.Reserved = r.reserved
	return now, nil
}

// What somebody does between the look and the lock is not undone.
func TestResizedByOthers(t *testing.T) {
	const had = 8*gib + 16<<20
	for name, c := range map[string]struct{ by, size, want int64 }{
		"grown_more":      {3 * gib, 8 * gib, had + 3*gib},
		"grown_less":      {gib / 2, 8 * gib, had + gib},
		"shrunk_more":     {-3 * gib, 6 * gib, had - 3*gib},
		"shrunk_less":     {-gib / 2, 6 * gib, had - gib},
		"grown_to_shrink": {gib, 6 * gib, had - gib},
	} {
		r := &resizer{sizes: eight()}
		if err := (Resized{faster{r, c.by}}).Resize(t.Context(), c.size); err != nil || r.reserved != c.want {
			t.Errorf("%s: Resize: %v, %d reserved, want %d", name, err, r.reserved, c.want)
		}
	}
}

func TestExtended(t *testing.T) {
	r := &resizer{sizes: eight()}
	r.sizes.Inodes = resize.Inodes{All: 1000, Free: 3, PerGroup: 100, GroupBytes: 1 << 27, FirstBytes: 8 << 20}
	v := Resized{r}
	if got, err := v.Measure(); err != nil || got.Inodes.Free != 3 || got.Inodes.FirstBytes != 8<<20 {
		t.Errorf("Measure() = %+v, %v", got, err)
	}
	for size, want := range map[int64]int64{8 * gib: gib, 20 * gib: 5*gib - 16<<20} {
		if err := v.Extend(context.Background(), size); err != nil || r.extended != want {
			t.Errorf("Extend to %d: %v, by %d, want %d", size, err, r.extended, want)
		}
	}
	for name, c := range map[string]struct {
		err    error
		change func(*resize.Sizes)
		want   error
	}{
		"no_group": {nil, func(s *resize.Sizes) { s.Spanned += 4096 }, ErrNothing},
		"taken":    {resize.ErrNoRoom, func(s *resize.Sizes) { s.MaxReserved = s.Reserved }, nil},
		"refused":  {resize.ErrNoRoom, func(*resize.Sizes) {}, resize.ErrNoRoom},
		"told":     {resize.ErrNoRoom, func(*resize.Sizes) {}, balance.ErrNoRoom},
		"busy":     {resize.ErrBusy, func(*resize.Sizes) {}, balance.ErrNotNow},
	} {
		r.err = c.err
		if err := (Resized{taken{r, c.change}}).Extend(context.Background(), 8*gib); !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s: Extend: %v, want %v", name, err, c.want)
		}
	}
	r.err = nil
	r.sizes.MaxReserved, r.extended = r.sizes.Reserved, 0
	if err := v.Extend(context.Background(), 9*gib); !errors.Is(err, ErrNothing) || !errors.Is(err, balance.ErrNoRoom) || r.extended != 0 {
		t.Errorf("Extend where there is no room: %v, asked for %d", err, r.extended)
	}
	r.err = resize.ErrBusy
	if err := v.Extend(context.Background(), 9*gib); !errors.Is(err, resize.ErrBusy) || !errors.Is(err, balance.ErrNotNow) || r.extended != 0 {
		t.Errorf("Extend of what cannot be measured: %v, asked for %d", err, r.extended)
	}
}

func TestLook(t *testing.T) {
	l := balance.Defaults()
	got := Look(eight(), l, "grow", nil, balance.Decision{Action: balance.None, Reason: "x"})
	if got.Spare != 4*gib || got.KeepFree != gib || got.GivenBack != gib || got.Volume != 7*gib || got.Now != "nothing to do: x" || got.Decisions == nil {
		t.Errorf("Look() = %+v", got)
	}
	l.KeepFree = 3 * gib
	if got := Look(eight(), l, "grow", nil, balance.Decision{}); got.KeepFree != 3*gib {
		t.Errorf("keeps %d free, want what the limits say", got.KeepFree)
	}
	s := eight()
	s.KeptOutside = 4 * gib
	if got := Look(s, l, "grow", nil, balance.Decision{}); got.KeepFree != 4*gib || Terms(s).OuterSlack != 4*gib {
		t.Errorf("keeps %d free, want what a resize leaves", got.KeepFree)
	}
}

// Few inodes are told of where the service would get more, and not before.
func TestLookForInodes(t *testing.T) {
	const each, need = 16 << 10, 16384
	for name, c := range map[string]struct {
		volume, beside int64 // free; 0: any number
		want           bool
	}{
		"enough":       {need, need, false},
		"volume":       {need - 1, need, true},
		"beside":       {need, need - 1, true},
		"any":          {0, 0, false},
		"any_inside":   {0, need - 1, true},
		"any_besideit": {need - 1, 0, true},
	} {
		s, l := eight(), balance.Defaults()
		if c.volume > 0 {
			s.Inodes = resize.Inodes{All: 9 * gib / each, Free: c.volume, PerGroup: 8192, GroupBytes: 8192 * each, FirstBytes: 8 << 20}
		}
		if c.beside > 0 {
			s.OuterInodes, s.OuterInodesFree = 16*gib/each, c.beside
		}
		if got := Look(s, l, "both", nil, balance.Decision{}); got.few != c.want {
			t.Errorf("%s: few inodes: %v, want %v", name, got.few, c.want)
		}
		if d, _ := balance.Decide(l, balance.History{}, Terms(s), time.Now()); (d.Action == balance.Extend) != (c.want && c.volume == need-1) {
			t.Errorf("%s: the service decides for %+v", name, d)
		}
	}
}
