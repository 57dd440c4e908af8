//go:build !stopped

package boot

// stopOnPurpose does nothing. The build tag "stopped" makes it stop this
// process in a boot on trial, for the test of the watchdog; no product is built
// with it.
func (b *boot) stopOnPurpose() {}
