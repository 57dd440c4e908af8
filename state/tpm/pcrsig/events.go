package pcrsig

import (
	"encoding/hex"
	"fmt"
)

// WordCapped is what PID 1 extends PCR 11 and 15 with before it hands over: no
// policy over one of them is met again in that boot.
const WordCapped = "sealroot-capped"

// PCRs that PID 1 extends, with systemd's numbers and meanings.
const (
	PCRKernel = 11 // the stub's measurement of the UKI, then the phase words
	PCRRoot   = 13 // default of trust.measure_pcr: what is mounted
	PCRVolume = 15 // identity of the volume that was unlocked
)

// The roles in RootEvent.
const (
	RoleRoot = "root" // a root file system
	RoleUsr  = "usr"  // a /usr without a root
)

// RootEvent is the text that the PCR for the root is extended with. It names no
// slot, so that an image has one value wherever it lies.
func RootEvent(role string, rootHash []byte, securityVersion int) string {
	return fmt.Sprintf("sealroot:%s:%s:%d", role, hex.EncodeToString(rootHash), securityVersion)
}

// LayerEvent is the text that the same PCR is extended with for each layer, from the
// lowest up, after the root.
func LayerEvent(name, rootHash string) string {
	return fmt.Sprintf("sealroot:layer:%s:%s", rootHash, name)
}

// Extend returns the value of a PCR after one extend with the digest of each
// event, in order. Errors are ErrBank and, for a value of the wrong length,
// ErrPCR.
func Extend(bank Bank, value []byte, events ...string) ([]byte, error) {
	hash, err := bank.Hash()
	if err != nil {
		return nil, err
	}
	if len(value) != hash.Size() {
		return nil, fmt.Errorf("%w: value of %d bytes in bank %s", ErrPCR, len(value), bank)
	}
	return extendPhases(hash, value, events), nil
}
