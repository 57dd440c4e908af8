//go:build !unpinned

package boot

// pinsVolume is the defence against a volume of somebody else's that our TPM
// unlocks. The build tag "unpinned" turns it off for the one test that shows what
// then happens; no product is built with it.
const pinsVolume = true
