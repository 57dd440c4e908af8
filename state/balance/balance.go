// Package balance decides how the state partition and the encrypted volume on it
// share its space: when the volume grows, when it gives back, and how soon to look
// again. It is pure: measuring and resizing are the caller's.
//
// Free space of both sides is one pool. Of that, each side has something to keep
// free; the rest is divided by weights, as systemd-homed's rebalancing does. Space
// moves at once to a side that runs short (grow early), and only after ten
// minutes for the sake of the shares (shrink late).
package balance

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Sizes are what was measured of both sides, in bytes.
type Sizes struct {
	Outer     int64 // size of the partition's file system
	OuterFree int64 // what may still be taken of it
	Inner     int64 // size of the file system in the volume, without its balloons
	InnerFree int64 // what may still be written there
	Gap       int64 // of the volume's file system, what is not reserved on the partition
	Copied    int64 // of the volume, what the partition writes elsewhere: it has to be repaired first
	Device    int64 // the size that Inner can have at most until the next boot; 0: any
	Largest   bool  // no boot makes Device larger
	Slack     int64 // what must stay free in the volume when it shrinks
	Balloons  int64 // what the volume's file system spans beside Inner
	// Inodes are those of the volume: how many files it has room for.
	Inodes Inodes
	// OuterSlack is what must stay free on the partition when the volume grows.
	OuterSlack int64
	// Unit is in what units the partition takes back what the volume gives; 0: any.
	Unit     int64
	ReadOnly bool // the volume is
}

// Action is what is to be done to the volume.
type Action string

// The actions.
const (
	None    Action = "none"
	Grow    Action = "grow"
	Shrink  Action = "shrink"
	Extend  Action = "extend"  // grow behind the end, whatever balloons hold: for inodes
	Reserve Action = "reserve" // the gap, or let nobody write to it, at once
)

// Decision is what to do now.
type Decision struct {
	Action Action
	// Size is what Sizes.Inner becomes by Grow, Shrink and Extend, and the size of the gap
	// with Reserve.
	Size int64
	// Reason tells a person, also why nothing is done.
	Reason string
	// Next is when to look again. With Idle nothing was written for a while: the
	// caller waits that long for a write first, and Next from the write on.
	Next, Idle time.Duration
}

// History is what Decide remembers. The zero value is of a service that starts.
type History struct {
	at                   time.Time
	sizes                Sizes // at that time
	innerUsed, outerUsed int64
	innerRate, outerRate int64         // bytes per second, falling slowly
	files, fileRate      int64         // in the volume, and how many more per second
	quiet                int           // passes in a row without a write
	slow                 time.Duration // how long a step takes, falling slowly
	unevenSince          time.Time
	last                 failure // of the last action, if it failed, but for Extend
	extend               failure // of the last Extend
}

// failure is of an action that failed so many times in a row; without any it is the zero value.
type failure struct {
	action  Action
	times   int
	at      time.Time
	of      Sizes // what the last time began with
	passing bool  // by ErrNotNow
	room    bool  // by ErrNoRoom
}

var (
	// ErrNotNow: what an action failed for passes by itself.
	ErrNotNow = errors.New("not now")
	// ErrNoRoom: the side that gives has not what was measured.
	ErrNoRoom = errors.New("no room")
)

const (
	// quietPasses is how many passes without a write make quiet.
	quietPasses = 3
	// stillRate is a rate, in bytes per second, that counts as no write.
	stillRate = 256 << 10
	// late is for how long the shares must be uneven before the volume shrinks for
	// that alone.
	late = 10 * time.Minute
	// firstPause follows a step that failed; it doubles with each further one up to
	// longestPause. While somebody is in need of it that is needyPause and shortPause (of
	// Extend: longestPause): a writer at the stated rate takes what a side keeps for it within
	// a few seconds.
	firstPause   = 10 * time.Second
	needyPause   = time.Second
	shortPause   = 30 * time.Second
	longestPause = time.Hour
	// slowest bounds how long a step is expected to take.
	slowest = 15 * time.Second
)

// Decide tells what to do. It is to be called with each measurement, and the history
// that it returned for the one before.
func Decide(l Limits, h History, s Sizes, now time.Time) (Decision, History) {
	h = h.observe(s, now)
	d, h := l.decide(h, s, now)
	d.Next, d.Idle = l.pace(h, s, d)
	return d, h
}

// Done is the history after the last decision was carried out, or could not be.
func (h History) Done(d Decision, err error, now time.Time) History {
	// An Extend fails for reasons of its own: that other steps go well says nothing of it.
	f := &h.last
	if d.Action == Extend {
		f = &h.extend
	}
	switch {
	case d.Action == None:
	case err == nil:
		*f = failure{}
		h.slow = min(max(now.Sub(h.at), h.slow*9/10), slowest)
	default:
		if f.action != d.Action {
			f.times = 0
		}
		*f = failure{d.Action, f.times + 1, now, h.sizes, errors.Is(err, ErrNotNow), errors.Is(err, ErrNoRoom)}
	}
	return h
}

// pause is how much longer an action that failed must wait; short tells whether the side
// that gets the space is.
func (h History) pause(a Action, short bool, now time.Time) time.Duration {
	if h.last.action != a {
		return 0
	}
	first, longest := firstPause, longestPause
	if short || h.last.passing {
		longest = shortPause
	}
	if short {
		first = needyPause
	}
	return h.last.pause(first, longest, now)
}

// extendPause is the same for Extend, of which only the volume has need. Room is made for it
// at each try, and taken back after one that failed: so the pause gets long all the same.
func (h History) extendPause(now time.Time) time.Duration {
	longest := longestPause
	if h.extend.passing {
		longest = shortPause
	}
	return h.extend.pause(needyPause, longest, now)
}

