package luks2

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// budgetWork bounds KeyslotInfo.Cost over all keyslots that one budget is for:
// about a minute, or four keyslots as expensive as Read lets them be. Whoever
// writes the disk writes the header too.
const budgetWork = 64 << 20

// Budget is what the key derivations for one secret may still cost.
type Budget struct {
	MemoryKiB int // of any of them
	Work      int // of all of them, in units of KeyslotInfo.Cost
}

// NewBudget takes the text of /proc/meminfo (proc(5)): half of what is free goes
// to a key derivation, as Go may hold the memory of the one before for a while.
// Where the text does not tell, nothing that needs memory is tried.
func NewBudget(meminfo []byte) *Budget {
	return &Budget{MemoryKiB: memAvailable(meminfo) / 2, Work: budgetWork}
}

// memAvailable is MemAvailable in KiB; 0: not told.
func memAvailable(text []byte) int {
	_, rest, _ := bytes.Cut(text, []byte("\nMemAvailable:"))
	number, _, _ := bytes.Cut(rest, []byte(" kB\n"))
	n, err := strconv.Atoi(string(bytes.TrimSpace(number)))
	if err != nil {
		return 0
	}
	return n
}

// Unlock is Header.Unlock for a keyslot that the budget is enough for; otherwise
// ErrKDFCost, before anything was derived.
func (b *Budget) Unlock(h *Header, k *KeyslotInfo, passphrase []byte) ([]byte, error) {
	if err := b.spend(k); err != nil {
		return nil, err
	}
	return h.Unlock(k.ID, passphrase)
}

func (b *Budget) spend(k *KeyslotInfo) error {
	switch {
	case k.KDF.MemoryKiB > b.MemoryKiB:
		return fmt.Errorf("keyslot %d is not tried: its key derivation needs %d MiB, and half of the free memory is %d MiB: %w",
			k.ID, k.KDF.MemoryKiB>>10, b.MemoryKiB>>10, ErrKDFCost)
	case k.Cost > b.Work:
		return fmt.Errorf("keyslot %d is not tried: those before it cost too much: %w", k.ID, ErrKDFCost)
	}
	b.Work -= k.Cost
	return nil
}

// MayHoldRecovery tells whether a recovery key is tried on a keyslot: one that a
// token names for it; where none does, one with the key derivation of random
// secrets.
func (h *Header) MayHoldRecovery() func(k *KeyslotInfo) bool {
	var named []int
	for _, t := range h.Tokens() {
		if t.Type == RecoveryTokenType {
			named = append(named, t.Keyslots...)
		}
	}
	return func(k *KeyslotInfo) bool {
		return slices.Contains(named, k.ID) || len(named) == 0 && k.KDF.Type == KDFPBKDF2
	}
}

// Authorize finds the volume key with what its owner gave: a recovery key, in
// any way that one may be typed, or a passphrase as it is. It returns the
// keyslot that opened; the caller wipes the key. Errors: ErrPassphrase, and
// ErrKDFCost when a keyslot was too expensive to be tried.
func (h *Header) Authorize(secret []byte, budget *Budget) (volumeKey []byte, keyslot int, err error) {
	var costs []error
	try := func(pass []byte, may func(*KeyslotInfo) bool) bool {
		list := h.Keyslots()
		for i := range list {
			k := &list[i]
			if !may(k) {
				continue
			}
			key, err := budget.Unlock(h, k, pass)
			if err == nil {
				volumeKey, keyslot = key, k.ID
				return true
			}
			if errors.Is(err, ErrKDFCost) {
				costs = append(costs, err)
			}
		}
		return false
	}
	if key, err := NormalizeRecoveryKey(secret); err == nil {
		found := try(key, h.MayHoldRecovery())
		clear(key)
		if found {
			return volumeKey, keyslot, nil
		}
	}
	if try(secret, func(*KeyslotInfo) bool { return true }) {
		return volumeKey, keyslot, nil
	}
	return nil, 0, fmt.Errorf("cannot authorize: %w", errors.Join(append([]error{ErrPassphrase}, costs...)...))
}
