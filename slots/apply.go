package slots

import (
	"errors"
	"fmt"
)

var (
	// ErrStore: the slots could not be saved. A slot on trial must not be booted.
	ErrStore = errors.New("slot store not written")
	// ErrHint: the loader's one-shot could not be written. Do not reboot for it.
	ErrHint = errors.New("boot loader's one-shot not written")
	// ErrLog: the boot log could not be written. Do not reboot for it.
	ErrLog = errors.New("boot log not written")
	// ErrDefault: the loader's default could not be set. Everything else is done.
	ErrDefault = errors.New("boot loader's default not written")
)

// Apply makes a decision durable: slots, then the loader's default, then the
// one-shot, then the log.
// The order matters when power is cut in between:
//
//	after the slots:    the try is spent, the one-shot is not armed. The next
//	                    boot is the committed slot's; if the record says armed
//	                    it counts one more try, never one less.
//	after the default:  it is the slot that runs, by its own kernel.
//	after the one-shot: the loader starts the trial. If it arrives, nothing is
//	                    lost; if its kernel dies, the next boot finds no record,
//	                    arms once more and records it: one boot uncounted.
//	                    (Recorded first, the cut would cost an innocent try.)
//
// A failed save of the slots stops the rest (ErrStore). A failed one-shot
// (ErrHint) is not recorded as armed; where the log cannot record that it is
// armed (ErrLog), it is cleared: a dead kernel would else be loaded at every
// boot and never counted. A default that cannot be set (ErrDefault) changes
// nothing else: the slot has arrived all the same. With any error the caller
// boots on instead of rebooting. loader and log may be nil when there is none.
func Apply(d Decision, store Store, loader Loader, log Log) error {
	if d.Slots != nil {
		if err := Save(store, d.Slots); err != nil {
			return err
		}
	}
	change := d.Log
	var defaultErr error
	if loader != nil && d.SetDefault != "" {
		defaultErr = ofSlot(ErrDefault, d.SetDefault, loader.SetDefault(d.SetDefault))
	}
	hintErr := applyHint(d, loader)
	if hintErr != nil {
		change.SetArmed, change.Armed = false, ""
	}
	if change.Empty() {
		return errors.Join(defaultErr, hintErr)
	}
	logErr := Note(log, change)
	if logErr != nil && change.SetArmed && d.Rearm != "" {
		logErr = disarm(loader, logErr)
	}
	return errors.Join(defaultErr, hintErr, logErr)
}

// disarm takes a one-shot back that cannot be recorded; cause says why not.
func disarm(loader Loader, cause error) error {
	if err := loader.Clear(); err != nil {
		return fmt.Errorf("%w; and the one-shot stays: %w", cause, err)
	}
	return cause
}

// Save saves slots. Any error is ErrStore, and the store says what it was about.
func Save(s Store, list []Slot) error { return Because(ErrStore, s.Save(list)) }

// Note makes a change of the boot log durable; without a log (nil) there is nothing to
// do. Any error is ErrLog, and the log says what it was about.
func Note(l Log, c LogChange) error {
	if l == nil {
		return nil
	}
	return Because(ErrLog, l.Record(c))
}

// Because adds to a sentinel why; nil stays nil.
func Because(sentinel, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", sentinel, err)
}

// ofSlot is Because for a loader, which does not say for which slot it was.
func ofSlot(sentinel error, slot string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: slot %s: %w", sentinel, slot, err)
}

func applyHint(d Decision, loader Loader) error {
	if loader == nil {
		if d.Rearm != "" {
			return fmt.Errorf("%w: slot %s: no boot loader takes it", ErrHint, d.Rearm)
		}
		return nil
	}
	if d.Rearm != "" {
		return ofSlot(ErrHint, d.Rearm, loader.Arm(d.Rearm))
	}
	if d.ClearArmed {
		return Because(ErrHint, loader.Clear())
	}
	return nil
}
