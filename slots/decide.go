package slots

import (
	"fmt"
	"maps"
	"time"
)

// Observed is all that a decision depends on.
type Observed struct {
	Slots []Slot
	// Loaded is the slot whose kernel and initramfs run; "" when nobody told, and
	// then it fits any slot; UnknownKernel when it belongs to none.
	Loaded string
	Hint   HintState // the loader's one-shot as it stands now
	// Armed is the slot that the one-shot was last armed for, from the boot
	// log; "" none. LogReadable is false when the boot log was damaged.
	Armed       string
	LogReadable bool
	// Arrived: the record named the slot whose kernel runs when the boot began.
	Arrived  bool
	Failures map[string]Failure // last failure of each slot, from the boot log
	Pauses   int                // last resorts and failed boots in a row so far, from the boot log
	Tried    []string           // slots that failed in this boot already
	Told     string             // the fallback that was told of last, from the boot log
	// Refill is boot.tries with boot.recount: committed slots are counted too. 0
	// without.
	Refill int
	Took   []string // committed slots whose try this boot has taken
	// LastResort: the slot was chosen because nothing better is left.
	LastResort bool
}

// HintState is the loader's one-shot.
type HintState struct {
	Slot      string // "" when none is armed
	Known     bool   // it could be read
	Supported bool   // there is a loader with a one-shot (a directly loaded kernel has none)
}

// Why is the reason of a choice.
type Why string

// The reasons of a choice, as boot.json has them.
const (
	BecauseCommitted  Why = "committed"
	BecauseTrial      Why = "trial"
	BecauseFallback   Why = "fallback"
	BecauseLastResort Why = "last-resort"
)

// Decision is what to do now. Apply writes it down in the safe order.
type Decision struct {
	Slot string // the slot to boot
	Why  Why
	// Slots is to be saved before the slot is touched; nil: write nothing.
	Slots []Slot
	// Rearm is the slot to arm the loader's one-shot for; "" leaves it alone.
	Rearm string
	// SetDefault is the slot that the loader is to start without a one-shot; ""
	// leaves that alone. Its own kernel runs, so it cannot be a dead one.
	SetDefault string
	// ClearArmed: clear the loader's one-shot and the armed record.
	ClearArmed bool
	// Log is what to change in the boot log.
	Log LogChange
	// Reboot: reboot once everything is written. When a write failed, do not
	// reboot but boot Slot, which is safe without it; where Slot is committed
	// decide again, with the one-shot unknown, so that its boot is counted.
	Reboot bool
	// Pause is how long to wait, visibly, before going on or rebooting.
	Pause time.Duration
	// NeedOwnKernel: the running kernel is another slot's. Go on when the
	// kernel release matches the modules of Slot's root, else ask OwnKernel.
	NeedOwnKernel bool
	// Spends is the slot on trial whose try is spent with Slots. When that cannot
	// be saved, record NotSaved against it and decide again: it would be tried for
	// ever.
	Spends string
	// Took is the committed slot whose try is taken with Slots (boot.recount).
	Took string
	// LostTry is set when a try was spent for a boot that did not arrive.
	LostTry *Failure
	// FellBack is set when another slot should have run: which, and why not. It
	// is told once for each fallback: who has told it puts it into the boot log.
	FellBack *Failure
	// Disagreement is set when the loader did not load what should run.
	Disagreement *Disagreement
	// Lines tell a person what was decided, in order, without prefix.
	Lines []string
}

// Disagreement says what the loader loaded and what the slots say.
type Disagreement struct {
	Loaded string // slot whose kernel runs, or UnknownKernel
	Wanted string // slot whose kernel should run
	Why    string // for a person
}

