package boot

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"

	"sealroot/state/luks2"
)

// kdfWork bounds *luks2.KeyslotInfo.Cost over all keyslots that one entry, or the
// TPM's tokens together, are tried on: about a minute, or four keyslots as
// expensive as the reader of headers lets them be. Whoever writes the disk
// writes the header too.
const kdfWork = 64 << 20

// kdfBudget is what key derivations may still cost.
type kdfBudget struct {
	memoryKiB int // of any of them
	work      int // of all of them
}

// newBudget takes what /proc/meminfo says; half of what is free goes to a key
// derivation, as Go may hold the memory of the one before for a while.
func newBudget() *kdfBudget {
	text, err := readBounded("/proc/meminfo", 64<<10)
	if err != nil {
		text = nil // then nothing that needs memory is tried
	}
	return &kdfBudget{memoryKiB: memAvailable(text) / 2, work: kdfWork}
}

// memAvailable is MemAvailable of /proc/meminfo in KiB (proc(5)); 0: not told.
func memAvailable(text []byte) int {
	_, rest, _ := bytes.Cut(text, []byte("\nMemAvailable:"))
	number, _, _ := bytes.Cut(rest, []byte(" kB\n"))
	n, err := strconv.Atoi(string(bytes.TrimSpace(number)))
	if err != nil {
		return 0
	}
	return n
}

// unlock tries a keyslot that the budget is enough for.
func (k *kdfBudget) unlock(h *luks2.Header, s *luks2.KeyslotInfo, pass []byte) ([]byte, error) {
	if err := k.spend(s); err != nil {
		return nil, err
	}
	return h.Unlock(s.ID, pass)
}

func (k *kdfBudget) spend(s *luks2.KeyslotInfo) error {
	switch {
	case s.KDF.MemoryKiB > k.memoryKiB:
		return fmt.Errorf("keyslot %d is not tried: its key derivation needs %d MiB, and half of the free memory is %d MiB: %w",
			s.ID, s.KDF.MemoryKiB>>10, k.memoryKiB>>10, luks2.ErrKDFCost)
	case s.Cost > k.work:
		return fmt.Errorf("keyslot %d is not tried: those before it cost too much: %w", s.ID, luks2.ErrKDFCost)
	}
	k.work -= s.Cost
	return nil
}

// mayHoldRecovery tells whether a recovery key is tried on a keyslot: one that a
// token names for it; where none does, one with the key derivation of random
// secrets.
func mayHoldRecovery(h *luks2.Header) func(k *luks2.KeyslotInfo) bool {
	var named []int
	for _, t := range h.Tokens() {
		if t.Type == luks2.RecoveryTokenType {
			named = append(named, t.Keyslots...)
		}
	}
	return func(k *luks2.KeyslotInfo) bool {
		return slices.Contains(named, k.ID) || len(named) == 0 && k.KDF.Type == luks2.KDFPBKDF2
	}
}
