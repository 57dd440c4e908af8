package balance

import (
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
		{"end_of_the_device", nil, func(s *Sizes) { s.Device = 1000 * mib }, History{}, None, 0, "900 MiB beside it; the volume is short of inodes, 536 of 65536 are free and 16384 needed, and until the next boot it can have no more"},
		{"balloons_to_the_end_of_the_device", nil, func(s *Sizes) { s.Device, s.Balloons = gib+gib/2, gib/2 }, History{}, None, 0, "no more"},
		{"classic", nil, func(s *Sizes) { s.Device = 0 }, History{}, Extend, (950 + 82 + 384) * mib, "short of inodes"},
		{"no_room_at_all", nil, func(s *Sizes) { s.OuterFree, s.InnerFree = 200*mib, 100*mib }, History{}, None, 0, "short of inodes"},
		{"after_it_failed", nil, func(*Sizes) {}, History{failed: Extend, failures: 5, failedAt: now}, None, 0, "short of inodes"},
		{"no_balloon_can_be_made", nil, func(s *Sizes) { s.Slack, s.OuterFree = s.InnerFree, 250*mib }, History{}, Extend, (950 + 45) * mib, "short of inodes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, s := Defaults(), short
			if c.limits != nil {
				c.limits(&l)
			}
			c.s(&s)
			if c.h.failures > 0 {
				c.h.failedOf = s
			}
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
