package slots

import (
	"fmt"
	"slices"
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

// standIn is the committed slot that runs while a trial waits for its kernel.
func (o Observed) standIn() (Slot, bool) {
	i := best(o.Slots, func(s Slot) bool { return s.Successful && !o.tried(s.Name) })
	if i < 0 {
		return Slot{}, false
	}
	return o.Slots[i], true
}

// fellBack finds the slot that should have run instead of s: one that failed in
// this boot, was given up above it, or has a failure of its image on record.
func (o Observed) fellBack(s Slot) *Failure {
	i := best(o.Slots, func(t Slot) bool {
		if t.Name == s.Name {
			return false
		}
		_, failed := o.imageFailure(t.Name)
		return o.tried(t.Name) || failed || t.State() == Spent && t.Priority >= s.Priority
	})
	if i < 0 {
		return nil
	}
	t := o.Slots[i]
	if f, ok := o.Failures[t.Name]; ok && (o.tried(t.Name) || f.Class == ImageFailure) {
		f.Slot = t.Name
		return &f
	}
	return &Failure{Slot: t.Name, Class: ImageFailure, Reason: NoCommit}
}

func (o Observed) imageFailure(name string) (Failure, bool) {
	f, ok := o.Failures[name]
	return f, ok && f.Class == ImageFailure
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

// markBad records an image failure of a slot that is known to exist.
func markBad(s []Slot, name string) []Slot {
	out, err := MarkBad(s, name, ImageFailure)
	if err != nil {
		return slices.Clone(s)
	}
	return out
}
