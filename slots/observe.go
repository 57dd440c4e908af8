package slots

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	firstPause = 10 * time.Second
	longPause  = 10 * time.Minute
)

// pause grows with the last resorts in a row: the first goes on at once.
func pause(n int) time.Duration {
	if n <= 0 {
		return 0
	}
	return min(firstPause<<min(n-1, 6), longPause)
}

func (o Observed) tried(name string) bool { return slices.Contains(o.Tried, name) }

// foreign says that the running kernel is known to be another slot's.
func (o Observed) foreign(name string) bool { return o.Loaded != "" && o.Loaded != name }

// arrivedNever says that the one-shot was armed for the slot and is gone. A
// damaged log counts as armed: a try too few is better than a reboot loop.
func (o Observed) arrivedNever(name string) bool {
	return o.Hint.Known && o.Hint.Slot == "" && (o.Armed == name || !o.LogReadable)
}

// waits says that the slot's trial stopped because its tries could not be saved.
func (o Observed) waits(t Slot) bool {
	return t.State() == Trial && o.Failures[t.Name].Reason == NotSaved
}

// standIn is the committed slot that runs while a trial waits for its kernel.
func (o Observed) standIn() (Slot, bool) {
	i := o.best(func(s Slot) bool { return s.Successful && !o.tried(s.Name) })
	if i < 0 {
		return Slot{}, false
	}
	return o.Slots[i], true
}

// exhausted says that a committed slot has used up its tries without a commit.
func (o Observed) exhausted(s Slot) bool {
	return o.Refill > 0 && s.State() == Committed && s.Tries == 0
}

// allUsedUp says that s, the best slot, is exhausted as others are: it was given
// its boots, and must not have all others too.
func (o Observed) allUsedUp(s Slot) bool {
	if !o.exhausted(s) {
		return false
	}
	n := 0
	for _, t := range o.Slots {
		if o.exhausted(t) && !o.tried(t.Name) {
			n++
		}
	}
	return n > 1
}

// best returns the index of the slot that comes first among those that ok
// accepts, or -1: by priority, exhausted ones last.
func (o Observed) best(ok func(Slot) bool) int {
	if i := best(o.Slots, func(s Slot) bool { return ok(s) && !o.exhausted(s) }); i >= 0 {
		return i
	}
	return best(o.Slots, ok)
}

// fallBack tells, once, that another slot should have run instead of s.
func (o Observed) fallBack(d *Decision, s Slot) {
	f, fresh := o.fellBack(s)
	if f == nil || !fresh && o.Told == Told(*f) {
		return
	}
	d.FellBack, d.Why = f, BecauseFallback
	if _, known := o.Failures[f.Slot]; !known {
		d.Log.Failures = append(d.Log.Failures, *f) // status still knows it later
	}
	d.say("%s; falling back to slot %s", f, s.Name)
}

// Told is how the boot log remembers that a fallback was told. It is recorded by
// the boot that tells the running system of it: one that ends before has told
// nobody.
func Told(f Failure) string { return f.Slot + " " + string(f.Reason) }

// ToldOf says that told, from the boot log, is about the slot.
func ToldOf(told, slot string) bool { return strings.HasPrefix(told, slot+" ") }

// fellBack finds the slot that should have run instead of s: one that failed in
// this boot (fresh), was given up or used up above it, or has a failure of its
// image on record.
func (o Observed) fellBack(s Slot) (f *Failure, fresh bool) {
	i := best(o.Slots, func(t Slot) bool {
		if t.Name == s.Name {
			return false
		}
		given := t.State() == Spent || o.exhausted(t) && !o.exhausted(s) || o.waits(t)
		return o.tried(t.Name) || o.Failures[t.Name].Class == ImageFailure || given && t.Priority >= s.Priority
	})
	if i < 0 {
		return nil, false
	}
	t := o.Slots[i]
	if f, ok := o.Failures[t.Name]; ok {
		f.Slot = t.Name
		return &f, o.tried(t.Name)
	}
	return &Failure{Slot: t.Name, Class: ImageFailure, Reason: NoCommit}, o.tried(t.Name)
}

// disagree says so when the loader loaded another slot's kernel than the one
// that is to run. The next commit makes them agree.
func (o Observed) disagree(d *Decision) {
	if d.Reboot || d.Disagreement != nil || !o.foreign(d.Slot) {
		return
	}
	why := fmt.Sprintf("slot %s comes first", d.Slot)
	switch {
	case d.FellBack != nil:
		why = d.FellBack.String()
	case d.Why != BecauseCommitted:
		why = fmt.Sprintf("slot %s runs as %s", d.Slot, d.Why)
	}
	d.Disagreement = &Disagreement{Loaded: o.Loaded, Wanted: d.Slot, Why: why}
}

// disarm clears a one-shot or its record that points to a slot which is no
// longer to be tried. Without either it changes nothing.
func (o Observed) disarm(d *Decision) {
	if d.Rearm != "" {
		return
	}
	after := o.Slots
	if d.Slots != nil {
		after = d.Slots
	}
	stale := func(name string) bool {
		if name == "" || name == d.Slot && d.NeedOwnKernel && !d.Reboot {
			return false // nothing, or what keeps OwnKernel from repeating itself
		}
		s, ok := Find(after, name)
		return !ok || s.State() != Trial
	}
	// a stale record alone is harmless, and a boot of a committed slot is to
	// write nothing: it is cleared together with other writes or by commit
	if o.Hint.Known && stale(o.Hint.Slot) || (d.Slots != nil || len(o.Tried) > 0) && stale(o.Armed) {
		d.ClearArmed = true
		if o.Armed != "" {
			d.arm("")
		}
	}
}

func (d *Decision) arm(slot string) { d.Log.SetArmed, d.Log.Armed = true, slot }

func (d *Decision) say(format string, args ...any) {
	d.Lines = append(d.Lines, fmt.Sprintf(format, args...))
}

// mustSpend spends a try of a slot that is known to exist.
func mustSpend(s []Slot, name string) []Slot {
	out, err := Spend(s, name)
	if err != nil {
		return slices.Clone(s)
	}
	return out
}

// mustRecount takes a try of a committed slot that is known to exist.
func mustRecount(s []Slot, name string) []Slot {
	out, err := Recount(s, name)
	if err != nil {
		return slices.Clone(s)
	}
	return out
}

// mustGiveBack returns a try to a slot that is known to exist.
func mustGiveBack(s []Slot, name string) []Slot {
	out, err := GiveBack(s, name)
	if err != nil {
		return slices.Clone(s)
	}
	return out
}

// markBad records an image failure of a slot that is known to exist.
func markBad(s []Slot, name string) []Slot {
	out, err := MarkBad(s, name, ImageFailure)
	if err != nil {
		return slices.Clone(s)
	}
	return out
}
