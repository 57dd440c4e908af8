// Package bootset changes which slot the machine keeps and which one it tries:
// commit, try, mark bad, roll back. It says what is refused and why; the order of the writes is
// that of slots.CommitNow and slots.Apply.
package bootset

import (
	"errors"
	"fmt"

	"sealroot/slots"
)

var (
	// ErrRefused: the change would be wrong now; the text says why.
	ErrRefused = errors.New("refused")
	// ErrNoImage: the slot does not hold what is needed to start it.
	ErrNoImage = errors.New("slot holds no image")
	// ErrUnarmed: the slot is on trial all the same; the next boot arms it.
	ErrUnarmed = errors.New("on trial, and not armed yet")
	// ErrUsage: what was asked for makes no sense, such as an unknown slot.
	ErrUsage = errors.New("wrong usage")
)

// Boot is what the boot report says about this boot.
type Boot struct {
	Running  string // slot whose root runs
	Loaded   string // slot whose kernel runs; "" when unknown
	Trial    bool   // it began on trial
	Degraded bool   // the state could not be opened
	// EtcInMemory: on trial, slot or layers, and what is changed in /etc is in memory.
	EtcInMemory bool
	Kexec       bool // the kernel before has started this one
}

// Machine is what the changes act on.
type Machine struct {
	Store slots.Store
	// Loader is nil when no boot loader took part in this boot: then there is
	// no default to set and no one-shot to arm.
	Loader BootLoader
	Log    slots.Log
	// Unarmed: the one-shot is out of reach, as in the firmware of another
	// machine. The first boot arms it.
	Unarmed bool
	// Failures are the last failures of the slots, from the boot log.
	Failures map[string]slots.Failure
	// Refill is how many tries a commit gives, with boot.recount; 0 without.
	Refill int
	// Tries is how often a slot is tried where the call names no number.
	Tries int
	// HoldsImage is ErrNoImage when the slot cannot be started, and says why.
	HoldsImage func(slot string) error
	// BeforeChange is called when nothing refuses a change any more, before the first
	// write: with its error nothing is changed. May be nil.
	BeforeChange func() error
}

// BeginChange calls BeforeChange.
func (m Machine) BeginChange() error {
	if m.BeforeChange == nil {
		return nil
	}
	return m.BeforeChange()
}

// Commit keeps the running slot; was says that it was committed before. What is
// right already is not written again, so committing twice is harmless, and a
// commit that was cut short is completed by the next one. A slot on trial that
// the running one only stands in for keeps its tries and its one-shot.
func (m Machine) Commit(b Boot) (was bool, err error) {
	list, err := m.Store.Load()
	if err != nil {
		return false, fmt.Errorf("cannot read the slots: %w", err)
	}
	running, ok := slots.Find(list, b.Running)
	switch {
	case b.Running == "":
		return false, fmt.Errorf("cannot commit: the boot report does not say which slot runs: %w", ErrRefused)
	case !ok:
		return false, fmt.Errorf("cannot commit slot %s: the boot disk has no such slot: %w", b.Running, ErrRefused)
	case b.Trial && running.State() == slots.Unbootable:
		// the time limit or a check came first; the restart is on its way
		return false, fmt.Errorf("cannot commit slot %s: it was marked bad in this boot: %w", b.Running, ErrRefused)
	case b.Trial && b.Kexec && !running.Successful:
		return false, fmt.Errorf("cannot commit slot %s: kexec started this trial of it, past firmware, boot loader and TPM; restart the machine, and commit then: %w", b.Running, ErrRefused)
	case b.Degraded:
		return false, fmt.Errorf("cannot commit slot %s: this boot is degraded, its state was not opened (see sealroot status): %w", b.Running, ErrRefused)
	case b.EtcInMemory:
		return false, fmt.Errorf("cannot commit slot %s: /etc of this boot is in memory, what is changed there is lost at the restart (see sealroot status); restart, and commit then: %w", b.Running, ErrRefused)
	}
	if err := m.BeginChange(); err != nil {
		return false, err
	}
	c := slots.Commitment{Running: b.Running, Loaded: b.Loaded, Refill: m.Refill, Failures: m.Failures}
	if m.Loader == nil || m.Unarmed && b.Loaded != b.Running {
		// nobody can be asked for the slot's own kernel
		return running.Successful, slots.CommitNow(c, m.Store, nil, m.Log)
	}
	return running.Successful, slots.CommitNow(c, m.Store, m.Loader, m.Log)
}

// PlanTry decides how a slot is put on trial with a number of boots. hint says
// whether a loader with a one-shot started this machine; without one the slot
// is tried on the kernel that is started anyway. Errors: ErrUsage, ErrRefused.
func PlanTry(list []slots.Slot, b Boot, slot string, tries int, hint bool) (slots.Decision, error) {
	if _, ok := slots.Find(list, slot); !ok {
		return slots.Decision{}, fmt.Errorf("cannot try slot %q: there is no such slot: %w", slot, ErrUsage)
	}
	if slot == b.Running {
		return slots.Decision{}, fmt.Errorf("cannot try slot %s: it runs now (sealroot commit keeps it): %w", slot, ErrRefused)
	}
	after, err := slots.FinishUpdate(list, slot, tries)
	switch {
	case errors.Is(err, slots.ErrTries):
		return slots.Decision{}, fmt.Errorf("%w: %w", err, ErrUsage)
	case errors.Is(err, slots.ErrLastGood):
		return slots.Decision{}, fmt.Errorf("%w; commit the running slot first: %w", err, ErrRefused)
	case err != nil:
		return slots.Decision{}, err
	}
	d := slots.Decision{Slot: slot, Why: slots.BecauseTrial, Slots: after}
	if hint {
		d.Rearm = slot
		d.Log.SetArmed, d.Log.Armed = true, slot
	}
	return d, nil
}

// Try puts a slot on trial. What the log says of the slot's past is forgotten
// first: cut here, only a reason is lost. Then slots.Apply writes the store,
// the one-shot and the record in its order. ErrUnarmed: the slots are saved, one
// of the others was not.
func (m Machine) Try(b Boot, slot string, tries int) error {
	list, err := m.Store.Load()
	if err != nil {
		return fmt.Errorf("cannot read the slots: %w", err)
	}
	d, err := PlanTry(list, b, slot, tries, m.Loader != nil && !m.Unarmed)
	if err != nil {
		return err
	}
	if err := m.HoldsImage(slot); err != nil {
		return fmt.Errorf("cannot try slot %s: %w", slot, err)
	}
	if err := m.BeginChange(); err != nil {
		return err
	}
	if err := slots.Note(m.Log, slots.LogChange{Forget: []string{slot}}); err != nil {
		return err
	}
	err = slots.Apply(d, m.Store, m.Loader, m.Log)
	if err != nil && !errors.Is(err, slots.ErrStore) {
		return fmt.Errorf("slot %s is %w; the next boot arms it: %w", slot, ErrUnarmed, err)
	}
	return err
}
