package balance

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// world is a partition with a volume on it, as far as Decide sees it.
type world struct {
	l                    Limits
	outer, inner         int64
	outerUsed, innerUsed int64
	h                    History
	now, next            time.Time
	after                time.Duration // 0, or it waits for a write, and then so long
	unseen               bool          // no write ends that wait: those through mmap, or before Linux 6.5 through an overlay
	slow                 time.Duration // how long a resize takes, when space is on neither side
	moving               int64         // such space
	done                 func()        // ends that resize
	decide               func(Limits, History, Sizes, time.Time) (Decision, History)
	fails                func(Decision) error // nil: nothing
	resizes, passes      int
	wrong                []string
	full                 int // writes that met a full file system

	files, span, tables, device int64 // of the volume; without span it has any number of inodes
}

// tick is the step of the simulation.
const tick = 50 * time.Millisecond

func newWorld(outer, inner int64) *world {
	start := time.Unix(1e9, 0)
	return &world{l: Defaults(), outer: outer, inner: inner, now: start, next: start, decide: Decide}
}

func (w *world) sizes() Sizes {
	s := Sizes{Outer: w.outer, OuterFree: w.outer - w.outerUsed - w.inner - w.moving, Inner: w.inner, InnerFree: w.inner - w.innerUsed}
	if w.span > 0 {
		s.Inodes, s.Balloons, s.Device = inodesIn(w.span, w.files), w.span-w.inner-w.tables, w.device-w.tables
	}
	return s
}

// inodesIn are those of an ext4 of span bytes that has so many files.
func inodesIn(span, files int64) Inodes {
	const group, least = 128 * mib, 8 * mib
	groups := (span + group - 1) / group
	i := Inodes{All: groups * 8192, PerGroup: 8192, GroupBytes: group, FirstBytes: groups*group + least - span, RestBytes: groups*group - span}
	i.Free = i.All - files
	return i
}

// create makes n files of so many bytes in the volume.
func (w *world) create(n, bytes int64) {
	s := w.sizes()
	if n > s.Inodes.Free {
		w.full++
		in, out, small := w.keeps()
		if s.behind() > s.Inodes.FirstBytes && (s.InnerFree > in+small || s.OuterFree > out+small) {
			w.wrong = append(w.wrong, fmt.Sprintf("%v: no inode is free in the volume, %s are there and %s beside it", w.now.Unix()-1e9, Text(s.InnerFree), Text(s.OuterFree)))
		}
		n = s.Inodes.Free
	}
	w.files += n
	w.write(true, n*bytes)
}

// keeps are what each side keeps from the other, and what is too little to be moved.
func (w *world) keeps() (in, out, small int64) {
	return keepInside(w.outer), KeepFreeOf(w.outer), min(max(w.outer/256, 4*mib), 64*mib) + align
}

// write puts n bytes, which may be negative, into one side.
func (w *world) write(inside bool, n int64) {
	s := w.sizes()
	in, out, small := w.keeps()
	free, used, others, kept, where := s.OuterFree, &w.outerUsed, s.InnerFree, in, "the partition"
	if inside {
		free, used, others, kept, where = s.InnerFree, &w.innerUsed, s.OuterFree, out, "the volume"
	}
	if n > free {
		w.full++
		if others > kept+small {
			w.wrong = append(w.wrong, fmt.Sprintf("%v: %s is full while the other side has %s", w.now.Unix()-1e9, where, Text(others)))
		}
		n = free
	}
	*used = max(0, *used+n)
	if n != 0 && w.after > 0 && !w.unseen {
		w.next, w.after = w.now.Add(w.after), 0 // woken
	}
}

// run lets time pass, with inner and outer bytes written per second.
func (w *world) run(d time.Duration, inner, outer int64) {
	for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(tick) {
		if !w.now.Before(w.next) {
			if w.done != nil {
				w.done()
			} else {
				w.pass()
			}
		}
		perTick := int64(time.Second / tick)
		w.write(true, inner/perTick)
		w.write(false, outer/perTick)
	}
}

// untar makes files of so many bytes at a rate per second, until there are n, and lets time
// pass meanwhile.
func (w *world) untar(n, bytes, rate int64) {
	for end := w.now.Add(time.Duration(n/rate+1) * time.Second); w.now.Before(end); {
		w.run(tick, 0, 0)
		w.create(min(n, rate/int64(time.Second/tick)), bytes)
	}
}