// LogChange is a change of the boot log.
type LogChange struct {
	SetArmed  bool
	Armed     string    // with SetArmed: the new value
	Failures  []Failure // replaces the last failure of their slots
	SetPauses bool
	Pauses    int // with SetPauses: the new value
	// Told is the fallback that is told of now, by Told; "" leaves the old one.
	// It is forgotten with its slot, and when the slot fails anew.
	Told string
	// Forget is for slots that get another image: it drops all that the log says
	// about them, and that others stood above them.
	Forget []string
	// Clear is for slots that have proved good: it drops their last failure, that
	// the one-shot was armed for them, and that a fallback from them was told.
	Clear []string
}

// Empty says that nothing changes, and so nothing is to be written.
func (c LogChange) Empty() bool {
	return !c.SetArmed && !c.SetPauses && c.Told == "" && len(c.Failures) == 0 && len(c.Forget) == 0 && len(c.Clear) == 0
}

// Decide chooses the slot to boot. It is called once at boot, and again with
// the slot added to Tried (and, after an image failure, MarkBad applied and
// saved) each time a slot failed before hand-over.
//
// The highest bootable slot wins. When that is a slot on trial it is booted by
// its own kernel, which spends the try: the committed slot's kernel only arms
// the loader's one-shot and reboots, and when the one-shot was consumed without
// the trial having arrived, spends the try for it.
//
// The result is never an error while a slot exists: when nothing is bootable
// the last resort is each slot in turn. ErrNoSlot when there is none.
func Decide(o Observed) (Decision, error) {
	if len(o.Slots) == 0 {
		return Decision{}, ErrNoSlot
	}
	if o.Loaded != "" && index(o.Slots, o.Loaded) < 0 {
		o.Loaded = UnknownKernel // a slot that the store does not know is none of ours
	}
	i := o.best(func(s Slot) bool { return s.Bootable() && !o.tried(s.Name) })
	var d Decision
	switch {
	case i < 0 || o.allUsedUp(o.Slots[i]):
		d = o.lastResort()
	case o.Slots[i].State() == Trial:
		d = o.trial(o.Slots[i])
	default:
		d = o.committed(o.Slots[i])
	}
	o.disarm(&d)
	o.disagree(&d)
	return d, nil
}

// committed boots a committed slot and writes nothing, unless its boots are
// counted, a fallback is to be told, or the boot before rebooted into the slot's
// own kernel in vain.
func (o Observed) committed(s Slot) Decision {
	if o.foreign(s.Name) && o.LogReadable && o.arrivedNever(s.Name) {
		return o.neverCame(s)
	}
	d := Decision{Slot: s.Name, Why: BecauseCommitted, NeedOwnKernel: o.foreign(s.Name)}
	o.count(&d, s)
	if s.Successful && o.Armed == s.Name && o.Loaded == s.Name {
		// It was restarted into its own kernel and has arrived. Left behind, the
		// record would accuse it should the loader choose another slot next time.
		// It comes first and had to be asked for: the loader's default is wrong.
		d.arm("")
		if len(o.Tried) == 0 {
			d.SetDefault = s.Name
		}
	} else if t, ok := Find(o.Slots, o.Armed); ok && t.Successful && o.Armed == o.Loaded {
		d.arm("") // it has arrived too, and another slot comes first
	}
	o.fallBack(&d, s)
	return d
}

// count takes a try of a committed slot where the configuration says so.
func (o Observed) count(d *Decision, s Slot) {
	if o.Refill == 0 || !s.Successful || s.Tries == 0 {
		return
	}
	from := o.Slots
	if d.Slots != nil {
		from = d.Slots
	}
	d.Slots, d.Took = mustRecount(from, s.Name), s.Name
	d.say("slot %s: %s until the next commit", s.Name, triesLeft(s.Tries-1))
}

// neverCame records that the own kernel of a committed slot died before PID 1,
// when the boot before rebooted into it. The slot runs under the kernel that is
// here if it can; OwnKernel refuses to ask for its own once more.
func (o Observed) neverCame(s Slot) Decision {
	f := Failure{Slot: s.Name, Class: ImageFailure, Reason: KernelNeverReached}
	rest := o
	rest.Armed = ""
	rest.Failures = maps.Clone(o.Failures)
	if rest.Failures == nil {
		rest.Failures = map[string]Failure{}
	}
	rest.Failures[s.Name] = f
	d := rest.committed(s)
	d.Log.Failures = append(d.Log.Failures, f)
	d.arm("")
	d.Lines = append([]string{fmt.Sprintf("%s: it is not asked for again", f)}, d.Lines...)
	return d
}

