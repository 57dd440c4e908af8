package balance

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// withFiles is a world whose volume has ext4 in it, and the device of a boot.
func withFiles(outer int64) *world {
	w := newWorld(outer, outer/2)
	w.span, w.device = w.inner, max(outer, 16*gib)
	return w
}

// fileLoads are those that no policy may fail at: each file has 4 KiB, but for empty ones.
func fileLoads() map[string]func(w *world) {
	stated := func(w *world) int64 { return w.l.StatedRate(w.outer) / (16 << 10) }
	most := func(w *world) int64 { return w.outer * 3 / 4 / (4 << 10) }
	return map[string]func(w *world){
		"untar": func(w *world) { w.run(time.Minute, 0, 0); w.untar(most(w), 4<<10, stated(w)) },
		"empty": func(w *world) { w.run(time.Minute, 0, 0); w.untar(most(w)/2, 0, stated(w)) },
		"beside_a_full_partition": func(w *world) {
			w.run(time.Minute, 0, 0)
			w.outerUsed = w.outer - w.inner - KeepFreeOf(w.outer)
			w.run(20*time.Second, 0, 0)
			w.untar(most(w)/4, 4<<10, stated(w)/2)
		},
		"and_then_the_partition": func(w *world) {
			w.untar(most(w)/2, 4<<10, stated(w))
			w.run(time.Minute, 0, 0)
			w.run(time.Duration(w.outer/w.l.StatedRate(w.outer)+20)*time.Second, 0, w.l.StatedRate(w.outer))
		},
	}
}

// TestManyFiles: as long as there is room no file is refused for want of an inode, and all
// comes to rest.
func TestManyFiles(t *testing.T) {
	for disk, outer := range sizesOfDisks() {
		for name, load := range fileLoads() {
			t.Run(disk+"/"+name, func(t *testing.T) {
				t.Parallel()
				w := withFiles(outer)
				load(w)
				if len(w.wrong) > 0 {
					t.Errorf("%d things are wrong, the first: %s", len(w.wrong), w.wrong[0])
				}
				w.run(time.Minute, 0, 0)
				w.resizes, w.passes = 0, 0
				if w.run(2*time.Minute, 0, 0); w.resizes > 0 || w.passes > 13 {
					t.Errorf("%d resizes and %d looks in 2 minutes of rest: %+v", w.resizes, w.passes, w.sizes())
				}
			})
		}
	}
}

// TestManyFilesThatMustFail is the control: with each of these rules broken the simulation
// sees it.
func TestManyFilesThatMustFail(t *testing.T) {
	for name, broken := range map[string]func(Limits, History, Sizes, time.Time) (Decision, History){
		"counts_no_inodes": func(l Limits, h History, s Sizes, now time.Time) (Decision, History) {
			s.Inodes = Inodes{}
			return Decide(l, h, s, now)
		},
		"takes_balloons_back": func(l Limits, h History, s Sizes, now time.Time) (Decision, History) {
			d, h := Decide(l, h, s, now)
			if d.Action == Extend {
				d.Action = Grow
			}
			return d, h
		},
		"makes_no_room_first": func(l Limits, h History, s Sizes, now time.Time) (Decision, History) {
			l.GiveBack = false
			return Decide(l, h, s, now)
		},
	} {
		t.Run(name, func(t *testing.T) {
			found := 0
			for _, load := range fileLoads() {
				w := withFiles(2 * gib)
				w.decide = broken
				load(w)
				found += len(w.wrong)
			}
			if found == 0 {
				t.Error("the simulation found nothing wrong")
			}
		})
	}
}

