package slots

import (
	"errors"
	"fmt"
)

// Commitment is what a commit depends on, beside the slots themselves.
type Commitment struct {
	Running string // slot whose root runs
	// Loaded is the slot whose kernel runs; "" when nobody told, UnknownKernel
	// when it is none's.
	Loaded   string
	Refill   int                // boot.tries with boot.recount, 0 without
	Failures map[string]Failure // last failures, from the boot log
}

// CommitNow commits the running slot. The order, for power cuts in between:
//
//	log:     the armed record goes first. Left behind, it would look like a
//	         kernel that never came, once the slot is committed. With it goes
//	         the slot's last failure, except that its own kernel never came.
//	slots:   now the slot is committed, and has its place back if a failure that
//	         this boot has disproved had lowered it.
//	default: the loader's default becomes the slot, but only when it is its own
//	         kernel that reached PID 1: a default that never starts would need
//	         a visit.
//	hint:    the one-shot goes last. One for another slot on trial stays. When
//	         another kernel runs, the one-shot is armed for the slot's own, so
//	         that loader and slots agree from the next commit on. That is done
//	         once: a kernel that does not come is remembered.
//
// Nothing is written that is so already. loader and log may be nil. All that
// can be done is done; the errors are joined (ErrStore, ErrDefault, ErrHint,
// ErrLog).
func CommitNow(c Commitment, store Store, loader Loader, log Log) error {
	before, err := store.Load()
	if err != nil {
		return fmt.Errorf("cannot commit slot %s: %w", c.Running, err)
	}
	after, err := c.slots(before)
	if err != nil {
		return err
	}
	var errs []error
	if err := Note(log, c.logChange(before)); err != nil {
		errs = append(errs, err)
	}
	// crash point: forgotten, not committed; the slot is still on trial or good
	// It writes nothing when all is right, and mends a damaged copy of the table.
	if err := Save(store, after); err != nil {
		// the default must not leave a slot that is still good
		return errors.Join(append(errs, fmt.Errorf("cannot commit slot %s: %w", c.Running, err))...)
	}
	// crash point: committed; the default still names another committed slot
	if loader != nil {
		// a log that cannot be written would not know a kernel that never came
		if err := c.tell(after, loader, log, len(errs) == 0); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// slots returns the slots after the commit.
func (c Commitment) slots(before []Slot) ([]Slot, error) {
	after, err := CommitCounted(before, c.Running, c.Refill)
	if err != nil {
		return nil, err
	}
	f, ok := c.Failures[c.Running]
	if !ok || f.ByHand() {
		return after, nil
	}
	f.Slot = c.Running
	return Restore(after, f, c.Refill)
}

// own says that the slot's own kernel runs, as far as anybody knows.
func (c Commitment) own() bool { return c.Loaded == "" || c.Loaded == c.Running }

// kernelDead says that the slot's own kernel is known not to come.
func (c Commitment) kernelDead() bool {
	return !c.own() && c.Failures[c.Running].Reason == KernelNeverReached
}

func (c Commitment) logChange(before []Slot) LogChange {
	change := LogChange{SetPauses: true}
	running, _ := Find(before, c.Running)
	switch {
	case c.kernelDead():
	case running.Successful:
		change.Clear = []string{c.Running}
	default:
		change.Forget = []string{c.Running} // a new image has its own place
	}
	return change
}

// tell makes the loader agree; arm says that the one-shot may be armed.
func (c Commitment) tell(after []Slot, loader Loader, log Log, arm bool) error {
	if c.own() {
		if err := loader.SetDefault(c.Running); err != nil {
			return ofSlot(ErrDefault, c.Running, err)
		}
		// crash point: the one-shot loads the default
	}
	armed, err := loader.Get()
	if err != nil {
		return Because(ErrHint, err)
	}
	switch {
	case (c.own() || c.kernelDead()) && armed == c.Running:
		if err := loader.Clear(); err != nil {
			return Because(ErrHint, err)
		}
	case arm && !c.own() && (armed == "" || armed == c.Running) && c.wantsOwnKernel(after):
		if armed == "" {
			if err := loader.Arm(c.Running); err != nil {
				return ofSlot(ErrHint, c.Running, err)
			}
		}
		// crash point: armed without a record; a kernel that does not come is
		// then tried once more
		if err := Note(log, LogChange{SetArmed: true, Armed: c.Running}); err != nil {
			return disarm(loader, err)
		}
	}
	return nil
}

// wantsOwnKernel: the slot is the one to run from now on, no trial waits for
// the one-shot, and the slot's kernel was not tried in vain.
func (c Commitment) wantsOwnKernel(after []Slot) bool {
	for _, s := range after {
		if s.State() == Trial {
			return false
		}
	}
	o := Observed{Slots: after, Refill: c.Refill}
	first := o.best(Slot.Bootable)
	return !c.kernelDead() && first >= 0 && after[first].Name == c.Running
}
