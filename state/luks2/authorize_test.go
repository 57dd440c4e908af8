package luks2

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// Keyslots of a hostile header get only so much memory and time.
func TestKeyslotsThatCostTooMuch(t *testing.T) {
	argon := func(mib, passes int) *KeyslotInfo {
		k := KDF{Type: KDFArgon2id, MemoryKiB: mib << 10, Time: passes}
		return &KeyslotInfo{KDF: k, Cost: k.MemoryKiB * k.Time}
	}
	budget := &Budget{MemoryKiB: 1 << 20, Work: budgetWork}
	if err := budget.spend(argon(1025, 1)); !errors.Is(err, ErrKDFCost) || budget.Work != budgetWork {
		t.Errorf("more than half of the free memory: %v", err)
	}
	tried := 0
	for range MaxKeyslots {
		if budget.spend(argon(1024, 16)) == nil {
			tried++
		}
	}
	if tried != 4 {
		t.Errorf("%d of 32 most expensive keyslots are tried, want 4", tried)
	}
	// What cryptsetup makes on an ordinary machine, 16 times.
	budget = &Budget{MemoryKiB: 1 << 20, Work: budgetWork}
	for i := range 16 {
		if err := budget.spend(argon(1024, 4)); err != nil {
			t.Errorf("ordinary keyslot %d: %v", i, err)
		}
	}
}

func TestMemAvailable(t *testing.T) {
	for text, want := range map[string]int{
		"MemTotal:  2000 kB\nMemFree:  10 kB\nMemAvailable:    1234 kB\nBuffers: 1 kB\n": 1234,
		"MemTotal: 2000 kB\n": 0, "": 0, "\nMemAvailable: many kB\n": 0,
	} {
		if got := memAvailable([]byte(text)); got != want {
			t.Errorf("memAvailable(%q) = %d, want %d", text, got, want)
		}
	}
	if got, want := *NewBudget([]byte("\nMemAvailable: 1000 kB\n")), (Budget{MemoryKiB: 500, Work: budgetWork}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// What the owner of a volume gives to change it.
func TestAuthorize(t *testing.T) {
	_, h := written(t)
	rand := &testRand{state: 40}
	recovery := must[[]byte](t)(GenerateRecoveryKey(rand))
	h = must[*Header](t)(h.AddKeyslot(3, testKey(), recovery, RandomSecretKDF(), rand))
	h = must[*Header](t)(h.AddToken(0, RecoveryToken(3)))
	h = must[*Header](t)(h.AddKeyslot(5, testKey(), []byte("human"), KDF{Type: KDFArgon2id, Time: 4, MemoryKiB: 1 << 10, CPUs: 1}, rand))
	enough := func() *Budget { return &Budget{MemoryKiB: 1 << 20, Work: budgetWork} }
	for secret, want := range map[string]int{
		"secret": 0, "human": 5, string(recovery): 3,
		strings.ToUpper(strings.ReplaceAll(string(recovery), "-", " ")) + "\n": 3,
	} {
		key, keyslot, err := h.Authorize([]byte(secret), enough())
		if err != nil || keyslot != want || !bytes.Equal(key, testKey()) {
			t.Errorf("%q: got keyslot %d, %v, want %d", secret, keyslot, err, want)
		}
	}
	other := must[[]byte](t)(GenerateRecoveryKey(rand))
	for _, secret := range []string{"", "Secret", "secret\n", string(other)} {
		if key, _, err := h.Authorize([]byte(secret), enough()); !errors.Is(err, ErrPassphrase) || errors.Is(err, ErrKDFCost) || key != nil {
			t.Errorf("%q: got %v, want ErrPassphrase alone", secret, err)
		}
	}
	if key, _, err := h.Authorize([]byte("human"), &Budget{MemoryKiB: 512, Work: budgetWork}); !errors.Is(err, ErrKDFCost) || key != nil {
		t.Errorf("too little memory: got %v, want ErrKDFCost", err)
	}
	if _, keyslot, err := h.Authorize([]byte("secret"), &Budget{Work: 3000}); err != nil || keyslot != 0 {
		t.Errorf("cheap keyslot: got %d, %v", keyslot, err)
	}
}