func (w *world) pass() {
	before := w.sizes()
	w.passes++
	d, h := w.decide(w.l, w.h, before, w.now)
	change := int64(0)
	var err error
	if w.fails != nil {
		err = w.fails(d)
	}
	if d.Action == Grow || d.Action == Shrink || d.Action == Extend {
		w.resizes++
		if err == nil {
			change = d.Size - w.inner
			w.inner = d.Size
		}
	}
	w.check(d, before)
	w.next, w.after = w.now.Add(d.Next), 0
	if d.Idle > 0 {
		w.next, w.after = w.now.Add(d.Idle), d.Next
	}
	w.done = func() {
		w.inner, w.moving, w.done = w.inner+max(change, 0), 0, nil
		w.spanned(d, change)
		w.h = h.Done(d, nil, w.now)
		w.next = w.now.Add(d.Next)
	}
	if change == 0 || w.slow == 0 {
		if err == nil {
			w.spanned(d, change)
		}
		w.h, w.done = h.Done(d, err, w.now), nil
		return
	}
	w.inner -= max(change, 0)
	w.moving, w.next = max(change, -change), w.now.Add(w.slow)
}

// spanned has the file system in the volume span more after a decision: what is taken back
// from balloons it spans already.
func (w *world) spanned(d Decision, change int64) {
	switch {
	case w.span == 0:
	case d.Action == Extend:
		w.span += change
		tables := change / 64 / mib * mib // of inodes: in no file system's free bytes
		w.tables, w.inner, w.outerUsed = w.tables+tables, w.inner-tables, w.outerUsed+tables
	default:
		w.span = max(w.span, w.inner+w.tables)
	}
	if rest := w.span % (128 * mib); rest < 8*mib { // the kernel makes no such group, and what is reserved is lost
		w.span, w.inner, w.outerUsed = w.span-rest, w.inner-rest, w.outerUsed+rest
	}
}

// check holds what is true after each decision.
func (w *world) check(d Decision, before Sizes) {
	in, out, _ := w.keeps()
	s := w.sizes()
	bad := func(format string, args ...any) {
		w.wrong = append(w.wrong, fmt.Sprintf("%v: ", w.now.Unix()-1e9)+fmt.Sprintf(format, args...)+fmt.Sprintf(" (%+v, %+v)", d, before))
	}
	switch {
	case s.InnerFree < 0 || s.OuterFree < 0:
		bad("more is given than there is")
	case (d.Action == Grow || d.Action == Extend) && s.OuterFree < out:
		bad("grew into what the partition keeps")
	case d.Action == Shrink && s.InnerFree < in-align:
		bad("shrank into what the volume keeps")
	case (d.Action == Grow || d.Action == Extend) && d.Size <= before.Inner, d.Action == Shrink && d.Size >= before.Inner:
		bad("the wrong way")
	case d.Size%align != 0:
		bad("not aligned")
	case d.Reason == "":
		bad("no reason")
	case d.Next < w.l.Interval/4 || d.Next > idle || d.Idle > idle:
		bad("looks again in %v, or %v", d.Next, d.Idle)
	}
}

// loads are those that no policy may fail at, on a partition of this size.
func loads() map[string]func(w *world) {
	stated := func(w *world) int64 { return w.l.StatedRate(w.outer) }
	fill := func(w *world) time.Duration { return time.Duration(w.outer/stated(w)+20) * time.Second }
	return map[string]func(w *world){
		"fill_volume": func(w *world) { w.run(time.Minute, 0, 0); w.run(fill(w), stated(w), 0) },
		"fill_beside": func(w *world) { w.run(time.Minute, 0, 0); w.run(fill(w), 0, stated(w)) },
		"fill_both":   func(w *world) { w.run(fill(w), stated(w), stated(w)) },
		"in_turn": func(w *world) {
			for range 40 {
				w.run(5*time.Second, stated(w)/4, 0)
				w.run(5*time.Second, 0, stated(w)/4)
			}
		},
		"fill_and_delete": func(w *world) {
			for range 4 {
				w.run(fill(w)/2, stated(w), 0)
				w.innerUsed = 0
				w.run(time.Minute, 0, 0)
				w.run(fill(w)/2, 0, stated(w))
				w.outerUsed = 0
				w.run(time.Minute, 0, 0)
			}
		},
		"bursts_after_rest": func(w *world) {
			for range 20 {
				w.run(2*time.Second, stated(w), 0)
				w.run(2*time.Minute, 0, 0)
				w.run(2*time.Second, 0, stated(w))
				w.run(2*time.Minute, 0, 0)
			}
		},
		"small_files": func(w *world) { w.run(10*time.Minute, 2*mib, mib) },
	}
}