func TestExtend(t *testing.T) {
	now := time.Unix(1e9, 0)
	// 2 GiB, of which 950 MiB are reserved, with 600 MiB free in them and 900 beside
	short := Sizes{Outer: 2 * gib, OuterFree: 900 * mib, Inner: 950 * mib, InnerFree: 600 * mib, Device: 16 * gib, Inodes: inodesIn(950*mib, 65000)}
	for _, c := range []struct {
		name   string
		limits func(*Limits)
		s      func(*Sizes)
		h      History
		action Action
		size   int64
		reason string
	}{
		{"room", nil, func(*Sizes) {}, History{}, Extend, (950 + 82 + 384) * mib, "the volume is short of inodes, 536 of 65536 are free and 16384 needed"},
		{"not_short", nil, func(s *Sizes) { s.Inodes = inodesIn(950*mib, 45000) }, History{}, None, 0, "nothing is short"},
		{"without_a_bound", nil, func(s *Sizes) { s.Inodes = Inodes{} }, History{}, None, 0, "nothing is short"},
		{"gives_back_for_it", nil, func(s *Sizes) { s.OuterFree = 300 * mib }, History{}, Shrink, (950 - 370) * mib, "first it makes room"},
		{"grows_only", func(l *Limits) { l.GiveBack = false }, func(s *Sizes) { s.OuterFree = 300 * mib }, History{}, Extend, (950 + 95) * mib, "short of inodes"},
		{"min", func(l *Limits) { l.Min = 930 * mib }, func(s *Sizes) { s.OuterFree = 300 * mib }, History{}, Shrink, 930 * mib, "first it makes room"},
		{"max", func(l *Limits) { l.Max = 950 * mib }, func(s *Sizes) {}, History{}, Shrink, (950 - 344) * mib, "first it makes room"},
		{"units", nil, func(s *Sizes) { s.OuterFree, s.Unit = 300*mib, 4*mib }, History{}, Shrink, (950 - 368) * mib, "first it makes room"},
		{"end_of_the_device", nil, func(s *Sizes) { s.Device = 1000 * mib }, History{}, None, 0, "900 MiB beside it; the volume is short of inodes, 536 of 65536 are free and 16384 needed; until the next boot it can have no more"},
		{"device_as_large_as_the_partition", nil, func(s *Sizes) { s.Device, s.Largest = 1000*mib, true }, History{}, None, 0, "16384 needed; with a device as large as the partition it can have no more"},
		{"balloons_to_the_end_of_the_device", nil, func(s *Sizes) { s.Device, s.Balloons = gib+gib/2, gib/2 }, History{}, None, 0, "no more"},
		{"classic", nil, func(s *Sizes) { s.Device = 0 }, History{}, Extend, (950 + 82 + 384) * mib, "short of inodes"},
		{"no_room_at_all", nil, func(s *Sizes) { s.OuterFree, s.InnerFree = 200*mib, 100*mib }, History{}, None, 0, "short of inodes"},
		{"after_it_failed", nil, func(*Sizes) {}, History{extend: failure{action: Extend, times: 5, at: now}}, None, 0, "536 of 65536 are free and 16384 needed; the last extend failed, the next is in 16s"},
		{"makes_no_room_after_it_failed", nil, func(s *Sizes) { s.OuterFree = 300 * mib }, History{extend: failure{action: Extend, times: 5, at: now}}, None, 0, "the last extend failed"},
		{"no_balloon_can_be_made", nil, func(s *Sizes) { s.Slack, s.OuterFree = s.InnerFree, 250*mib }, History{}, Extend, (950 + 45) * mib, "short of inodes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, s := Defaults(), short
			if c.limits != nil {
				c.limits(&l)
			}
			c.s(&s)
			c.h.extend.of = s
			d, _ := Decide(l, c.h, s, now)
			if d.Action != c.action || d.Size != c.size || !strings.Contains(d.Reason, c.reason) {
				t.Errorf("Decide() = %+v, %d MiB, want %s to %d MiB because %q", d, d.Size/mib, c.action, c.size/mib, c.reason)
			}
		})
	}
}

// A writer of empty files is none that has ended: the service looks as often as for one of
// bytes.
func TestFilesWithoutBytes(t *testing.T) {
	s := Sizes{Outer: 64 * gib, OuterFree: 30 * gib, Inner: 20 * gib, InnerFree: 10 * gib, Device: 40 * gib, Inodes: inodesIn(20*gib, 1000)}
	l, h, now := Defaults(), History{}, time.Unix(1e9, 0)
	for range 8 {
		_, h = Decide(l, h, s, now)
		s.Inodes.Free -= 30000
		now = now.Add(time.Second)
	}
	if h.quiet != 0 || h.fileRate < 29000 {
		t.Errorf("%d quiet passes, %d files per second", h.quiet, h.fileRate)
	}
	s.Inodes.Free = 50000
	if d, _ := Decide(l, h, s, now); d.Action != Extend || d.Next != l.Interval/4 {
		t.Errorf("Decide() = %+v, want that it hurries", d)
	}
}

