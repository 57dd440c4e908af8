package boot

import (
	"context"
	"errors"
	"fmt"

	"sealroot/slots"
)

// errInternal is a panic of this program.
var errInternal = errors.New("internal error")

// guarded runs f and returns a panic of it as an error. Whatever it was that
// brought this program down, a program that refuses it would have gone on: so the
// panic is a fault of the image whose initramfs runs, and counts against it, for
// another slot may have a better one. As the environment's it would be met again
// at every boot.
func guarded(ctx context.Context, f func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &stageError{slots.ImageFailure, slots.InternalError, fmt.Errorf("%w: %v", errInternal, p)}
		}
	}()
	return f(ctx)
}

// ownSlot is the slot whose initramfs runs, as far as that is known, else the one
// that was chosen; "" before there is a disk. A panic may come before the slots
// were looked at.
func (b *boot) ownSlot(ctx context.Context) string {
	if b.slots.store == nil && b.disk != nil {
		if err := guarded(ctx, b.observe); err != nil {
			b.warn("%v", err)
		}
	}
	if own, ok := slots.Find(b.slots.observed.Slots, b.slots.observed.Loaded); ok {
		return own.Name
	}
	return b.report.Slot.Name
}
