package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"sealroot/init/config"
	"sealroot/state/enrol"
	"sealroot/state/luks2"
	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
)

// ErrPCRs: a PCR that the policy holds is not, on the running system, what it will
// be at the next boot.
var ErrPCRs = errors.New("the PCRs of the running system are not those of a boot")

// pcrIMA gets what the kernel's integrity subsystem measures, all the time.
const pcrIMA = 10

// Policy is what PID 1 would seal to on this machine, with values that hold at the
// next boot. Errors: enrol.ErrNotBacked, tpm.ErrSanity, ErrPCRs, and the TPM's.
func (l Look) Policy(ctx context.Context, cfg config.Config, path enrol.Path) (tpm.Policy, error) {
	c := cfg.State.TPM2
	if err := enrol.Backed(cfg.Boot.Loader, c, path); err != nil {
		return tpm.Policy{}, err
	}
	key := l.PublicKey
	if c.Policy == config.PolicyPCRs {
		key = nil
	} else if key == nil {
		return tpm.Policy{}, fmt.Errorf("cannot seal under %s: this boot left no PCR policy key: %w", c.Policy, enrol.ErrNotBacked)
	}
	p, err := enrol.Policy(c, key)
	if err != nil {
		return tpm.Policy{}, err
	}
	p.PIN = c.PIN
	if l.TPM == nil {
		return tpm.Policy{}, fmt.Errorf("cannot seal to the TPM: %w: %s", tpm.ErrNoTPM, l.Why)
	}
	if slices.Contains(p.PCRs, pcrIMA) {
		return tpm.Policy{}, fmt.Errorf("cannot seal to PCR %d: the kernel extends it while the system runs: %w", pcrIMA, ErrPCRs)
	}
	if slices.Contains(p.PCRs, pcrsig.PCRKernel) {
		if p, err = l.withKernel(ctx, p); err != nil {
			return tpm.Policy{}, err
		}
	}
	if err := enrol.Measured(ctx, l.TPM, p, true); err != nil {
		return tpm.Policy{}, err
	}
	return p, enrol.NothingAdded(ctx, l.TPM, c, p)
}

// withKernel gives a fixed PCR 11 the value that it has while PID 1 works.
func (l Look) withKernel(ctx context.Context, p tpm.Policy) (tpm.Policy, error) {
	banks, err := l.TPM.ActiveBanks(ctx)
	if err != nil {
		return p, err
	}
	for _, bank := range []tpm.Bank{pcrsig.SHA256, pcrsig.SHA384, pcrsig.SHA512} { // as tpm.Seal chooses
		if !slices.Contains(banks, bank) {
			continue
		}
		if l.Kernel[bank] == nil {
			return p, fmt.Errorf("cannot seal to PCR 11: %w: %w", errKernel, ErrPCRs)
		}
		values := tpm.Values{pcrsig.PCRKernel: l.Kernel[bank]}
		for pcr, v := range p.Values {
			values[pcr] = v
		}
		p.Bank, p.Values = bank, values
		return p, nil
	}
	return p, fmt.Errorf("cannot seal to PCR 11: %w", tpm.ErrBank)
}

// Enrolled is what Enroll has made.
type Enrolled struct {
	Keyslot int `json:"keyslot"`
	Token   int `json:"token"`
	// Policy in words.
	Policy string `json:"policy"`
	// Replaced are tokens that it takes the place of, and why they would not have
	// opened the volume, if so.
	Replaced []Replaced `json:"replaced"`
	// Kept are tokens of the TPM that were made by others and stay.
	Kept []int `json:"kept"`
}

// Replaced is a token that goes.
type Replaced struct {
	Token    int      `json:"token"`
	NextBoot Prospect `json:"next_boot"`
	Why      string   `json:"why,omitempty"`
}

// Change is one change of a header.
type Change struct {
	VolumeKey []byte    // stays the caller's
	Rand      io.Reader // random for secrets and salts
	PIN       []byte    // of the TPM's new token, where its policy asks for one
}