// shortOfFiles are worlds whose volume is short of inodes, with more or less of room beside it.
func shortOfFiles() map[string]*world {
	worlds := map[string]*world{}
	for disk, outer := range sizesOfDisks() {
		for _, part := range []int64{0, 1, 2, 4} { // of 4 that the volume needs, free on both sides
			w := withFiles(outer)
			in, out := w.l.sides(w.h, w.sizes())
			w.innerUsed, w.outerUsed = w.inner-in.need-in.need*part/4, w.outer-w.inner-out.need-in.need*(4-part)/8
			w.files = w.sizes().Inodes.All - 100
			worlds[fmt.Sprintf("%s_%d", disk, part)] = w
		}
	}
	w := withFiles(16 * gib)
	w.inner, w.innerUsed, w.span = 2*gib, 2*gib-700*mib, 4*gib+51*mib // 597 MiB to the inodes that it needs
	w.outerUsed = 16*gib - 2*gib - 1331*mib
	w.files = w.sizes().Inodes.All - 12800
	worlds["as_reviewed"] = w
	return worlds
}

// TestExtendThatFails: a volume that cannot be extended is not made smaller and larger all
// the time for that; and one that can comes to have the inodes.
func TestExtendThatFails(t *testing.T) {
	no := errors.New("no")
	for name := range shortOfFiles() {
		for why, err := range map[string]error{"no": no, "no_room": fmt.Errorf("full: %w", ErrNoRoom), "never": nil} {
			t.Run(name+"/"+why, func(t *testing.T) {
				w := shortOfFiles()[name]
				w.fails = func(d Decision) error {
					if d.Action == Extend {
						return err
					}
					return nil
				}
				first, later := 40, 6 // three for each try: 12 in the first hour, and then one
				if err == nil {
					first, later = 40, 0
				}
				w.run(time.Hour, 0, 0)
				if w.resizes > first {
					t.Errorf("%d resizes in the first hour, want at most %d", w.resizes, first)
				}
				w.resizes = 0
				w.run(2*time.Hour, 0, 0)
				if w.resizes > later || len(w.wrong) > 0 {
					t.Errorf("%d resizes in two hours of rest, want at most %d; %v", w.resizes, later, w.wrong)
				}
				w.fails = nil // once it can, and with all the room that it needs
				s := w.sizes()
				w.outerUsed -= max(0, 2*KeepFreeOf(w.outer)+gib-s.OuterFree)
				w.run(2*time.Hour, 0, 0)
				s = w.sizes()
				if f := w.l.files(w.h, s); f.short() {
					t.Errorf("at last the volume is short of inodes: %+v", s)
				}
			})
		}
	}
}

// TestExtendEased: one that failed for want of room is tried at once when there is more, and
// no other one is; what else goes well changes nothing.
func TestExtendEased(t *testing.T) {
	for _, c := range []struct {
		err    error
		change func(*world)
		action Action
	}{
		{ErrNoRoom, func(*world) {}, None},
		{ErrNoRoom, func(w *world) { w.outerUsed -= gib }, Extend},
		{errors.New("no"), func(w *world) { w.outerUsed -= gib }, None},
		{errors.New("no"), func(w *world) { w.h = w.h.Done(Decision{Action: Shrink}, nil, w.now) }, None},
		{errors.New("no"), func(w *world) { w.h = w.h.Done(Decision{Action: Grow}, errors.New("no"), w.now) }, None},
		{errors.New("no"), func(w *world) { w.h = w.h.Done(Decision{Action: Extend}, nil, w.now) }, Extend},
		{errors.New("no"), func(w *world) { w.inner, w.innerUsed = w.inner-64*mib, w.innerUsed-64*mib }, None},
	} {
		w := withFiles(16 * gib)
		w.files = w.sizes().Inodes.All - 100
		for range 9 {
			_, w.h = Decide(w.l, w.h, w.sizes(), w.now)
			w.h = w.h.Done(Decision{Action: Extend}, c.err, w.now)
			w.now = w.now.Add(time.Second)
		}
		c.change(w)
		if d, _ := Decide(w.l, w.h, w.sizes(), w.now); d.Action != c.action {
			t.Errorf("after %v: %+v, want %s", c.err, d, c.action)
		}
	}
}
