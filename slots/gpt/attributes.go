package gpt

import "fmt"

// Attributes are the 64 attribute bits of a partition. The slot bits are those
// of ChromeOS: priority 48-51, tries left 52-55, successful 56.
type Attributes uint64

const (
	priorityShift = 48
	triesShift    = 52
	successful    = Attributes(1) << 56
	// slotBits are the only bits that a store ever changes.
	slotBits = Attributes(0x1ff) << priorityShift
)

// ReadOnly is bit 60 of the Discoverable Partitions Specification: nobody is to
// mount the partition for writing. Without it systemd tries to remount a root
// that it finds in the table.
const ReadOnly = Attributes(1) << 60

// Fresh is bit 48 of a partition of type TypeLog, whose bits are ours to define:
// the disk is fresh, it has the GUIDs that it was built with. Renew takes it away.
const Fresh = Attributes(1) << 48

// Priority is 0 to 15; 0 is never booted.
func (a Attributes) Priority() int { return int(a >> priorityShift & 15) }

// Tries is how many boots are left, 0 to 15.
func (a Attributes) Tries() int { return int(a >> triesShift & 15) }

// Successful says that the slot was committed.
func (a Attributes) Successful() bool { return a&successful != 0 }

// WithSlot returns a with other slot bits; numbers outside 0..15 are clamped.
func (a Attributes) WithSlot(priority, tries int, ok bool) Attributes {
	a &^= slotBits
	a |= Attributes(clamp(priority)) << priorityShift
	a |= Attributes(clamp(tries)) << triesShift
	if ok {
		a |= successful
	}
	return a
}

func clamp(n int) int { return min(max(n, 0), 15) }

// String shows all bits and the slot's: "0x0133… (priority 3, tries 3, successful)".
func (a Attributes) String() string {
	s := fmt.Sprintf("%#016x (priority %d, tries %d", uint64(a), a.Priority(), a.Tries())
	if a.Successful() {
		s += ", successful"
	}
	return s + ")"
}