// trial decides what to do about a slot on trial that should run now.
func (o Observed) trial(t Slot) Decision {
	stand, ok := o.standIn()
	switch {
	case ok && o.waits(t):
		d := o.committed(stand)
		d.say("slot %s is on trial and waits: its tries could not be saved (sealroot try %s goes on)", t.Name, t.Name)
		return d
	case !o.foreign(t.Name) || !o.Hint.Supported:
		return o.bootTrial(t)
	case !ok:
		// No committed slot is left. The try is spent here too, so that this
		// ends even when the own kernel never comes.
		d := o.bootTrial(t)
		if o.Hint.Known && o.Hint.Slot == "" && !o.arrivedNever(t.Name) {
			d.rebootInto(t.Name)
		}
		return d
	case len(o.Tried) > 0:
		// a trial does not begin in the middle of a fall-over
		return o.committed(stand)
	case !o.Hint.Known || o.Hint.Slot == t.Name:
		d := o.committed(stand)
		why := fmt.Sprintf("slot %s is on trial, but the boot loader chose slot %s: nothing is counted", t.Name, o.Loaded)
		d.Disagreement = &Disagreement{Loaded: o.Loaded, Wanted: t.Name, Why: why}
		d.say("%s", why)
		return d
	case o.arrivedNever(t.Name):
		return o.neverArrived(t, stand)
	}
	d := Decision{Slot: stand.Name, Why: BecauseCommitted, NeedOwnKernel: o.foreign(stand.Name)}
	d.rebootInto(t.Name)
	return d
}

func (d *Decision) rebootInto(slot string) {
	d.Rearm, d.Reboot = slot, true
	d.arm(slot)
	d.Lines = nil
	d.say("slot %s is on trial: rebooting into its own kernel", slot)
}

// bootTrial spends a try and boots the slot now.
func (o Observed) bootTrial(t Slot) Decision {
	d := Decision{Slot: t.Name, Why: BecauseTrial, NeedOwnKernel: o.foreign(t.Name), Spends: t.Name}
	d.Slots = mustSpend(o.Slots, t.Name)
	left := t.Tries - 1
	if left > 0 && o.Hint.Supported && o.Hint.Slot != t.Name {
		d.Rearm = t.Name
		if o.Armed != t.Name {
			d.arm(t.Name)
		}
	}
	if len(o.Tried) > 0 {
		o.fallBack(&d, t)
	}
	d.say("slot %s: on trial, %s", t.Name, triesLeft(left))
	return d
}

// neverArrived counts a boot whose kernel died before PID 1, as the stand-in's
// PID 1 notices it: the one-shot was armed and is gone.
func (o Observed) neverArrived(t, stand Slot) Decision {
	f := Failure{Slot: t.Name, Class: ImageFailure, Reason: KernelNeverReached}
	after, left := mustSpend(o.Slots, t.Name), t.Tries-1
	d := Decision{
		Slot: stand.Name, Why: BecauseFallback, NeedOwnKernel: o.foreign(stand.Name),
		Slots: after, Spends: t.Name, LostTry: &f, FellBack: &f,
		Log: LogChange{Failures: []Failure{f}},
	}
	d.say("%s: a try is lost, %s", f, triesLeft(left))
	o.count(&d, stand)
	if left > 0 {
		d.Rearm = t.Name
		if o.Armed != t.Name {
			d.arm(t.Name)
		}
		d.say("slot %s is tried again at the next boot; slot %s runs now", t.Name, stand.Name)
		return d
	}
	d.Slots = markBad(d.Slots, t.Name)
	d.say("slot %s is given up; slot %s runs", t.Name, stand.Name)
	return d
}