func sizesOfDisks() map[string]int64 {
	return map[string]int64{"512M": 512 * mib, "2G": 2 * gib, "16G": 16 * gib, "256G": 256 * gib}
}

// TestLoads: no side is full while the other has more than it keeps.
func TestLoads(t *testing.T) {
	for disk, outer := range sizesOfDisks() {
		for name, load := range loads() {
			t.Run(disk+"/"+name, func(t *testing.T) {
				w := newWorld(outer, outer/2)
				load(w)
				if len(w.wrong) > 0 {
					t.Errorf("%d things are wrong, the first: %s", len(w.wrong), w.wrong[0])
				}
			})
		}
	}
}

// TestSlowDisk: where each resize takes a second or two, the first is in time for what
// has begun slowly, and how long it took counts from then on.
func TestSlowDisk(t *testing.T) {
	for disk, outer := range sizesOfDisks() {
		for _, inside := range []bool{true, false} {
			for _, slow := range []time.Duration{time.Second, 2 * time.Second} {
				w := newWorld(outer, outer/2)
				w.slow = slow
				for part := range int64(8) {
					rate := w.l.StatedRate(outer) * (part + 1) / 8 / int64(slow/time.Second)
					if !inside {
						w.run(10*time.Second, 0, rate)
					} else {
						w.run(10*time.Second, rate, 0)
					}
				}
				w.run(time.Duration(outer/w.l.StatedRate(outer))*2*time.Second, w.l.StatedRate(outer)/2, w.l.StatedRate(outer)/2)
				if len(w.wrong) > 0 {
					t.Errorf("%s, inside %v, %v: %d things are wrong, the first: %s", disk, inside, slow, len(w.wrong), w.wrong[0])
				}
			}
		}
	}
}

// TestUnseenWrites: who writes without the service being woken has a sixth of the stated
// rate, until it has looked.
func TestUnseenWrites(t *testing.T) {
	for disk, outer := range sizesOfDisks() {
		for _, inside := range []bool{true, false} {
			for _, part := range []int64{6, 1} {
				w := newWorld(outer, outer/2)
				w.unseen, w.l.InnerWeight = true, 0 // the volume gets no more than it needs
				rate := w.l.StatedRate(outer) / part
				inner, beside := int64(0), rate
				if inside {
					inner, beside = rate, 0
				}
				for range 8 { // the side is full but for what it needs, nothing is written, and then it is
					in, out := w.l.sides(History{}, w.sizes())
					if inside {
						w.innerUsed = w.inner - in.need - mib
					} else {
						w.outerUsed = w.outer - w.inner - out.need - mib
					}
					w.run(40*time.Second+time.Duration(w.passes%7)*time.Second, 0, 0)
					w.run(15*time.Second, inner, beside)
				}
				if wrong := len(w.wrong) > 0; part == 6 && wrong {
					t.Errorf("%s, inside %v: %s", disk, inside, w.wrong[0])
				} else if part == 1 && !wrong && (inside || outer <= 2*gib) {
					t.Errorf("%s, inside %v: the control finds nothing at the whole rate", disk, inside)
				}
			}
		}
	}
}

// TestTrickle: a few bytes at a time wake it no more often than a heavy writer, and not
// at all where there is room for one.
func TestTrickle(t *testing.T) {
	for disk, outer := range sizesOfDisks() {
		w := newWorld(outer, outer/2)
		w.run(time.Minute, 0, 0)
		room := time.Duration(outer/2/w.l.StatedRate(outer)) * time.Second
		w.passes = 0
		w.run(10*time.Minute, 8<<10, 8<<10)
		most := 10 * 60
		if room > 5*idle {
			most = 61
		}
		if w.passes > most {
			t.Errorf("%s: %d looks in 10 minutes, want at most %d", disk, w.passes, most)
		}
	}
}

