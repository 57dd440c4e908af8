package uevent

import (
	"context"
	"errors"
	"fmt"
)

// ErrTimeout means that something did not appear in time.
var ErrTimeout = errors.New("did not appear in time")

// Source gives events. A Listener is one.
type Source interface {
	// Next waits for events and returns all that are there. An empty list
	// without an error means that events were lost: look again at everything.
	Next(ctx context.Context) ([]Event, error)
}

// WaitFor calls check until it says true: at once, without any event, because a
// built-in driver's event is long gone, and then after each batch of events,
// with that batch (empty when events were lost). The source must have been
// listening before WaitFor is called, or an event between the first check and
// the first wait would be missed. When ctx ends, the error is ErrTimeout and
// names what was waited for. An error of check ends the wait.
func WaitFor(ctx context.Context, what string, src Source, check func([]Event) (bool, error)) error {
	var events []Event
	for {
		found, err := check(events)
		if err != nil {
			return fmt.Errorf("cannot look for %s: %w", what, err)
		}
		if found {
			return nil
		}
		if events, err = src.Next(ctx); err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("%s %w: %w", what, ErrTimeout, context.Cause(ctx))
			}
			return fmt.Errorf("cannot wait for %s: %w", what, err)
		}
	}
}
