// Package slots is the state machine of the boot slots. It is pure: it decides
// and computes on values, and its callers do the reading and writing.
//
// A slot is a boot set: kernel, initramfs, root image, hash tree, signature.
// The store (for us the GPT attribute bits) holds priority, tries left and
// successful for each slot. The boot loader's default is always a committed
// slot; the loader only gets a one-shot hint to load the kernel of a slot on
// trial. The boot log remembers for which slot the one-shot was armed, so that
// a kernel that died before PID 1 is noticed by the next boot.
//
// When loader and slots disagree, the slots win and the boot report says both.
// They agree again without a risk: a commit under another slot's kernel arms the
// one-shot for the running slot's own, and only a boot in which that kernel has
// reached PID 1 makes it the loader's default.
package slots

import (
	"errors"
	"fmt"
)

const (
	// MaxPriority is the highest priority that four GPT attribute bits hold.
	MaxPriority = 15
	// MaxTries is the highest number of tries that four GPT attribute bits hold.
	MaxTries = 15
	// DefaultTries is how often a new slot may be booted without a commit.
	DefaultTries = 3
	// UnknownKernel stands for the name of the slot whose kernel runs when it is
	// known to be none of them.
	UnknownKernel = "?"
)

var (
	// ErrNoSlot: there is no slot at all to choose from.
	ErrNoSlot = errors.New("no slot")
	// ErrUnknownSlot: the slot named does not exist.
	ErrUnknownSlot = errors.New("unknown slot")
	// ErrLastGood: the change would make the only committed slot unbootable.
	ErrLastGood = errors.New("the only committed slot")
	// ErrNoOther: there is no other committed slot to go back to.
	ErrNoOther = errors.New("no other committed slot")
	// ErrTries: the number of tries is outside 1..MaxTries.
	ErrTries = errors.New("tries out of range")
	// ErrNotCommitted: only a committed slot can be copied.
	ErrNotCommitted = errors.New("not a committed slot")
)

// Slot is what the store holds for one slot. The meaning of the numbers is
// that of the ChromeOS GPT attribute bits.
type Slot struct {
	Name       string // "a", "b"
	Priority   int    // 0..15; the highest bootable one is booted, 0 never
	Tries      int    // 0..15; boots left before the slot is given up or, committed, goes last
	Successful bool   // committed: booted well once; counted only with boot.recount
}

// State is the class of a slot.
type State int

// The states of a slot.
const (
	Unbootable State = iota // empty, being written, or marked bad
	Spent                   // was on trial, all tries used, never committed
	Trial                   // to be booted with a counted try
	Committed               // booted well; keeps that until its next update
)

// String returns the name of the state.
func (s State) String() string {
	switch s {
	case Spent:
		return "given up"
	case Trial:
		return "on trial"
	case Committed:
		return "committed"
	}
	return "not bootable"
}

// State classifies the slot.
func (s Slot) State() State {
	switch {
	case s.Successful:
		return Committed
	case s.Priority > 0 && s.Tries > 0:
		return Trial
	case s.Priority > 0:
		return Spent
	}
	return Unbootable
}

// Bootable says whether the slot may be chosen by the ordinary rule.
func (s Slot) Bootable() bool { return s.State() >= Trial }

// String describes the slot for a person: "slot b: priority 2, 3 tries left, on trial".
func (s Slot) String() string {
	return fmt.Sprintf("slot %s: priority %d, %s, %s", s.Name, s.Priority, triesLeft(s.Tries), s.State())
}

func triesLeft(n int) string {
	switch n {
	case 0:
		return "no tries left"
	case 1:
		return "1 try left"
	}
	return fmt.Sprintf("%d tries left", n)
}

// Find returns the slot with the name given.
func Find(s []Slot, name string) (Slot, bool) {
	if i := index(s, name); i >= 0 {
		return s[i], true
	}
	return Slot{}, false
}

// Default returns the slot that the boot loader's default entry should load:
// the committed slot of highest priority, the first one on a tie.
func Default(s []Slot) (Slot, bool) {
	i := best(s, func(s Slot) bool { return s.State() == Committed })
	if i < 0 {
		return Slot{}, false
	}
	return s[i], true
}

// Store keeps the slots. Save makes them durable in an order in which a power
// cut leaves either the old or the new values. It writes nothing when they are
// so already and no copy of them is damaged.
type Store interface {
	Load() ([]Slot, error)
	Save([]Slot) error
}

// Hint is the boot loader's one-shot: which slot it loads at the next boot
// only. Get returns "" when none is armed. Arm and Clear are durable when they
// return.
type Hint interface {
	Get() (string, error)
	Arm(slot string) error
	Clear() error
}

// Loader is a boot loader's settings. SetDefault sets the slot that is loaded
// without a one-shot; it writes nothing when that is so already.
type Loader interface {
	Hint
	SetDefault(slot string) error
}

// Log is the boot log, as far as decisions change it. Record is durable when
// it returns.
type Log interface {
	Record(LogChange) error
}

func index(s []Slot, name string) int {
	for i := range s {
		if s[i].Name == name {
			return i
		}
	}
	return -1
}

// best returns the index of the slot of highest priority that ok accepts, the
// first one on a tie as the ChromeOS rule has it, or -1.
func best(s []Slot, ok func(Slot) bool) int {
	found := -1
	for i := range s {
		if ok(s[i]) && (found < 0 || s[i].Priority > s[found].Priority) {
			found = i
		}
	}
	return found
}
