package boot

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"sealroot/init/report"
	"sealroot/slots"
	"sealroot/slots/bootlog"
	"sealroot/slots/efi"
	"sealroot/slots/fixed"
	"sealroot/slots/live"
	"sealroot/state/enrol"
)

// slotState is what this boot knows of the slots.
type slotState struct {
	store    slots.Store
	hint     slots.Loader // nil: the kernel was loaded by nobody who takes hints
	log      bootLog
	observed slots.Observed
	// compare: the kernel came from EFI/BOOT/BOOTX64.EFI, and nobody has looked
	// yet whose copy that is.
	compare bool
	// fellBack is the fallback to tell the running system of; nil: none.
	fellBack *slots.Failure
}

// bootLog is the boot log as PID 1 writes it; live.BootLog is the real one.
type bootLog interface {
	slots.Log
	Update(change func(bootlog.Record) (bootlog.Record, error)) error
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
	b.reachLoader(ctx, d)
	written := b.apply(d)
	if errors.Is(written, slots.ErrStore) && d.Spends != "" {
		// A try that is not on stable storage would be tried for ever; from the
		// next boot on the record keeps even the restart into its kernel away.
		f := b.failed("slots", d.Spends, environmentError(slots.NotSaved, "%w", written))
		if err := b.giveUp(ctx, f); err != nil {
			return "", false, err
		}
		return b.chooseSlot(ctx)
	}
	if written != nil {
		b.warn("%v", written)
	}
	if written != nil && d.Reboot && d.Why == slots.BecauseCommitted {
		s.observed.Hint.Known = false
		return b.chooseSlot(ctx)
	}
	if d.Pause > 0 {
		b.sys.Log.Warn("waiting %s", d.Pause)
		b.wait(d.Pause)
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
	loaded, err := efi.LoadedSlot(b.efiVars(), b.cmd.Slot)
	if err != nil {
		b.warn("cannot find out whose kernel runs: %v", err)
	}
	if b.fw.Kexec && b.cmd.Slot == "" {
		loaded = efi.Loaded{From: enrol.Kexec.Describe()} // the variables tell of the kernel before
	}
	kept, err := b.keepers(ctx, loaded)
	if err != nil {
		return environmentError(slots.IOError, "%w", err)
	}
	list, err := kept.Store.Load()
	if err != nil {
		return environmentError(slots.IOError, "cannot read the slots of %s: %w", b.disk.Block.Node, err)
	}
	s.store, s.hint = kept.Store, kept.Loader
	s.observed = slots.Observed{Slots: list, LogReadable: true}
	if !b.discoverable() { // there no kernel is a slot's own
		s.observed.Loaded, s.compare = whoLoaded(loaded)
	}
	if _, ok := slots.Find(list, s.observed.Loaded); !ok && s.observed.Loaded != "" {
		s.observed.Loaded = slots.UnknownKernel
	}
	s.observed.Refill = b.refill()
	b.readLog()
	s.observed.Hint.Supported = s.hint != nil
	if !trialPending(list) && s.observed.Armed == "" {
		return nil
	}
	b.compareFallback(ctx)
	s.observed.Arrived = s.observed.Armed != "" && s.observed.Armed == s.observed.Loaded
	if s.hint == nil {
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
	if !l.Absent() {
		s.log = l
	}
	known, err := l.Load()
	if err != nil {
		s.observed.LogReadable = false
		b.warn("cannot read the boot log: %v", err)
		return
	}
	s.observed.Armed, s.observed.Failures = known.Armed, known.SlotFailures()
	s.observed.Pauses, s.observed.Told = known.Pauses, known.Told
}

// reachLoader loads what the boot loader's settings need, when a decision changes
// them: a boot of a committed slot begins without.
func (b *boot) reachLoader(ctx context.Context, d slots.Decision) {
	if b.slots.hint != nil && (d.Rearm != "" || d.ClearArmed || d.SetDefault != "") {
		b.loadHints(ctx)
	}
}

// apply writes a decision and keeps what was observed in step with it.
func (b *boot) apply(d slots.Decision) error {
	s := &b.slots
	err := slots.Apply(d, s.store, s.hint, s.log)
	if errors.Is(err, fixed.ErrFixed) {
		// a store that counts nothing is no reason for a word
		d.Slots, d.Took = nil, ""
		err = slots.Apply(d, s.store, s.hint, s.log)
	}
	if errors.Is(err, slots.ErrStore) {
		return err // nothing else was tried
	}
	if d.Slots != nil {
		s.observed.Slots = d.Slots
	}
	if d.Slot != "" {
		s.observed.LastResort = d.Why == slots.BecauseLastResort
	}
	if d.Took != "" {
		s.observed.Took = append(s.observed.Took, d.Took)
	}
	hintOK, logOK := !errors.Is(err, slots.ErrHint), !errors.Is(err, slots.ErrLog)
	if d.Log.SetArmed && hintOK && logOK {
		s.observed.Armed = d.Log.Armed
	}
	if d.Log.SetPauses {
		s.observed.Pauses = d.Log.Pauses
	}
	if hintOK && d.Rearm != "" {
		s.observed.Hint.Slot = d.Rearm
		if d.Log.SetArmed && !logOK {
			s.observed.Hint.Slot = "" // taken back: see slots.Apply
		}
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
		Name: d.Slot, Loaded: b.slots.observed.Loaded, Reason: string(d.Why), Trial: d.Spends == d.Slot,
		Priority: after.Priority, Successful: after.Successful,
		TriesBefore: before.Tries, TriesAfter: after.Tries,
	}
	b.report.Disagreement = nil
	if a := d.Disagreement; a != nil {
		b.report.Disagreement = &report.Disagreement{Loaded: a.Loaded, Wanted: a.Wanted, Why: a.Why}
		b.sys.Log.Warn("the boot loader loaded the kernel of slot %s, the slots say %s: %s", a.Loaded, a.Wanted, a.Why)
	}
	b.report.FellBack, b.slots.fellBack = nil, d.FellBack
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
	list, err := slots.MarkBad(s.observed.Slots, f.Slot, f.Class)
	if err != nil {
		return err
	}
	d := slots.Decision{}
	if f.Class == slots.ImageFailure {
		if f.Reason != slots.KernelNeverReached {
			f.Above = slots.Standing(s.observed.Slots, f.Slot)
		}
		d.Slots = list
		if _, ok := s.store.(fixed.Store); ok {
			b.sys.Log.Error("slot %s is given up for this boot: boot.store fixed keeps no mark", f.Slot)
		} else {
			b.sys.Log.Error("slot %s is marked bad", f.Slot)
		}
	} else if d.Slots, err = s.returned(f.Slot); err != nil {
		return err
	}
	d.Log.Failures = []slots.Failure{f}
	if err := b.apply(d); err != nil {
		b.warn("%v", err)
	}
	return nil
}

// returned is the slots with the try that this boot took of a committed slot
// given back; nil when it took none.
func (s *slotState) returned(slot string) ([]slots.Slot, error) {
	i := slices.Index(s.observed.Took, slot)
	if i < 0 {
		return nil, nil
	}
	s.observed.Took = slices.Delete(s.observed.Took, i, i+1)
	return slots.GiveBack(s.observed.Slots, slot)
}

// giveBack returns the try of the slot that runs, before something that is no
// fault of its image may end the boot. What it returns takes the try again.
func (b *boot) giveBack() (again func()) {
	slot := b.report.Slot.Name
	list, err := b.slots.returned(slot)
	if err == nil && list == nil {
		return func() {}
	}
	if err == nil {
		err = b.apply(slots.Decision{Slots: list})
	}
	if err != nil {
		b.warn("%v", err)
		return func() {}
	}
	return func() {
		list, err := slots.Recount(b.slots.observed.Slots, slot)
		if err == nil {
			err = b.apply(slots.Decision{Slots: list, Took: slot})
		}
		if err != nil {
			b.warn("%v", err)
		}
	}
}

// rebootInto restarts into a slot that needs its own kernel. Where that was tried
// before, or cannot be asked for, the slot is given up for this boot: another
// one may run.
func (b *boot) rebootInto(ctx context.Context, slot string) error {
	d, failure, ok := slots.OwnKernel(b.slots.observed, slot)
	if !ok {
		return b.giveUp(ctx, failure)
	}
	for _, line := range d.Lines {
		b.sys.Log.Info("%s", line)
	}
	b.reachLoader(ctx, d)
	err := b.apply(d)
	if d.Slots != nil && !errors.Is(err, slots.ErrStore) {
		// its try is given back already
		b.slots.observed.Took = slices.DeleteFunc(b.slots.observed.Took, func(s string) bool { return s == slot })
	}
	if err == nil {
		return errReboot
	}
	b.warn("cannot restart into slot %s: %v", slot, err)
	return b.giveUp(ctx, slots.Failure{
		Slot: slot, Class: slots.EnvironmentFailure, Reason: slots.WrongKernel, Detail: clean(err.Error()),
	})
}
