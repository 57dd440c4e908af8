package bootset

import (
	"errors"
	"fmt"
	"slices"

	"sealroot/slots"
)

// Leave is a slot that is not to be booted any more, and why.
type Leave struct {
	Slot   string
	Reason slots.Reason
	Detail string // one line for a person
	// Force also leaves a slot when no other one could be booted.
	Force bool
}

// Failure is why, as it is told and kept.
func (l Leave) Failure() slots.Failure {
	return slots.Failure{Slot: l.Slot, Class: slots.ImageFailure, Reason: l.Reason, Detail: l.Detail}
}

// Left is what came of it.
type Left struct {
	Slots []slots.Slot // as they are now
	Next  string       // slot that the next boot is for
}

// PlanMarkBad decides how a slot is marked bad: one on trial becomes unbootable,
// a committed one goes last and keeps that it was good. Errors: ErrUsage for an
// unknown slot; ErrRefused when no other slot could be booted instead, unless
// forced.
func PlanMarkBad(list []slots.Slot, l Leave) ([]slots.Slot, error) {
	if _, ok := slots.Find(list, l.Slot); !ok {
		return nil, fmt.Errorf("cannot mark slot %q bad: there is no such slot: %w", l.Slot, ErrUsage)
	}
	if !l.Force && !Other(list, l.Slot) {
		return nil, fmt.Errorf("cannot mark slot %s bad: no other slot could be booted instead (--force does it all the same): %w", l.Slot, ErrRefused)
	}
	return slots.MarkBad(list, l.Slot, slots.ImageFailure)
}

// Other says whether a slot beside the one named could be booted by the
// ordinary rule.
func Other(list []slots.Slot, slot string) bool {
	return slices.ContainsFunc(list, func(s slots.Slot) bool { return s.Name != slot && s.Bootable() })
}

// MarkBad marks a slot bad. Errors as of PlanMarkBad, and of the writes.
func (m Machine) MarkBad(b Boot, l Leave) (Left, error) {
	return m.leave(b, l, func(list []slots.Slot) ([]slots.Slot, error) { return PlanMarkBad(list, l) })
}

// Rollback leaves a slot for another committed one. ErrRefused when there is
// none.
func (m Machine) Rollback(b Boot, l Leave) (Left, error) {
	return m.leave(b, l, func(list []slots.Slot) ([]slots.Slot, error) {
		after, err := slots.Rollback(list, l.Slot)
		if errors.Is(err, slots.ErrNoOther) {
			err = fmt.Errorf("%w; another one has to prove good first: sealroot install writes an image into it, sealroot try boots what it holds: %w", err, ErrRefused)
		} else if errors.Is(err, slots.ErrUnknownSlot) {
			err = fmt.Errorf("%w: %w", err, ErrUsage)
		}
		return after, err
	})
}

// leave makes it durable. The order, for power cuts in between:
//
//	log:     the reason goes first, so that no slot is left without one, and
//	         with it the record that the one-shot is armed for the slot. Cut
//	         here, the slot is as it was, with a failure on record that its next
//	         commit forgets; should its kernel die now, one boot is not counted.
//	slots:   now the slot is left.
//	default: if it named the slot, see replaceDefault. Until then the loader
//	         loads the old slot's kernel, whose PID 1 decides by the slots.
//	hint:    a one-shot for the slot goes last: it only loads a kernel.
//
// Nothing is written that is so already. A failed write before the slots are
// saved does not keep them from being saved.
func (m Machine) leave(b Boot, l Leave, plan func([]slots.Slot) ([]slots.Slot, error)) (Left, error) {
	before, err := m.Store.Load()
	if err != nil {
		return Left{}, fmt.Errorf("cannot read the slots: %w", err)
	}
	after, err := plan(before)
	if err != nil {
		return Left{}, err
	}
	if err := m.BeginChange(); err != nil {
		return Left{}, err
	}
	var errs []error
	if err := slots.Note(m.Log, slots.LogChange{Clear: []string{l.Slot}, Failures: []slots.Failure{l.Failure()}}); err != nil {
		errs = append(errs, err)
	}
	// crash point: a reason on record, the slot as it was
	if !slices.Equal(before, after) {
		if err := slots.Save(m.Store, after); err != nil {
			return Left{}, errors.Join(append(errs, err)...)
		}
	}
	// crash point: left, and still what the loader starts
	if m.Loader != nil {
		if err := m.disarm(b, l.Slot, after); err != nil {
			errs = append(errs, err)
		}
	}
	left := Left{Slots: after}
	if d, err := slots.Decide(slots.Observed{Slots: after, LogReadable: true, Refill: m.Refill}); err == nil {
		left.Next = d.Slot
	}
	return left, errors.Join(errs...)
}

// disarm takes the slot's one-shot and its place as the loader's default.
func (m Machine) disarm(b Boot, slot string, after []slots.Slot) error {
	armed, err := m.Loader.Get()
	var errs []error
	if named, _ := m.StartsByDefault(slot); named {
		// crash point: the one-shot still loads the slot's kernel once
		errs = append(errs, m.replaceDefault(b, slot, armed, after))
		armed, err = m.Loader.Get()
	}
	if err == nil && armed == slot {
		err = m.Loader.Clear()
	}
	return errors.Join(append(errs, slots.Because(slots.ErrHint, err))...)
}

// replaceDefault finds a kernel for the loader to start instead of the slot's.
// It must be one that is known to start: the running one, when it belongs to the
// slot that is first now. Otherwise that slot's own kernel is asked for once; the
// boot in which it arrives makes it the default, and if it dies the kernel of the
// slot that was left comes and runs what its modules fit. On a disk of another
// machine no kernel runs, and all that is known is which one has died.
func (m Machine) replaceDefault(b Boot, slot, armed string, after []slots.Slot) error {
	first, ok := slots.Default(after)
	if !ok || first.Name == slot {
		return nil
	}
	dead := m.Failures[first.Name].Reason == slots.KernelNeverReached
	switch {
	case b.Loaded == first.Name, b.Running == "" && !dead:
		return slots.Because(slots.ErrDefault, m.Loader.SetDefault(first.Name))
	case dead, m.Unarmed, armed != "" && armed != slot && armed != first.Name:
		return nil // the last: a trial waits for the one-shot
	}
	if armed != first.Name {
		if err := m.Loader.Arm(first.Name); err != nil {
			return slots.Because(slots.ErrHint, err)
		}
	}
	// crash point: armed without a record; that the kernel does not come is not
	// remembered then
	return slots.Note(m.Log, slots.LogChange{SetArmed: true, Armed: first.Name})
}

// StartsByDefault says whether the loader starts the slot without a one-shot. One
// that cannot say it may: then true comes with the error.
func (m Machine) StartsByDefault(slot string) (bool, error) {
	if m.Loader == nil {
		return false, nil
	}
	named, err := m.Loader.IsDefault(slot)
	return named || err != nil, err
}
