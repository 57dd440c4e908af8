package boot

import (
	"sealroot/bounded"
	"sealroot/state/luks2"
)

// newBudget is what the key derivations for one entry, or for the TPM's tokens
// together, may cost on this machine.
func newBudget() *luks2.Budget {
	text, err := bounded.ReadFile("/proc/meminfo", 64<<10)
	if err != nil {
		text = nil // then nothing that needs memory is tried
	}
	return luks2.NewBudget(text)
}
