// Package enrol decides what the state is sealed under and adds ways to open it:
// for PID 1, which makes a volume, and for the command, which changes the keyslots
// of one that is open.
package enrol

import (
	"errors"
	"fmt"
	"slices"

	"sealroot/init/config"
	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
)

// ErrNotBacked: the boot path does not back the configured TPM policy.
var ErrNotBacked = errors.New("the TPM policy is not backed by this boot path")

// PCRLoadOptions gets what the stub and systemd-boot add to a UKI from outside:
// a command line that stands in for its own, which needs Secure Boot off, and
// credentials. It is zero where nobody does.
const PCRLoadOptions = 12

// Policy turns the configured policy into the one the volume is sealed
// under. PCR 15 at zero is part of every literal policy: init extends it before
// hand-over, so that the booted system cannot unseal again.
func Policy(c config.TPM2, publicKey []byte) (tpm.Policy, error) {
	switch c.Policy {
	case config.PolicySignedPCR11And7:
		return tpm.Policy{SignedPCRs: []int{pcrsig.PCRKernel}, PublicKey: publicKey, PCRs: []int{7}}, nil
	case config.PolicySignedPCR11And4:
		return tpm.Policy{SignedPCRs: []int{pcrsig.PCRKernel}, PublicKey: publicKey, PCRs: []int{4, PCRLoadOptions}}, nil
	case config.PolicyPCRs:
		pcrs := slices.Clone(c.PCRs)
		if !slices.Contains(pcrs, pcrsig.PCRVolume) {
			pcrs = append(pcrs, pcrsig.PCRVolume)
		}
		slices.Sort(pcrs)
		return tpm.Policy{PCRs: pcrs, Values: tpm.Values{pcrsig.PCRVolume: nil}}, nil // nil: zero
	}
	return tpm.Policy{}, fmt.Errorf("cannot seal under policy %q: %w", c.Policy, ErrNotBacked)
}

// Backed checks, before anything is sealed, that the way this machine was
// booted gives the policy its meaning. Errors: ErrNotBacked.
func Backed(loader config.Loader, c config.TPM2, path Path) error {
	if path == Kexec {
		// Its PCRs tell of another kernel, and those that PID 1 closes are closed.
		return fmt.Errorf("cannot seal to the TPM: %s: %w", path.Describe(), ErrNotBacked)
	}
	if c.WithoutMeasuredBoot == config.AcceptTheft || c.PINStandsIn(loader) && (path == Unmeasured || path == GRUBEFI) {
		return nil
	}
	measured := path != Unmeasured
	if path == GRUBEFI {
		// GRUB's measurements count only when the policy holds them.
		measured = slices.Contains(c.PCRs, 8) && slices.Contains(c.PCRs, 9)
	}
	switch {
	case !measured:
		return fmt.Errorf("cannot seal to the TPM: %s; boot as boot.loader has it, with grub set a PIN, or tpm_without_measured_boot: %s to accept that: %w",
			path.Describe(), config.AcceptTheft, ErrNotBacked)
	case c.Policy == config.PolicySignedPCR11And7 && path != UKISecureBoot:
		return fmt.Errorf("cannot seal to PCR 7: Secure Boot is off, or the kernel was not started as a UKI; boot the UKI with Secure Boot on, or choose signed-pcr11+4: %w", ErrNotBacked)
	case c.Policy == config.PolicySignedPCR11And4 && path != UKISecureBoot && path != UKI:
		return fmt.Errorf("cannot seal to PCR 11: the kernel was not started as a UKI: %w", ErrNotBacked)
	case c.Policy == config.PolicyPCRs && path != GRUBEFI && !c.LiteralBacked(path == UKISecureBoot):
		return fmt.Errorf("cannot seal to PCRs %v: another system or command line would get the key; boot with Secure Boot on and have 7 in state.tpm2.pcrs, or have 4 and 12 there: %w", c.PCRs, ErrNotBacked)
	}
	return nil
}