// TestNothingToMove: where both sides have no more than they keep, no look is of use:
// whoever writes there gets no more of them than one in each interval.
func TestNothingToMove(t *testing.T) {
	for disk, outer := range sizesOfDisks() {
		for name, load := range map[string]func(w *world){
			"trickle": func(w *world) { w.run(2*time.Minute, 10<<10, 0) },
			"beside":  func(w *world) { w.run(2*time.Minute, 0, 10<<10) },
			"to_and_fro": func(w *world) {
				for range 60 {
					w.run(time.Second, 2*mib, 0)
					w.run(time.Second, -2*mib, 0)
				}
			},
		} {
			w := newWorld(outer, outer/2)
			in, out, _ := w.keeps()
			w.innerUsed, w.outerUsed = w.inner-in/2, outer-w.inner-out
			w.run(30*time.Second, 0, 0)
			w.passes = 0
			load(w)
			if w.passes > 121 || len(w.wrong) > 0 {
				t.Errorf("%s, %s: %d looks in 2 minutes, want at most 121; %v", disk, name, w.passes, w.wrong)
			}
		}
	}
}

// TestLoadsThatMustFail is the control: with each of these rules broken the
// simulation sees it.
func TestLoadsThatMustFail(t *testing.T) {
	broken := map[string]func(Limits, History, Sizes, time.Time) (Decision, History){
		"never_grows": func(l Limits, h History, s Sizes, now time.Time) (Decision, History) {
			d, h := Decide(l, h, s, now)
			if d.Action == Grow {
				d.Action = None
			}
			return d, h
		},
		"never_gives_back": func(l Limits, h History, s Sizes, now time.Time) (Decision, History) {
			l.GiveBack = false
			return Decide(l, h, s, now)
		},
		"looks_too_late": func(l Limits, h History, s Sizes, now time.Time) (Decision, History) {
			d, h := Decide(l, h, s, now)
			d.Next, d.Idle = 3*idle, 0
			return d, h
		},
		"keeps_nothing_beside": func(l Limits, h History, s Sizes, now time.Time) (Decision, History) {
			l.KeepFree = 1
			return Decide(l, h, s, now)
		},
	}
	for name, decide := range broken {
		t.Run(name, func(t *testing.T) {
			found := 0
			for _, load := range loads() {
				w := newWorld(2*gib, gib)
				w.decide = decide
				load(w)
				found += len(w.wrong)
			}
			if found == 0 {
				t.Error("the simulation found nothing wrong")
			}
		})
	}
}

// TestFasterThanStated: a writer at twice the stated rate that begins slowly gets all
// the room, too: what is measured counts.
func TestFasterThanStated(t *testing.T) {
	for _, inside := range []bool{true, false} {
		w := newWorld(16*gib, 8*gib)
		stated := w.l.StatedRate(w.outer)
		for _, rate := range []int64{stated / 2, stated, 2 * stated} {
			inner, outer := int64(0), rate
			if inside {
				inner, outer = rate, 0
			}
			w.run(30*time.Second, inner, outer)
		}
		if len(w.wrong) > 0 {
			t.Errorf("inside %v: %s", inside, w.wrong[0])
		}
	}
}

// TestNoOscillation: what is moved is bounded by what is written, and a load that goes
// to and fro at an edge moves nothing after the first time.
func TestNoOscillation(t *testing.T) {
	for disk, outer := range sizesOfDisks() {
		t.Run(disk, func(t *testing.T) {
			w := newWorld(outer, outer/2)
			in, _ := w.l.sides(w.h, w.sizes())
			w.innerUsed = w.inner - in.need - 2*mib // 2 MiB above the edge
			w.run(time.Minute, 0, 0)
			w.resizes = 0
			for range 300 {
				w.run(2*time.Second, 4*mib, 0)
				w.run(2*time.Second, -4*mib, 0)
			}
			if w.resizes > 2 {
				t.Errorf("at the volume's edge: %d resizes in 20 minutes, want at most 2", w.resizes)
			}
			w = newWorld(outer, outer/2)
			_, out := w.l.sides(w.h, w.sizes())
			w.outerUsed = w.sizes().OuterFree - out.need - 2*mib
			w.run(time.Minute, 0, 0)
			w.resizes = 0
			for range 300 {
				w.run(2*time.Second, 0, 4*mib)
				w.run(2*time.Second, 0, -4*mib)
			}
			if w.resizes > 8 { // the shares are evened out in steps, once
				t.Errorf("at the partition's edge: %d resizes in 20 minutes, want at most 8", w.resizes)
			}
		})
	}
}

