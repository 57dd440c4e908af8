package boot

import (
	"context"
	"errors"
	"fmt"

	"sealroot/init/report"
	"sealroot/slots"
	"sealroot/slots/live"
)

// slotState is what this boot knows of the slots.
type slotState struct {
	store    slots.Store
	hint     slots.Hint // nil: the kernel was loaded by nobody who takes hints
	log      slots.Log
	observed slots.Observed
}

// chooseSlot decides which slot to boot now and makes the decision durable
// before the slot is touched. foreign means that the running kernel belongs to
// another slot. It is asked again after each slot that failed.
func (b *boot) chooseSlot(ctx context.Context) (slot string, foreign bool, err error) {
	s := &b.slots
	if s.store == nil {
		if err := b.observe(ctx); err != nil {
			return "", false, err
		}
	}
	d, err := slots.Decide(s.observed)
	if err != nil {
		return "", false, fmt.Errorf("cannot choose a slot on %s: %w", b.disk.Block.Node, err)
	}
	for _, line := range d.Lines {
		b.sys.Log.Info("%s", line)
	}
	before, _ := slots.Find(s.observed.Slots, d.Slot)
	written := b.apply(d)
	if errors.Is(written, slots.ErrStore) && d.Why == slots.BecauseTrial {
		// A try that is not on stable storage would be tried for ever.
		s.observed.Tried = append(s.observed.Tried, d.Slot)
		b.failed("slots", d.Slot, environmentError(slots.IOError, "%w", written))
		return b.chooseSlot(ctx)
	}
	if written != nil {
		b.warn("%v", written)
	}
	if d.Pause > 0 {
		b.sys.Log.Warn("waiting %s", d.Pause)
		b.sys.Power.Sleep(d.Pause)
	}
	if d.Reboot && (written == nil || d.Why == slots.BecauseLastResort) {
		return "", false, errReboot
	}
	b.noteSlot(d, before)
	return d.Slot, d.NeedOwnKernel, nil
}

// observe reads what the decision depends on. The one-shot and the log are
// looked at only where they can matter: a boot of a committed slot with no trial
// pending does not touch the ESP.
func (b *boot) observe(ctx context.Context) error {
	s := &b.slots
	s.store = b.disk.Store()
	list, err := s.store.Load()
	if err != nil {
		return environmentError(slots.IOError, "cannot read the slots of %s: %w", b.disk.Block.Node, err)
	}
	s.observed = slots.Observed{Slots: list, Loaded: b.cmd.Slot, LogReadable: true}
	b.readLog()
	s.hint = b.bootHint()
	s.observed.Hint.Supported = s.hint != nil
	if s.hint == nil || !trialPending(list) && s.observed.Armed == "" {
		return nil
	}
	b.loadHints(ctx)
	armed, err := s.hint.Get()
	if err != nil {
		b.warn("cannot read the boot loader's one-shot: %v", err)
		return nil
	}
	s.observed.Hint.Known, s.observed.Hint.Slot = true, armed
	return nil
}

func trialPending(list []slots.Slot) bool {
	for _, s := range list {
		if s.State() == slots.Trial || s.State() == slots.Spent {
			return true
		}
	}
	return false
}

func (b *boot) readLog() {
	s := &b.slots
	l := live.BootLog{Disk: b.disk, BootID: b.report.BootID}
	s.log = l
	known, err := l.Load()
	if err != nil {
		s.observed.LogReadable = false
		b.warn("cannot read the boot log: %v", err)
		return
	}
	s.observed.Armed, s.observed.Failures, s.observed.Pauses = known.Armed, known.SlotFailures(), known.Pauses
}

// apply writes a decision and keeps what was observed in step with it.
func (b *boot) apply(d slots.Decision) error {
	s := &b.slots
	err := slots.Apply(d, s.store, s.hint, s.log)
	if errors.Is(err, slots.ErrStore) {
		return err // nothing else was tried
	}
	if d.Slots != nil {
		s.observed.Slots = d.Slots
	}
	hintOK := !errors.Is(err, slots.ErrHint)
	if d.Log.SetArmed && hintOK && !errors.Is(err, slots.ErrLog) {
		s.observed.Armed = d.Log.Armed
	}
	if d.Log.SetPauses {
		s.observed.Pauses = d.Log.Pauses
	}
	if hintOK && d.Rearm != "" {
		s.observed.Hint.Slot = d.Rearm
	} else if hintOK && d.ClearArmed {
		s.observed.Hint.Slot = ""
	}
	return err
}

// noteSlot puts the decision into the report.
func (b *boot) noteSlot(d slots.Decision, before slots.Slot) {
	after := before
	if s, ok := slots.Find(b.slots.observed.Slots, d.Slot); ok {
		after = s
	}
	b.report.Slot = report.Slot{
		Name: d.Slot, Loaded: b.cmd.Slot, Reason: string(d.Why), Trial: d.Why == slots.BecauseTrial,
		Priority: after.Priority, Successful: after.Successful,
		TriesBefore: before.Tries, TriesAfter: after.Tries,
	}
	if f := d.FellBack; f != nil {
		b.report.FellBack = &report.Fallback{From: f.Slot, Reason: f.Reason.Text(), Class: string(f.Class)}
		if f.Detail != "" {
			b.report.FellBack.Reason += ": " + f.Detail
		}
	}
}

// giveUp records that a slot failed before hand-over, by the class of its
// failure, so that the next decision takes another one.
func (b *boot) giveUp(ctx context.Context, f slots.Failure) error {
	s := &b.slots
	s.observed.Tried = append(s.observed.Tried, f.Slot)
	if s.observed.Failures == nil {
		s.observed.Failures = map[string]slots.Failure{}
	}
	s.observed.Failures[f.Slot] = f
	d := slots.Decision{Log: slots.LogChange{Failures: []slots.Failure{f}}}
	if f.Class == slots.ImageFailure {
		list, err := slots.MarkBad(s.observed.Slots, f.Slot, f.Class)
		if err != nil {
			return err
		}
		d.Slots = list
		b.sys.Log.Error("slot %s is marked bad", f.Slot)
	}
	if err := b.apply(d); err != nil {
		b.warn("%v", err)
	}
	return nil
}

// rebootInto restarts into a slot that needs its own kernel; where that was
// tried before, the slot is given up for this boot.
func (b *boot) rebootInto(ctx context.Context, slot string) error {
	d, ok := slots.OwnKernel(b.slots.observed, slot)
	if !ok {
		return b.giveUp(ctx, slots.Failure{
			Slot: slot, Class: slots.EnvironmentFailure, Reason: slots.WrongKernel, Detail: "the boot loader did not load its kernel",
		})
	}
	for _, line := range d.Lines {
		b.sys.Log.Info("%s", line)
	}
	if err := b.apply(d); err != nil {
		return fmt.Errorf("cannot restart into slot %s: %w", slot, err)
	}
	return errReboot
}
