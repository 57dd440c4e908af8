package tpm

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"
)

// What can be wrong, told apart because each asks for another remedy. Every
// error of this package wraps one of these where it applies; test with errors.Is.
var (
	// ErrNoTPM: there is no TPM device, or what is there is no TPM 2.0.
	ErrNoTPM = errors.New("no TPM")
	// ErrBusy: the TPM, or another user of its device, did not answer in time.
	ErrBusy = errors.New("TPM is busy")
	// ErrFails: the TPM answers that it has failed, or commands to it are given up.
	// Without power it may recover; a restart does not help one that says it failed.
	ErrFails = errors.New("TPM fails")
	// ErrPCRsChanged: the PCRs are not those that the secret was sealed to.
	// errors.As with *PCRsChangedError tells which come into question.
	ErrPCRsChanged = errors.New("PCRs changed")
	// ErrOtherTPM: the secret was sealed by another TPM, or this one was cleared.
	ErrOtherTPM = errors.New("sealed by another TPM")
	// ErrLockedOut: too many wrong PINs; the TPM refuses more for a while.
	ErrLockedOut = errors.New("TPM is locked out")
	// ErrPIN: a PIN is needed and was not given, or it was wrong.
	ErrPIN = errors.New("TPM PIN refused")
	// ErrPolicy: a policy that cannot be made or met: no signature by this key,
	// a signature that does not verify, a contradictory policy.
	ErrPolicy = errors.New("TPM policy refused")
	// ErrToken: a token that is damaged, not allowed, or of an unsupported kind.
	ErrToken = errors.New("invalid systemd-tpm2 token")
	// ErrSRK: the storage root key's place is taken by an unsuitable object.
	ErrSRK = errors.New("unsuitable storage root key")
	// ErrSanity: PCRs have values that no measured boot leaves behind.
	ErrSanity = errors.New("PCRs were not measured")
	// ErrLog: a PCR was extended, but the event could not be appended to the log.
	ErrLog = errors.New("cannot write TPM event log")
)

// PCRsChangedError is the ErrPCRsChanged of an unseal.
type PCRsChangedError struct {
	// PCRs holds the PCRs of which at least one has changed. A token does not
	// say the values it was sealed to, so this is exact only when it is one: the
	// only one of the policy, or one that was sealed to at zero.
	PCRs []int
	// Bank is the PCR bank of the policy.
	Bank Bank
}

// Error says which PCRs come into question.
func (e *PCRsChangedError) Error() string {
	switch len(e.PCRs) {
	case 0:
		return ErrPCRsChanged.Error()
	case 1:
		return fmt.Sprintf("PCR %d of bank %s changed", e.PCRs[0], e.Bank)
	}
	return fmt.Sprintf("one of the PCRs %s of bank %s changed", joinInts(e.PCRs), e.Bank)
}

// Is makes errors.Is(err, ErrPCRsChanged) true.
func (e *PCRsChangedError) Is(target error) bool { return target == ErrPCRsChanged }

func joinInts(list []int) string {
	words := make([]string, 0, len(list))
	for _, n := range slices.Sorted(slices.Values(list)) {
		words = append(words, fmt.Sprint(n))
	}
	return strings.Join(words, ", ")
}

// classify adds the sentinel that belongs to a TPM response code.
func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, tpm2.TPMRCLockout):
		return fmt.Errorf("%w: %w", ErrLockedOut, err)
	case errors.Is(err, tpm2.TPMRCAuthFail), errors.Is(err, tpm2.TPMRCBadAuth):
		return fmt.Errorf("%w: %w", ErrPIN, err)
	case errors.Is(err, tpm2.TPMRCPCRChanged): // someone else goes on extending PCRs
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case errors.Is(err, tpm2.TPMRCFailure):
		return fmt.Errorf("%w: %w", ErrFails, err)
	}
	return err
}

// answered: err is the TPM's own; it has not done the command.
func answered(err error) bool {
	var rc tpm2.TPMRC
	return errors.As(err, &rc)
}
