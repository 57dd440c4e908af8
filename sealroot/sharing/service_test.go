package sharing

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sealroot/state/balance"
)

const gib = 1 << 30

// fake is a volume whose partition has 16 GiB.
type fake struct {
	sizes    balance.Sizes
	measure  error
	resize   error
	reserve  error
	resized  []int64
	reserved int
	extended int
}

func (f *fake) Measure() (balance.Sizes, error) { return f.sizes, f.measure }

func (f *fake) Resize(_ context.Context, size int64) error {
	f.resized = append(f.resized, size)
	if f.resize == nil {
		change := size - f.sizes.Inner
		f.sizes.Inner, f.sizes.InnerFree, f.sizes.OuterFree = size, f.sizes.InnerFree+change, f.sizes.OuterFree-change
	}
	return f.resize
}

func (f *fake) Extend(ctx context.Context, size int64) error {
	f.extended++
	f.sizes.Inodes.All, f.sizes.Inodes.Free = f.sizes.Inodes.All+50000, f.sizes.Inodes.Free+50000
	return f.Resize(ctx, size)
}

func (f *fake) Reserve(context.Context) error {
	f.reserved++
	if f.reserve == nil {
		f.sizes.OuterFree -= f.sizes.Gap
		f.sizes.Gap = 0
	}
	return f.reserve
}

// service is one for it whose clock a wait moves on, and which is ended after waits.
func service(t *testing.T, f *fake, waits int) (s *Service, told *[]string, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "run/balance.json")
	now := time.Unix(1e9, 0)
	told = new([]string)
	return &Service{
		Volume: f, Limits: balance.Defaults(), Keep: OpenDecisions(path),
		Tell: func(text string) { *told = append(*told, text) },
		Now:  func() time.Time { return now },
		Rest: func() {},
		Wait: func(_ context.Context, next, idle time.Duration) (bool, error) {
			if next < 100*time.Millisecond {
				t.Errorf("waits %v", next)
			}
			now = now.Add(max(next, idle)) // nobody writes
			if waits--; waits < 0 {
				return false, context.Canceled
			}
			return false, nil
		},
	}, told, path
}

func TestWatch(t *testing.T) {
	f := &fake{sizes: balance.Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 100 << 20}}
	s, told, path := service(t, f, 20)
	rests := 0
	s.Rest = func() { rests++ }
	if err := s.Watch(context.Background()); err != nil {
		t.Fatal(err)
	}
	// for what it needs, and then for half of its share
	if len(f.resized) != 2 || f.resized[0] <= 7*gib || f.resized[1] <= f.resized[0] {
		t.Errorf("resized to %v, want twice, from 7 GiB on", f.resized)
	}
	list, err := ReadDecisions(path)
	if err != nil || len(list) != 2 || list[0].Action != balance.Grow || list[0].Bytes != f.resized[0] || !strings.Contains(list[0].Reason, "needs 256 MiB") {
		t.Errorf("kept %+v, %v", list, err)
	}
	if rests == 0 || rests > 3 {
		t.Errorf("%d rests, want one after each time of work", rests)
	}
	if len(*told) != 2 || !strings.Contains((*told)[0], "the volume grows to 8.4 GiB: the volume has 100 MiB free") {
		t.Errorf("told %q", *told)
	}
}

// TestWatchInodes: the volume has bytes enough, and no inode.
func TestWatchInodes(t *testing.T) {
	f := &fake{sizes: balance.Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 6 * gib, Device: 16 * gib,
		Inodes: balance.Inodes{All: 458752, Free: 0, PerGroup: 8192, GroupBytes: 128 << 20, FirstBytes: 8 << 20}}}
	s, told, path := service(t, f, 5)
	if err := s.Watch(context.Background()); err != nil || f.extended != 1 || f.sizes.Inner <= 7*gib {
		t.Errorf("%v, extended %d times, %+v", err, f.extended, f.sizes)
	}
	list, err := ReadDecisions(path)
	if err != nil || len(list) != 1 || list[0].Action != balance.Extend || len(*told) != 1 || !strings.Contains((*told)[0], "grows behind its end, to 8.6 GiB: the volume is short of inodes, 0 of 458752") {
		t.Errorf("kept %+v, %v, told %q", list, err, *told)
	}
}

// TestWatchStray: another program made the file system larger.
func TestWatchStray(t *testing.T) {
	even := balance.Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 6 * gib, Gap: 2 * gib}
	f := &fake{sizes: even}
	s, _, _ := service(t, f, 5)
	if err := s.Watch(context.Background()); err != nil || f.reserved != 1 || f.sizes.Gap != 0 {
		t.Errorf("%v, reserved %d times, gap %d, want once", err, f.reserved, f.sizes.Gap)
	}
	f = &fake{sizes: even, reserve: errors.New("no room")}
	s, told, _ := service(t, f, 5)
	if s.Watch(context.Background()) != nil || len(*told) == 0 || !strings.Contains(strings.Join(*told, "\n"), "no room") {
		t.Errorf("told %q", *told)
	}
}

