package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"sealroot/init/report"
	"sealroot/slots"
	"sealroot/slots/bootlog"
)

// Endings of a boot that are decisions, not faults.
var (
	errReboot = errors.New("restart")
	errHalt   = errors.New("halt")
)

// ended records what stopped the boot, so that the next one does not make the
// same mistake and the running system can tell, and decides how long the machine
// waits before that.
func (b *boot) ended(ctx context.Context, stage string, err error) (end error) {
	defer func() {
		// What the boot failed at may be needed here again.
		if p := recover(); p != nil {
			end = &failedBoot{err: fmt.Errorf("%w; and then %w: %v", err, errInternal, p), pause: b.backoff()}
		}
	}()
	if errors.Is(err, errReboot) {
		b.keepReport(stage, err, false)
		return fmt.Errorf("%s: %w", stage, err)
	}
	err = b.blame(err)
	class, _ := classOf(err)
	slot := b.report.Slot.Name
	if errors.Is(err, errInternal) {
		slot = b.ownSlot(ctx)
	}
	if slot != "" && !errors.Is(err, errHalt) {
		failure := b.failed(stage, slot, err)
		if class == slots.ImageFailure {
			if err := b.giveUp(ctx, failure); err != nil {
				b.warn("%v", err)
			}
		}
	}
	if class != slots.ImageFailure || slot != b.report.Slot.Name {
		b.giveBack()
	}
	b.keepReport(stage, err, !errors.Is(err, errHalt))
	if errors.Is(err, errHalt) {
		return fmt.Errorf("%s: %w", stage, err)
	}
	return &failedBoot{err: fmt.Errorf("%s: %w", stage, err), pause: b.backoff()}
}

// failedBoot is a boot that did not reach the real init.
type failedBoot struct {
	err   error
	pause time.Duration
}

func (f *failedBoot) Error() string { return f.err.Error() }
func (f *failedBoot) Unwrap() error { return f.err }

// Pauses after failed boots: the first is long enough to read the reason, and
// they grow for as long as the boot log remembers (a commit forgets them).
const (
	firstPause = 20 * time.Second
	longPause  = 10 * time.Minute
)

// backoff is the pause after this boot: it grows with the failed boots before.
func (b *boot) backoff() time.Duration {
	return min(firstPause<<min(b.slots.observed.Pauses, 5), longPause)
}

// keepReport leaves the report of a boot that never reaches the real init in the
// boot log, and counts it as failed. A restart that belongs to the ordinary
// course, as into a slot on trial, leaves none; one that destroyed the state does.
func (b *boot) keepReport(stage string, cause error, count bool) {
	if len(b.report.Failures) == 0 && b.report.State.ResetBegun == "" && !count {
		return
	}
	// A last resort was counted when it was chosen.
	count = count && b.report.Slot.Reason != string(slots.BecauseLastResort)
	b.report.Ended = clean(fmt.Sprintf("%s: %v", stage, cause))
	b.logReport(count)
}

// logReport leaves the report of this boot in the boot log, in place of one that it
// left there before, and counts it as failed.
func (b *boot) logReport(count bool) {
	if b.slots.log == nil {
		return
	}
	b.report.Stages = b.clock.list
	text, err := b.report.Line()
	if err == nil && len(text) > bootlog.MaxReport {
		text, err = brief(*b.report).Line()
	}
	if err == nil {
		err = b.slots.log.Update(func(r bootlog.Record) (bootlog.Record, error) {
			if count {
				r.Pauses = b.slots.observed.Pauses + 1
			}
			if n := len(r.Reports); n > 0 && b.logged != nil && bytes.Equal(r.Reports[n-1], b.logged) {
				r.Reports = r.Reports[:n-1]
			}
			with, err := r.AddReport(text)
			if err != nil {
				b.sys.Log.Warn("%v", err)
				return r, nil // the count matters more
			}
			b.logged = text
			return with, nil
		})
	}
	if err != nil {
		b.sys.Log.Warn("cannot write the boot log: %v", err)
	}
}

// brief is a report that fits into the boot log whatever was met in a boot with many
// layers: without those that are in use or left out by design, and with the last of the
// others and of the failures.
func brief(r report.Report) *report.Report {
	const most = 20
	r.Layers = slices.DeleteFunc(slices.Clone(r.Layers), func(l report.Layer) bool { return l.LeftOut == "" || l.Absent })
	r.Layers = r.Layers[max(0, len(r.Layers)-most):]
	r.Failures = r.Failures[max(0, len(r.Failures)-most):]
	return &r
}

// failed notes a failure, whether the boot goes on after it or not.
func (b *boot) failed(stage, slot string, err error) slots.Failure {
	class, reason := classOf(err)
	b.sys.Log.Error("%s: %v", stage, err)
	b.report.Failures = append(b.report.Failures, report.Failure{
		Stage: stage, Slot: slot, Class: string(class), Error: err.Error(),
	})
	return slots.Failure{Slot: slot, Class: class, Reason: reason, Detail: clean(err.Error())}
}
