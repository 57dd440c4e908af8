//go:build !uncapped

package boot

// capsPCRs is the defence that keeps the booted system from unsealing again.
// The build tag "uncapped" turns it off for the one test that shows what then
// happens; no product is built with it.
const capsPCRs = true