// pause doubles from first to longest.
func (f failure) pause(first, longest time.Duration, now time.Time) time.Duration {
	if f.times == 0 {
		return 0
	}
	return max(0, f.at.Add(min(first<<min(f.times-1, 16), longest)).Sub(now))
}

// eased tells whether the step that failed may go well with these sizes: the volume has
// another one, or the side that gives has more. To Extend only room makes a difference, and
// only where that was missing.
func (f failure) eased(s Sizes) bool {
	spare := func(s Sizes) int64 { return s.OuterFree - s.OuterSlack }
	switch f.action {
	case Grow:
	case Extend:
		return f.room && spare(s)-spare(f.of) >= smallest(s)
	case Shrink:
		spare = func(s Sizes) int64 { return s.InnerFree - s.Slack }
	default:
		return false
	}
	return max(s.Inner-f.of.Inner, f.of.Inner-s.Inner) >= align || spare(s)-spare(f.of) >= smallest(s)
}

// observe keeps rates and what was quiet.
func (h History) observe(s Sizes, now time.Time) History {
	inner, outer, files := s.Inner-s.InnerFree, s.Outer-s.OuterFree-(s.Inner-s.Gap), s.Inodes.All-s.Inodes.Free
	if past := now.Sub(h.at); h.at.IsZero() || past <= 0 {
		h.quiet = 0
	} else {
		rate := func(used, before int64) int64 {
			return int64(float64(max(0, used-before)) / past.Seconds())
		}
		i, o, f := rate(inner, h.innerUsed), rate(outer, h.outerUsed), rate(files, h.files)
		h.quiet++
		if max(i, o, f*s.Inodes.bytesEach()) > stillRate {
			h.quiet = 0
		}
		// A writer that pauses for a second is none that has ended.
		h.innerRate, h.outerRate, h.fileRate = max(i, h.innerRate*7/10), max(o, h.outerRate*7/10), max(f, h.fileRate*7/10)
		if h.quiet >= quietPasses {
			h.innerRate, h.outerRate, h.fileRate = 0, 0, 0
		}
	}
	h.at, h.sizes, h.innerUsed, h.outerUsed, h.files = now, s, inner, outer, files
	for _, f := range []*failure{&h.last, &h.extend} {
		if f.eased(s) {
			*f = failure{}
		}
	}
	return h
}

func (l Limits) decide(h History, s Sizes, now time.Time) (Decision, History) {
	switch {
	case s.ReadOnly:
		return none("the volume is read-only"), h
	case s.Gap > 0:
		return l.gap(h, s, now), h
	case s.Copied > 0:
		return none(Text(s.Copied) + " of the volume are not reserved since a snapshot was made of it, and nothing is resized: sealroot state status"), h
	case l.GapOnly:
		return none("what the volume spans is reserved, and nothing is resized (state.auto_resize: off, or limits that are wrong)"), h
	}
	in, out := l.sides(h, s)
	if d := l.extend(in, out, h, s, now); d.Action != None {
		return d, h
	}
	want, why, h := l.want(in, out, h, s, now)
	if lacks := l.lacks(h, s, now); lacks != "" {
		why = strings.TrimSuffix(why, enough) + lacks
	}
	size := s.Inner + want - in.free
	if s.Device > 0 && size > s.Device {
		size, why = s.Device, why+"; "+s.bound()+" than "+Text(s.Device)
	}
	if l.Max > 0 && size > l.Max {
		size, why = max(l.Max, min(s.Inner, size)), why+"; max is "+Text(l.Max)
	}
	if size < l.Min && size < s.Inner {
		size, why = min(l.Min, s.Inner), why+"; min is "+Text(l.Min)
	}
	d := Decision{Action: Grow, Size: size / align * align}
	change := d.Size - s.Inner
	if change < 0 {
		// up, for a file system is not made smaller by a byte more than it can be
		d.Action, d.Size = Shrink, (size+align-1)/align*align
		if whole := s.Inner - up(s.Inner-d.Size, s.Unit); in.free-(s.Inner-whole) >= in.keep && whole >= l.Min {
			d.Size = whole // of less than a unit nothing would come back
		}
		change = s.Inner - d.Size
	}
	receiving := in
	if d.Action == Shrink {
		receiving = out
	}
	switch pause := h.pause(d.Action, receiving.short(), now); {
	case change < l.least(s, receiving):
		return none(why), h
	case d.Action == Shrink && !l.GiveBack:
		return none(why + "; the volume never gives back (state.auto_resize: grow)"), h
	case pause > 0:
		return none(fmt.Sprintf("%s; the last %s failed, the next is in %v", why, d.Action, pause.Round(time.Second))), h
	}
	d.Reason = why
	return d, h
}

// up rounds n up to whole units, if there are any.
func up(n, unit int64) int64 {
	if unit <= align {
		return n
	}
	return (n + unit - 1) / unit * unit
}

func none(why string) Decision { return Decision{Action: None, Reason: why} }

// gap is about a file system that was made larger than what is reserved, by a stray
// resize2fs say. keep_free does not count, and no pause grows: a write into the gap may
// be lost.
func (l Limits) gap(h History, s Sizes, now time.Time) Decision {
	d := Decision{Action: Reserve, Size: s.Gap,
		Reason: fmt.Sprintf("the volume's file system is %s larger than what is reserved for it: another program made it larger", Text(s.Gap))}
	if s.OuterFree < s.Gap {
		d.Reason += ", and the partition has " + Text(s.OuterFree)
	}
	if left := h.last.at.Add(firstPause).Sub(now); h.last.action == Reserve && left > 0 {
		return none(fmt.Sprintf("%s; that could not be reserved, the next try is in %v", d.Reason, left.Round(time.Second)))
	}
	return d
}