// Enroll returns a header in which a new secret, sealed under the policy, takes the
// place of those that PID 1 uses by this configuration. Tokens with a PIN where it
// wants none, or of a kind that is not known here, stay.
func (l Look) Enroll(ctx context.Context, h *luks2.Header, p tpm.Policy, c Change) (*luks2.Header, Enrolled, error) {
	e := Enrolled{Replaced: []Replaced{}, Kept: []int{}}
	var retire []int
	for _, t := range h.Tokens() {
		if t.Type != tpm.TokenType {
			continue
		}
		old, err := tpm.ParseToken(t.JSON)
		if err != nil || old.Usable() != nil || old.PIN && !p.PIN || len(old.Unknown) > 0 {
			e.Kept = append(e.Kept, t.ID)
			continue
		}
		r := Replaced{Token: t.ID}
		r.NextBoot, r.Why = l.Examine(ctx, old)
		e.Replaced = append(e.Replaced, r)
		retire = append(retire, t.ID)
	}
	h, err := l.seal(ctx, h, p, c, retire, &e)
	return h, e, err
}

// seal returns a header with a new secret, sealed under the policy, without what it
// takes the place of.
func (l Look) seal(ctx context.Context, h *luks2.Header, p tpm.Policy, c Change, retire []int, e *Enrolled) (*luks2.Header, error) {
	token, pass, err := enrol.Seal(ctx, l.TPM, p, c.PIN, c.Rand)
	if err != nil {
		return nil, err
	}
	defer clear(pass)
	e.Policy = Words(token)
	h, e.Keyslot, e.Token, err = h.Enroll(luks2.Enrolment{
		VolumeKey: c.VolumeKey, Passphrase: pass, KDF: luks2.RandomSecretKDF(), RetireTokens: retire, Rand: c.Rand,
		Token: func(keyslot int) ([]byte, error) {
			token.Keyslots = []int{keyslot}
			return token.Encode()
		},
	})
	return h, err
}

// named returns a header with a keyslot that key opens, and a token that says what
// it is, in place of the keyslots of that kind.
func (c Change) named(h *luks2.Header, kind Kind, key []byte, token func(keyslot int) []byte) (*luks2.Header, int, error) {
	var retire []int
	for _, t := range h.Tokens() {
		if kindOf(t.Type) == kind {
			retire = append(retire, t.ID)
		}
	}
	h, keyslot, _, err := h.Enroll(luks2.Enrolment{
		VolumeKey: c.VolumeKey, Passphrase: key, KDF: luks2.RandomSecretKDF(), RetireTokens: retire, Rand: c.Rand,
		Token: func(keyslot int) ([]byte, error) { return token(keyslot), nil },
	})
	return h, keyslot, err
}

// RecoveryKey returns a header with a new recovery key in place of all others.
func (c Change) RecoveryKey(h *luks2.Header, key []byte) (*luks2.Header, int, error) {
	return c.named(h, Recovery, key, luks2.RecoveryToken)
}

// ManageKey returns a header with a new manage key in place of all others.
func (c Change) ManageKey(h *luks2.Header, key []byte) (*luks2.Header, int, error) {
	return c.named(h, Manage, key, enrol.ManageToken)
}

// Passphrase returns a header with a passphrase in place of the keyslots retired.
// memoryKiB bounds what its key derivation takes: half of what is free at a boot is
// all that PID 1 gives it.
func (c Change) Passphrase(h *luks2.Header, passphrase []byte, memoryKiB int, retire []int) (*luks2.Header, int, error) {
	kdf := luks2.PassphraseKDF()
	kdf.MemoryKiB = max(min(kdf.MemoryKiB, memoryKiB), minMemoryKiB)
	h, keyslot, _, err := h.Enroll(luks2.Enrolment{
		VolumeKey: c.VolumeKey, Passphrase: passphrase, KDF: kdf, RetireKeyslots: retire, Rand: c.Rand,
	})
	return h, keyslot, err
}

// minMemoryKiB is the least that the key derivation of a passphrase takes.
const minMemoryKiB = 64 << 10
