package boot

import "runtime"

// The real init runs in memory that this program had: what it leaves there stays
// until somebody needs the page. Secrets have owners who wipe them; what nobody can
// (key schedules of crypto/aes, pads of crypto/hmac, a hash's copies on the stack)
// goes here. The Makefile has the collector overwrite what it frees (clobberfree), and
// the scheduler send no signals, with which the kernel saves registers (asyncpreemptoff).

const (
	// wiped is how deep the stack is overwritten, bytes: what a frame may have.
	wiped = 64 << 10
	// held is more than a quarter of the stack that wiped makes necessary. With less
	// in use the collector would move the stack, and leave the old one as it was.
	held = 34 << 10
)

// onWipedStack runs what handles secrets on a stack that is large before and
// overwritten after.
func onWipedStack(what func() error) error {
	var hold [held]byte
	overwrite()
	err := what()
	overwrite()
	first(hold[:])
	return err
}

// overwrite clears the stack below its caller.
//
//go:noinline
func overwrite() {
	var frame [wiped]byte
	first(frame[:])
}

// first keeps the compiler from leaving out an array.
//
//go:noinline
func first(b []byte) byte { return b[0] }

// collect has what is no longer used overwritten; the second time, what pools kept.
func collect() {
	runtime.GC()
	runtime.GC()
}
