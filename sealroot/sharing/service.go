// Package sharing lets the state partition and the encrypted volume on it share their
// space while the machine runs: it measures, asks package balance what to do, does
// it, and keeps what was decided last.
package sharing

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sealroot/state/balance"
)

// Volume is the encrypted volume as the service needs it.
type Volume interface {
	// Measure changes nothing.
	Measure() (balance.Sizes, error)
	// Resize makes the file system in the volume about size bytes large, balloons
	// not counted. What was done of it stays when it fails.
	Resize(ctx context.Context, size int64) error
	// Extend makes it about size bytes large by what is added behind its end, which brings
	// inodes.
	Extend(ctx context.Context, size int64) error
	// Reserve allocates what the file system has beyond what is reserved, or lets nobody
	// write there.
	Reserve(ctx context.Context) error
}

// Service is one that runs.
type Service struct {
	Volume Volume
	Limits balance.Limits
	// Reread returns other limits, once they have changed, and what is wrong with them.
	// It may be nil.
	Reread func() (l balance.Limits, changed bool, problem error)
	// Keep has the last decisions.
	Keep *Decisions
	// Tell tells a person, for the journal.
	Tell func(string)
	Now  func() time.Time
	// Wait returns after next, or where idle is not 0 so long after the first write to
	// either side, for which it waits that long; in any case when another program may
	// be about to resize the volume, and tells so. The error is nil when the context has
	// not ended.
	Wait func(ctx context.Context, next, idle time.Duration) (touched bool, err error)
	// Rest gives back what a time of work took, once that is over.
	Rest func()

	history balance.History
}

// Pass measures, decides and acts once, and returns the decision. An error is of
// measuring or of acting; the next pass tries again, later and later.
func (s *Service) Pass(ctx context.Context) (balance.Decision, error) {
	began := s.Now() // to measure takes time, too, the more the more pieces there are
	sizes, err := s.Volume.Measure()
	if err != nil {
		return balance.Decision{}, err
	}
	d, h := balance.Decide(s.Limits, s.history, sizes, began)
	err = s.act(ctx, d)
	s.history = h.Done(d, err, s.Now())
	if s.Keep.Add(d, err, s.Now()) {
		s.Tell(Sentence(d, err))
	}
	return d, err
}

func (s *Service) act(ctx context.Context, d balance.Decision) error {
	switch d.Action {
	case balance.Grow, balance.Shrink:
		if err := s.Volume.Resize(ctx, d.Size); err != nil {
			return fmt.Errorf("cannot %s the volume: %w", d.Action, err)
		}
	case balance.Extend:
		if err := s.Volume.Extend(ctx, d.Size); err != nil {
			return fmt.Errorf("cannot extend the volume: %w", err)
		}
	case balance.Reserve:
		if err := s.Volume.Reserve(ctx); err != nil {
			return fmt.Errorf("cannot reserve what the volume spans: %w", err)
		}
	}
	return nil
}

const (
	// measureAgain is when to look again after the sizes could not be told.
	measureAgain = 30 * time.Second
	// busyAgain is the same while another program resizes, which may be a gap.
	busyAgain = time.Second
	// restAfter is a wait that is long enough for Service.Rest.
	restAfter = 10 * time.Second
	// follow is for how long it looks each second after another program had the device:
	// resize2fs asks the kernel some time after it has closed the device it wrote to, and
	// then works on for a while.
	follow = 10 * time.Second
)

// Watch passes until the context ends. What fails is told once, until it changes.
func (s *Service) Watch(ctx context.Context) error {
	told, worked := "", true
	var until time.Time
	for {
		s.reread()
		d, err := s.Pass(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if d.Action == "" { // not measured
			d.Next = measureAgain
			if errors.Is(err, balance.ErrNotNow) {
				d.Next = busyAgain
			}
			if err.Error() != told {
				s.Tell(err.Error())
			}
		}
		told = ""
		if err != nil {
			told = err.Error()
		}
		if s.Now().Before(until) {
			d.Next, d.Idle = min(d.Next, time.Second), 0
		}
		if d.Action != balance.None {
			worked = true
		} else if worked && max(d.Next, d.Idle) >= restAfter {
			s.Rest()
			worked = false
		}
		touched, err := s.Wait(ctx, d.Next, d.Idle)
		if errors.Is(err, context.Canceled) {
			return nil
		} else if err != nil {
			return err
		}
		if touched {
			until = s.Now().Add(follow)
		}
	}
}

// reread takes up limits that have changed.
func (s *Service) reread() {
	if s.Reread == nil {
		return
	}
	l, changed, problem := s.Reread()
	if !changed {
		return
	}
	s.Limits = l
	if problem != nil {
		s.Tell(problem.Error() + "; until that is right the service only reserves what the volume spans")
	}
}

// Sentence is a decision and what became of it, for a person.
func Sentence(d balance.Decision, err error) string {
	text := map[balance.Action]string{
		balance.None:    "nothing to do",
		balance.Grow:    "the volume grows to " + balance.Text(d.Size),
		balance.Shrink:  "the volume shrinks to " + balance.Text(d.Size),
		balance.Extend:  "the volume grows behind its end, to " + balance.Text(d.Size),
		balance.Reserve: balance.Text(d.Size) + " of the volume are reserved, or taken out of its use",
	}[d.Action] + ": " + d.Reason
	if err != nil {
		text += "; failed: " + err.Error()
	}
	return text
}