// TestComesToRest: wherever it starts, with nothing written it is soon still, and then
// looks no more often than every 10 seconds.
func TestComesToRest(t *testing.T) {
	for disk, outer := range sizesOfDisks() {
		for innerUsed := range int64(10) {
			for outerUsed := range 10 - innerUsed {
				for size := innerUsed; size < 10-outerUsed; size += 2 {
					w := newWorld(outer, (outer*(size+1)/11+outer/32)/mib*mib)
					w.innerUsed, w.outerUsed = outer*innerUsed/11, outer*outerUsed/11
					w.run(2*time.Hour, 0, 0)
					w.resizes, w.passes = 0, 0
					w.run(time.Hour, 0, 0)
					if w.resizes > 0 || w.passes > 361 || len(w.wrong) > 0 {
						t.Fatalf("%s, used %d and %d of 11, volume %d of 11: %d resizes and %d passes in an hour of rest; %v",
							disk, innerUsed, outerUsed, size+1, w.resizes, w.passes, w.wrong)
					}
				}
			}
		}
	}
}

// TestFailedSteps: a step that fails is tried less and less often, but for a side that is
// short, and for what passes by itself, it is tried all the time.
func TestFailedSteps(t *testing.T) {
	tries := func(w *world, err error) (n int) {
		for range 3600 {
			d, h := Decide(w.l, w.h, w.sizes(), w.now)
			if d.Action != None {
				n++
			}
			w.h = h.Done(d, err, w.now)
			w.now = w.now.Add(time.Second)
		}
		return n
	}
	uneven := func() *world { // the volume has less than half of its share
		w := newWorld(64*gib, 4*gib)
		w.innerUsed = 2 * gib
		return w
	}
	short := newWorld(2*gib, 256*mib)
	short.innerUsed = 250 * mib
	no := errors.New("no")
	for _, c := range []struct {
		name        string
		w           *world
		err         error
		least, most int
	}{
		{"uneven", uneven(), no, 5, 10},
		{"short", short, no, 110, 125},
		{"not_now", uneven(), fmt.Errorf("busy: %w", ErrNotNow), 110, 125},
	} {
		if n := tries(c.w, c.err); n < c.least || n > c.most {
			t.Errorf("%s: %d tries in an hour, want %d to %d", c.name, n, c.least, c.most)
		}
	}
	short.h = short.h.Done(Decision{Action: Grow}, nil, short.now)
	if d, _ := Decide(short.l, short.h, short.sizes(), short.now); d.Action != Grow {
		t.Errorf("after a step that went well: %+v, want one that grows", d)
	}
}

// TestEased: once the side that gives has more, or the volume another size, a step that
// failed is tried at once.
func TestEased(t *testing.T) {
	now := time.Unix(1e9, 0)
	for name, c := range map[string]struct {
		s      Sizes
		change func(*Sizes)
		action Action
	}{
		"grow":   {Sizes{Outer: 64 * gib, OuterFree: 50 * gib, Inner: 4 * gib, InnerFree: 2 * gib}, func(s *Sizes) { s.OuterFree += gib }, Grow},
		"other":  {Sizes{Outer: 64 * gib, OuterFree: 50 * gib, Inner: 4 * gib, InnerFree: 2 * gib}, func(s *Sizes) { s.Inner += mib }, Grow},
		"shrink": {Sizes{Outer: 64 * gib, OuterFree: gib, Inner: 40 * gib, InnerFree: 20 * gib}, func(s *Sizes) { s.InnerFree += gib }, Shrink},
		"slack":  {Sizes{Outer: 64 * gib, OuterFree: gib, Inner: 40 * gib, InnerFree: 20 * gib, Slack: gib}, func(s *Sizes) { s.Slack = 0 }, Shrink},
	} {
		h := History{}
		for range 9 {
			var d Decision
			d, h = Decide(Defaults(), h, c.s, now)
			h = h.Done(Decision{Action: c.action}, errors.New("no"), now)
			now = now.Add(time.Second)
			if d.Action != None && d.Action != c.action {
				t.Fatalf("%s: %+v", name, d)
			}
		}
		if d, _ := Decide(Defaults(), h, c.s, now); d.Action != None {
			t.Errorf("%s: %+v, want a pause", name, d)
		}
		c.change(&c.s)
		if d, _ := Decide(Defaults(), h, c.s, now); d.Action != c.action {
			t.Errorf("%s: %+v, want another %s", name, d, c.action)
		}
	}
}