// TestWatchFollows: who had the device makes the file system larger some time later.
func TestWatchFollows(t *testing.T) {
	f := &fake{sizes: balance.Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 6 * gib}}
	s, _, _ := service(t, f, 40)
	began, wait := s.Now(), s.Wait
	var touched, made time.Time
	late := time.Duration(-1)
	s.Wait = func(ctx context.Context, next, idle time.Duration) (bool, error) {
		now := s.Now()
		switch {
		case !made.IsZero() && late < 0 && f.sizes.Gap == 0:
			late = now.Sub(made)
		case touched.IsZero() && now.Sub(began) > time.Minute && idle == 0:
			touched = now
			return true, nil
		case made.IsZero() && !touched.IsZero() && now.Sub(touched) >= 4*time.Second:
			made, f.sizes.Gap = now, gib
		}
		return wait(ctx, next, idle)
	}
	if err := s.Watch(context.Background()); err != nil || f.reserved != 1 || late < 0 || late > time.Second {
		t.Errorf("%v, reserved %d times, %v after it was made larger, want within a second", err, f.reserved, late)
	}
	if d := s.Now().Sub(touched); d < time.Minute {
		t.Errorf("40 waits last %v after the device was touched: it does not come to rest", d)
	}
}

// TestWatchFailures: what fails is tried after a while, told once, and ends nothing.
func TestWatchFailures(t *testing.T) {
	f := &fake{resize: errors.New("device busy"), sizes: balance.Sizes{Outer: 16 * gib, OuterFree: 8 * gib, Inner: 7 * gib, InnerFree: 100 << 20}}
	s, told, path := service(t, f, 100)
	if err := s.Watch(context.Background()); err != nil {
		t.Fatal(err)
	}
	// The volume is short: every 30 s in 17 minutes.
	if n := len(f.resized); n < 20 || n > 35 {
		t.Errorf("%d tries, want from 20 to 35", n)
	}
	list, err := ReadDecisions(path)
	if err != nil || len(list) != 1 || !strings.Contains(list[0].Error, "device busy") || len(*told) != 1 {
		t.Errorf("kept %+v, %v; told %q", list, err, *told)
	}
	f = &fake{measure: errors.New("gone")}
	s, told, _ = service(t, f, 10)
	if err := s.Watch(context.Background()); err != nil || !slices.Equal(*told, []string{"gone"}) {
		t.Errorf("%v, told %q, want it told once", err, *told)
	}
}

// slow is a volume that takes long to be measured, and no time to be resized.
type slow struct {
	*fake
	pass func(time.Duration)
}

func (s slow) Measure() (balance.Sizes, error) {
	s.pass(4 * time.Second)
	return s.fake.Measure()
}

// TestSlowMeasure: what a look takes is kept as headroom like what a resize takes.
func TestSlowMeasure(t *testing.T) {
	for took, want := range map[bool]balance.Action{true: balance.Grow, false: balance.None} {
		f := &fake{sizes: balance.Sizes{Outer: 64 * gib, OuterFree: 8 * gib, Inner: 50 * gib, InnerFree: 200 << 20}}
		s, _, _ := service(t, f, 0)
		s.Limits.InnerWeight = 0 // its share is of no concern
		if took {
			now := s.Now()
			s.Now = func() time.Time { return now }
			s.Volume = slow{f, func(d time.Duration) { now = now.Add(d) }}
		}
		if d, err := s.Pass(context.Background()); err != nil || d.Action != balance.Grow {
			t.Fatalf("%+v, %v, want that it grows", d, err)
		}
		// Five seconds at the stated rate, twice, or one.
		f.sizes.InnerFree, f.sizes.OuterFree = 900<<20, 8*gib
		if d, err := s.Pass(context.Background()); err != nil || d.Action != want {
			t.Errorf("slow %v: %+v, %v, want %s", took, d, err, want)
		}
	}
}

func TestDecisionsAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "balance.json")
	k := OpenDecisions(path)
	for i := range 100 {
		k.Add(balance.Decision{Action: balance.Grow, Size: int64(i), Reason: strings.Repeat("x", 5000)}, nil, time.Unix(int64(i), 0))
	}
	list, err := ReadDecisions(path)
	if err != nil || len(list) != keep || list[0].Bytes != 80 || list[keep-1].Bytes != 99 {
		t.Errorf("kept %d, %v", len(list), err)
	}
	if k := OpenDecisions(path); len(k.list) != keep {
		t.Errorf("a service that starts again has %d decisions, want %d", len(k.list), keep)
	}
	if err := os.WriteFile(path, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadDecisions(path); err == nil {
		t.Error("half a file was read")
	}
	if k := OpenDecisions(path); !k.Add(balance.Decision{Action: balance.Shrink}, nil, time.Unix(1, 0)) {
		t.Error("a damaged file is not replaced")
	}
	if list, err := ReadDecisions(path); err != nil || len(list) != 1 {
		t.Errorf("after a damaged file: %+v, %v", list, err)
	}
}

// What cannot be measured while another program resizes may be a gap: it looks again soon.
func TestWatchBusy(t *testing.T) {
	for _, c := range []struct {
		err  error
		wait time.Duration
	}{{errors.New("no device"), measureAgain}, {fmt.Errorf("busy: %w", balance.ErrNotNow), time.Second}} {
		f := &fake{measure: c.err}
		s, told, _ := service(t, f, 3)
		began := s.Now()
		if err := s.Watch(context.Background()); err != nil || len(*told) != 1 {
			t.Errorf("Watch = %v, told %q", err, *told)
		}
		if waited := s.Now().Sub(began); waited != 4*c.wait {
			t.Errorf("%v: waits %v, want four times %v", c.err, waited, c.wait)
		}
	}
}
