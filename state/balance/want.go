package balance

import (
	"fmt"
	"slices"
	"time"
)

// enough ends the reason for doing nothing where that is why.
const enough = ": nothing is short"

// want is how much of the pool is to be free in the volume, and why. What it returns
// may be too little of a change to be made.
func (l Limits) want(in, out side, h History, s Sizes, now time.Time) (int64, string, History) {
	pool := in.free + out.free
	share := l.share(in, out)
	since := h.unevenSince
	h.unevenSince = time.Time{}
	switch {
	case (in.short() || out.short()) && pool < in.need+out.need:
		return divide(in, out), fmt.Sprintf("little is left: %s in the volume, %s beside it", Text(in.free), Text(out.free)), h
	case in.short():
		return min(in.free+max(step(s), in.need), pool-out.need), fmt.Sprintf("the volume has %s free and needs %s", Text(in.free), Text(in.need)), h
	case out.short():
		return give(in, out, share, step(s)), fmt.Sprintf("the partition has %s free and needs %s", Text(out.free), Text(out.need)), h
	case in.free < share/2 && in.free < pool-out.need:
		return min(in.free+step(s), share, pool-out.need), fmt.Sprintf("the volume has %s free, its share is %s", Text(in.free), Text(share)), h
	case in.free <= 2*share && out.free >= (pool-share)/2 || !l.GiveBack:
		return in.free, fmt.Sprintf("%s free in the volume, %s beside it", Text(in.free), Text(out.free)) + enough, h
	}
	why := fmt.Sprintf("the partition has %s free, its share is %s", Text(out.free), Text(pool-share))
	if h.unevenSince = since; since.IsZero() {
		h.unevenSince = now
	}
	switch {
	case now.Sub(h.unevenSince) < late:
		return in.free, why + fmt.Sprintf("; the volume shrinks when that is so for %v", late), h
	case h.innerRate > stillRate:
		return in.free, why + "; the volume shrinks when nothing is written into it", h
	}
	return max(in.free-step(s), share, in.need), why, h
}

// share is the part of the volume of all free space: what both keep, and the rest by
// the weights.
func (l Limits) share(in, out side) int64 {
	spare := max(0, in.free+out.free-in.keep-out.keep)
	return in.keep + int64(float64(spare)*float64(l.InnerWeight)/float64(l.InnerWeight+l.OuterWeight))
}

// give is what stays free in the volume when the partition is short: a quarter more
// than what is missing there goes, and up to a step where the volume has more than
// its share; never what the volume needs.
func give(in, out side, share, step int64) int64 {
	left := min(in.free-(out.need+out.need/4-out.free), max(share, in.free-step))
	return max(left, in.need)
}

// divide is what is free in the volume when there is not enough for both: by what
// each needs, but neither is given what the other keeps.
func divide(in, out side) int64 {
	pool := in.free + out.free
	if in.keep <= pool-out.keep {
		half := int64(float64(pool) * (float64(in.need) / float64(in.need+out.need)))
		return min(max(half, in.keep), pool-out.keep)
	}
	switch {
	case in.free > in.keep:
		return in.keep
	case out.free > out.keep:
		return pool - out.keep
	}
	return in.free
}

// soonFull tells whether who writes there now fills that side in the time of two looks and
// what the last steps took.
func (l Limits) soonFull(h History, a side) bool {
	return a.rate > 0 && float64(a.free)/float64(a.rate) < 2*(l.Interval+h.slow).Seconds()
}

// movable tells whether either side has so much more than it keeps that a step is worth it, and may give it.
func (l Limits) movable(s Sizes, in, out side) bool {
	return out.free-out.keep >= smallest(s) || l.GiveBack && in.free-in.keep >= smallest(s)
}

// pace is when to look again.
func (l Limits) pace(h History, s Sizes, d Decision) (next, idleFor time.Duration) {
	in, out := l.sides(h, s)
	next = idle
	sides := []side{in, out}
	if s.extendable() {
		sides = append(sides, l.files(h, s))
	}
	for _, a := range sides {
		// A writer may become four times as fast until this side is looked at again.
		if rate := max(a.rate, l.StatedRate(s.Outer)); rate > 0 {
			next = min(next, time.Duration(float64(a.free)/4/float64(rate)*float64(time.Second)))
		}
	}
	switch {
	case !l.GapOnly && slices.ContainsFunc(sides, func(a side) bool { return l.soonFull(h, a) }): // also after a step, which took its time
		return l.Interval / 4, 0
	case d.Action != None:
		return l.Interval, 0
	case l.GapOnly: // free space is nobody's concern
		return idle, 0
	case h.quiet >= quietPasses && next >= idle: // time enough, whoever begins to write
		return next, 0
	case h.quiet >= quietPasses && !l.movable(s, in, out): // who fills a side gets nothing of the other one
		return l.Interval, idle
	case h.quiet >= quietPasses: // a trickle of writes must not wake the service at each
		return min(max(next, l.Interval/4), l.Interval), idle
	}
	return max(next, l.Interval), 0
}
