package slots

import (
	"cmp"
	"slices"
	"sort"
)

// lastResort picks a slot when none is bootable, or all that are have failed in
// this boot, or when all of several committed slots have used up their tries.
// Slots take turns from one boot to the next, so that a good image among them
// comes to run, those that were once good before all others.
func (o Observed) lastResort() Decision {
	pick := o.inTurn()
	d := Decision{Why: BecauseLastResort, Pause: pause(o.Pauses)}
	if o.Armed != "" && o.Armed == o.Loaded {
		d.arm("") // arrived, and counted before; left behind it would take every turn
	} else {
		d.Log.SetPauses, d.Log.Pauses = true, o.Pauses+1
	}
	if pick < 0 {
		// every slot failed in this boot: only a new boot can help
		pick = o.best(func(s Slot) bool { return s.Successful })
		pick = max(pick, 0)
		if own := o.onlyItsKernel(); own >= 0 {
			pick = own
			d.Rearm = o.Slots[pick].Name
			d.arm(d.Rearm)
		}
		d.Reboot = true
		d.Pause = max(d.Pause, firstPause)
	}
	s := o.Slots[pick]
	d.Slot, d.NeedOwnKernel = s.Name, o.foreign(s.Name)
	o.fallBack(&d, s)
	d.Why = BecauseLastResort
	switch {
	case d.Reboot:
		d.say("every slot failed in this boot: trying again from the start in %s", d.Pause)
	case s.Successful:
		d.say("every committed slot has used up its tries: last resort, slot %s", s.Name)
	default:
		d.say("no slot is bootable: last resort, slot %s", s.Name)
	}
	return d
}

// onlyItsKernel returns the index of a committed slot that failed for want of
// its own kernel, in turn, or -1. A kernel that did not come may have met a power
// cut: when nothing else is left it is asked for again, after a pause. What
// looks like a fault of the machine may be one of the running kernel's initramfs
// (a driver that it lacks): every other time another slot's own is asked for.
func (o Observed) onlyItsKernel() int {
	if !o.Hint.Supported || !o.LogReadable {
		return -1
	}
	var turn []int
	same := []int{-1}
	for i, s := range o.Slots {
		f := o.Failures[s.Name]
		switch {
		case !s.Successful || !o.foreign(s.Name):
		case f.Reason == KernelNeverReached || f.Reason == WrongKernel:
			turn = append(turn, i)
		case f.Class == EnvironmentFailure:
			same = append(same, i)
		}
	}
	if len(turn) == 0 {
		turn = same
	}
	return turn[max(o.Pauses, 0)%len(turn)]
}

// sentFrom says that this boot was restarted into the kernel of another
// committed slot because nothing ran under that of this one.
func (o Observed) sentFrom(slot string) bool {
	s, ok := Find(o.Slots, o.Loaded)
	return ok && s.Successful && o.Arrived && !o.tried(s.Name) && o.Failures[slot].Class == EnvironmentFailure
}

// inTurn returns the index of the untried slot whose turn it is, those with a
// priority before those without, or -1.
func (o Observed) inTurn() int {
	if o.Armed != "" && o.Armed == o.Loaded && !o.tried(o.Loaded) {
		return index(o.Slots, o.Loaded) // the boot before rebooted for its turn
	}
	turn := slices.DeleteFunc(ByPriority(o.Slots), func(i int) bool { return o.tried(o.Slots[i].Name) })
	if len(turn) == 0 {
		return -1
	}
	good := slices.DeleteFunc(slices.Clone(turn), func(i int) bool { return !o.Slots[i].Successful })
	if len(good) > 0 {
		turn = good
	}
	return turn[max(o.Pauses, 0)%len(turn)]
}

// ByPriority returns the indices of slots, the highest priority first, equal ones as they
// stand. (Not sort.SliceStable: nothing else in PID 1 needs its two kilobytes.)
func ByPriority(list []Slot) []int {
	order := make([]int, len(list))
	for i := range order {
		order[i] = i
	}
	sort.Slice(order, func(i, j int) bool {
		a, b := order[i], order[j]
		return cmp.Or(list[b].Priority-list[a].Priority, a-b) < 0
	})
	return order
}

// OwnKernel decides how to go on when Decide wanted slot but the kernel that
// runs does not fit its modules: arm the one-shot for it and reboot. A try that
// this boot took is given back, the next one takes it. ok is false when that is
// not possible or was done before without success; then failure says what to
// record against the slot, which counts as tried, and Decide is asked again.
func OwnKernel(o Observed, slot string) (d Decision, failure Failure, ok bool) {
	failure = Failure{Slot: slot, Class: EnvironmentFailure, Reason: WrongKernel, Detail: "the boot loader did not load its kernel"}
	if o.Failures[slot].Reason == KernelNeverReached && !o.LastResort {
		// its own kernel is dead and no other one fits
		return Decision{}, Failure{Slot: slot, Class: ImageFailure, Reason: KernelNeverReached}, false
	}
	known := index(o.Slots, slot) >= 0
	// the record bounds this to one reboot, so it must be readable; the hint
	// itself need not be
	again := !o.LogReadable || o.Armed == slot || o.Hint.Slot == slot || o.sentFrom(slot)
	if !known || !o.Hint.Supported || again || !o.foreign(slot) {
		return Decision{}, failure, false
	}
	d = Decision{Slot: slot, Why: BecauseFallback, Rearm: slot, Reboot: true, NeedOwnKernel: true}
	if slices.Contains(o.Took, slot) {
		d.Slots = mustGiveBack(o.Slots, slot)
	}
	d.arm(slot)
	d.say("slot %s needs its own kernel: rebooting into it", slot)
	return d, Failure{}, true
}
