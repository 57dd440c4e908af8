package enrol

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"sealroot/init/config"
	"sealroot/state/luks2"
	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
)

// Measured returns an error when a PCR that the policy needs was not measured on
// this machine: what is sealed to it would be sealed to nothing. closed tells that
// PID 1 has handed over: then PCR 11 holds its own last words, and says nothing of
// the stub. Errors: tpm.ErrSanity, and the TPM's.
func Measured(ctx context.Context, dev *tpm.TPM, p tpm.Policy, closed bool) error {
	var pcrs []int
	for _, pcr := range slices.Concat(p.SignedPCRs, p.PCRs) {
		switch {
		case pcr == pcrsig.PCRVolume, pcr == PCRLoadOptions: // may be zero
		case closed && pcr == pcrsig.PCRKernel:
		default:
			pcrs = append(pcrs, pcr)
		}
	}
	if len(pcrs) == 0 {
		return nil
	}
	return dev.Sanity(ctx, p.Bank, pcrs...)
}

// NothingAdded refuses to seal to what somebody gave the UKI from outside before:
// the policy would go by it for good. On the named exception it is accepted like
// the rest. Errors: ErrNotBacked, and the TPM's.
func NothingAdded(ctx context.Context, dev *tpm.TPM, c config.TPM2, p tpm.Policy) error {
	if !slices.Contains(p.PCRs, PCRLoadOptions) || c.WithoutMeasuredBoot == config.AcceptTheft {
		return nil
	}
	banks, err := dev.ActiveBanks(ctx)
	for _, bank := range banks {
		values, readErr := dev.ReadPCRs(ctx, bank, []int{PCRLoadOptions})
		if err = errors.Join(err, readErr); err == nil && len(bytes.Trim(values[PCRLoadOptions], "\x00")) > 0 {
			return fmt.Errorf("cannot seal to PCR %d: load options, credentials or addons were given to the UKI; start it once without them: %w", PCRLoadOptions, ErrNotBacked)
		}
	}
	return err
}

// Seal seals a new random secret under the policy. It returns the token, whose
// Keyslots are the caller's to set, and the passphrase of the keyslot, which the
// caller wipes. pin is for a policy with a PIN. Errors: those of tpm.Seal.
func Seal(ctx context.Context, dev *tpm.TPM, p tpm.Policy, pin []byte, random io.Reader) (tpm.Token, []byte, error) {
	secret := make([]byte, tpm.SecretSize)
	defer clear(secret)
	if _, err := io.ReadFull(random, secret); err != nil {
		return tpm.Token{}, nil, err
	}
	token, err := dev.Seal(ctx, p, secret, pin)
	if err != nil {
		return tpm.Token{}, nil, fmt.Errorf("cannot seal to the TPM: %w", err)
	}
	return token, tpm.Passphrase(secret), nil
}

// Add adds keyslot id, which passphrase opens, and the token of the same id. It is
// for a new volume: luks2's Enroll takes the place of what is there.
func Add(h *luks2.Header, id int, volumeKey, passphrase, token []byte, rand io.Reader) (*luks2.Header, error) {
	h, err := h.AddKeyslot(id, volumeKey, passphrase, luks2.RandomSecretKDF(), rand)
	if err != nil {
		return nil, err
	}
	return h.AddToken(id, token)
}
