package resize

import (
	"context"

	"sealroot/state/balloon"
)

// inner is the file system in the volume. Positions and sizes are bytes of its
// device; what is reserved for them is the caller's business.
type inner interface {
	// name is the type as mount(8) knows it.
	name() string
	// shrinks: it gives back by getting smaller, and nothing before its end.
	shrinks() bool
	// usage tells what can still be written and what is used, balloons too.
	usage() (free, used int64, err error)
	// inodes are how many files it has room for.
	inodes() (Inodes, error)
	// spanned is its size by the superblock. With durable it is the one on stable
	// storage, read past every cache after the file system was synced, or a larger
	// one that the kernel has in memory.
	spanned(durable bool) (int64, error)
	// givenBack are the ranges that it has given back without getting smaller.
	givenBack() ([]balloon.Range, error)
	// slack is how many bytes have to be free in it after it has given back, where used
	// bytes are used beside what was given back.
	slack(used int64) int64
	// least is about the size in bytes below which give makes none smaller.
	least() (int64, error)
	// give takes about n bytes out of its use, never more, in steps. For each step
	// release is called, once no power cut can bring what is in its ranges back into
	// use, and says how much it has released; for those that lie beyond its end its size
	// on stable storage says so already. What was done stays done when a later step fails.
	give(ctx context.Context, n int64, release func([]balloon.Range) (int64, error)) error
	// take brings at most n bytes of what was given back into use again, and says
	// how many; before each step reserve is called with its ranges, and says how many
	// bytes of them were not reserved.
	take(ctx context.Context, n int64, reserve func([]balloon.Range) (int64, error)) (int64, error)
	// grow spans size bytes, all of which are reserved. Neither take nor grow waits until what
	// it did is on stable storage: until then too much is reserved.
	grow(size int64) error
	// hold takes what is free in these ranges, all that are not reserved, out of its use, as
	// far as it can: there is no room to reserve them.
	hold(ctx context.Context, holes []balloon.Range) error
	// calm keeps the kernel from writing what nobody has asked for.
	calm() error
	// freezes tells whether a freeze would not have to wait for a program that writes in one
	// call for hours: all who write would wait with it.
	freezes() bool
	// tidy brings what it holds and need not into use again, and tells whether it did
	// anything: what a step that was cut short has left, and does not lie in holes, which
	// are all that is not reserved, and all in balloons.
	tidy(holes []balloon.Range) (bool, error)
	// sound is an error where it is known to be damaged.
	sound() error
}
