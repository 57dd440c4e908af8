package balance

import (
	"errors"
	"fmt"
	"time"
)

// Limits are what an administrator may choose. Sizes are in bytes.
type Limits struct {
	// KeepFree is what the volume leaves free on the partition; 0: KeepFreeOf. It is never
	// less than Sizes.OuterSlack.
	KeepFree int64
	// Min and Max bound the size of the file system in the volume; 0: not.
	Min, Max int64
	// OuterWeight and InnerWeight divide free space between partition and volume.
	OuterWeight, InnerWeight int64
	// Rate is, in bytes per second, up to which a writer on either side never meets a
	// full file system while the other side has room. StatedRate has what of it a
	// small partition can promise.
	Rate int64
	// Interval is between two looks while one side is short.
	Interval time.Duration
	// GiveBack: the volume may shrink.
	GiveBack bool
	// GapOnly: the volume is not resized for the sake of space, only Sizes.Gap closed.
	GapOnly bool
}

const (
	mib = 1 << 20
	gib = 1 << 30
	// align is the unit of changes.
	align = mib
	// idle is between two looks at most. A write to a volume that the kernel does not tell
	// of, and one that makes the file system larger, are seen only then.
	idle = 10 * time.Second
)

// Defaults are the limits without a file. The weights are systemd-homed's.
func Defaults() Limits {
	return Limits{OuterWeight: 20, InnerWeight: 100, Rate: 128 * mib, Interval: time.Second, GiveBack: true}
}

// ErrLimits: limits that contradict themselves.
var ErrLimits = errors.New("contradiction")

// Check tells what is wrong with limits. ErrLimits.
func (l Limits) Check() error {
	switch {
	case l.KeepFree < 0 || l.Min < 0 || l.Max < 0 || l.OuterWeight < 0 || l.InnerWeight < 0:
		return fmt.Errorf("%w: a number is negative", ErrLimits)
	case l.Max > 0 && l.Min > l.Max:
		return fmt.Errorf("%w: min is %s, and max %s", ErrLimits, Text(l.Min), Text(l.Max))
	case l.InnerWeight == 0 && l.OuterWeight == 0:
		return fmt.Errorf("%w: both weights are 0", ErrLimits)
	case l.InnerWeight > 10000 || l.OuterWeight > 10000:
		return fmt.Errorf("%w: a weight is more than 10000", ErrLimits)
	case l.Rate < mib || l.Rate > 10*gib:
		return fmt.Errorf("%w: rate is %s per second, it must be from 1M to 10G", ErrLimits, Text(l.Rate))
	case l.Interval < 100*time.Millisecond || l.Interval > idle:
		return fmt.Errorf("%w: interval is %v, it must be from 100ms to %v", ErrLimits, l.Interval, idle)
	}
	return nil
}

// KeepFreeOf is what stays free on a partition whose file system has this size: 1 GiB,
// or 5 % where that is more, or on less than 10 GiB a tenth.
func KeepFreeOf(outer int64) int64 { return max(min(gib, outer/10), outer/20) }

// Keep is what stays free on a partition of this size that must have slack bytes free.
func (l Limits) Keep(outer, slack int64) int64 {
	if l.KeepFree == 0 {
		return max(KeepFreeOf(outer), slack)
	}
	return max(l.KeepFree, slack)
}

// keepInside is the same in the volume: 256 MiB, or on less than 5 GiB a twentieth.
func keepInside(outer int64) int64 { return min(256*mib, outer/20) }

// StatedRate is the rate that is kept on a partition of this size: Limits.Rate, or
// where that is less a sixteenth of the partition in each interval.
func (l Limits) StatedRate(outer int64) int64 {
	return min(l.Rate, int64(float64(outer/16)/l.Interval.Seconds()))
}

// side is one side's free space.
type side struct {
	free int64
	keep int64 // is never taken for the other side
	need int64 // below it this side is short
	rate int64
}

// sides are what both have and need: room for twice what is written in an interval
// and while a step is made, at the stated rate or at what was measured.
func (l Limits) sides(h History, s Sizes) (in, out side) {
	in = side{free: s.InnerFree, keep: max(keepInside(s.Outer), s.Slack), rate: h.innerRate}
	out = side{free: s.OuterFree, keep: l.Keep(s.Outer, s.OuterSlack), rate: h.outerRate}
	in.need, out.need = max(in.keep, l.head(in.rate, h, s)), max(out.keep, l.head(out.rate, h, s))
	return in, out
}

// head is the room for a writer at that rate, or the stated one where that is more.
func (l Limits) head(rate int64, h History, s Sizes) int64 {
	return min(int64(2*(l.Interval+h.slow).Seconds()*float64(max(rate, l.StatedRate(s.Outer)))), s.Outer/4)
}

func (s side) short() bool { return s.free < s.need }

// step is how much is moved at once: 512 MiB (of less than 4 GiB an eighth), or a
// fifth of the volume.
func step(s Sizes) int64 { return max(min(512*mib, s.Outer/8), s.Inner/5) }

// least is the smallest change that is made: 5 % of the volume. Where the receiving
// side is about to be full, it is a 256th of the partition, from 4 to 64 MiB: smaller
// ones would have no end.
func (l Limits) least(s Sizes, receiving side) int64 {
	if receiving.free < receiving.need/2 {
		return smallest(s)
	}
	return max(smallest(s), s.Inner/20)
}

func smallest(s Sizes) int64 { return min(max(s.Outer/256, 4*mib), 64*mib) }

// Text is a number of bytes for a person.
func Text(n int64) string {
	switch {
	case n >= 100*gib:
		return fmt.Sprintf("%d GiB", n/gib)
	case n >= gib:
		return fmt.Sprintf("%.1f GiB", float64(n)/gib)
	case n >= mib || n == 0:
		return fmt.Sprintf("%d MiB", n/mib)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}
