package slots

import (
	"errors"
	"fmt"
	"slices"
)

var (
	// ErrStore: the slots could not be saved. A slot on trial must not be booted.
	ErrStore = errors.New("slot store not written")
	// ErrHint: the loader's one-shot could not be written. Do not reboot for it.
	ErrHint = errors.New("boot loader's one-shot not written")
	// ErrLog: the boot log could not be written. Do not reboot for it.
	ErrLog = errors.New("boot log not written")
)

// Apply makes a decision durable: slots, then the one-shot, then the log.
// The order matters when power is cut in between:
//
//	after the slots:    the try is spent, the one-shot is not armed. The next
//	                    boot is the committed slot's; if the record says armed
//	                    it counts one more try, never one less.
//	after the one-shot: the loader starts the trial. If it arrives, nothing is
//	                    lost; if its kernel dies, the next boot finds no record,
//	                    arms once more and records it: one boot uncounted.
//	                    (Recorded first, the cut would cost an innocent try.)
//
// A failed save of the slots stops the rest (ErrStore). A failed one-shot
// (ErrHint) is not recorded as armed; a failed log is ErrLog. With any error
// the caller boots on instead of rebooting. hint and log may be nil when there
// is none.
func Apply(d Decision, store Store, hint Hint, log Log) error {
	if d.Slots != nil {
		if err := store.Save(d.Slots); err != nil {
			return fmt.Errorf("cannot save the slots: %w", errors.Join(ErrStore, err))
		}
	}
	change := d.Log
	hintErr := applyHint(d, hint)
	if hintErr != nil {
		change.SetArmed, change.Armed = false, ""
	}
	var logErr error
	if log != nil && !change.Empty() {
		if err := log.Record(change); err != nil {
			logErr = fmt.Errorf("cannot write the boot log: %w", errors.Join(ErrLog, err))
		}
	}
	return errors.Join(hintErr, logErr)
}

func applyHint(d Decision, hint Hint) error {
	if hint == nil {
		if d.Rearm != "" {
			return fmt.Errorf("cannot arm slot %s: %w", d.Rearm, ErrHint)
		}
		return nil
	}
	if d.Rearm != "" {
		if err := hint.Arm(d.Rearm); err != nil {
			return fmt.Errorf("cannot arm slot %s: %w", d.Rearm, errors.Join(ErrHint, err))
		}
		return nil
	}
	if d.ClearArmed {
		if err := hint.Clear(); err != nil {
			return fmt.Errorf("cannot clear the one-shot: %w", errors.Join(ErrHint, err))
		}
	}
	return nil
}

// CommitNow commits the running slot. loaded is the slot whose kernel runs, ""
// when unknown. The order, for power cuts in between:
//
//	log:     the armed record goes first. Left behind, it would look like a
//	         kernel that never came, once the slot is committed.
//	slots:   now the slot is committed.
//	default: the loader's default becomes the slot, but only when it is its own
//	         kernel that reached PID 1; until then the one-shot loads it.
//	hint:    the one-shot goes last. One for another slot on trial stays.
//
// Nothing is written that is so already. loader and log may be nil. All that
// can be done is done; the errors are joined (ErrStore, ErrHint, ErrLog).
func CommitNow(running, loaded string, store Store, loader Loader, log Log) error {
	before, err := store.Load()
	if err != nil {
		return fmt.Errorf("cannot commit slot %s: %w", running, err)
	}
	after, err := Commit(before, running)
	if err != nil {
		return err
	}
	var errs []error
	if log != nil {
		if err := log.Record(LogChange{Forget: []string{running}, SetPauses: true}); err != nil {
			errs = append(errs, fmt.Errorf("cannot write the boot log: %w", errors.Join(ErrLog, err)))
		}
	}
	if !slices.Equal(before, after) {
		if err := store.Save(after); err != nil {
			// the default must not leave a slot that is still good
			return errors.Join(append(errs, fmt.Errorf("cannot commit slot %s: %w", running, errors.Join(ErrStore, err)))...)
		}
	}
	if loader != nil {
		if err := commitLoader(running, loaded, loader); err != nil {
			errs = append(errs, fmt.Errorf("cannot make slot %s the default: %w", running, errors.Join(ErrHint, err)))
		}
	}
	return errors.Join(errs...)
}

func commitLoader(running, loaded string, loader Loader) error {
	if loaded == "" || loaded == running {
		if err := loader.SetDefault(running); err != nil {
			return err
		}
	}
	armed, err := loader.Get()
	if err != nil || armed != running {
		return err
	}
	return loader.Clear()
}
