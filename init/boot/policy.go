package boot

import (
	"errors"
	"fmt"
	"slices"

	"sealroot/init/config"
	"sealroot/state/tpm"
)

// errNotBacked: the boot path does not back the configured TPM policy.
var errNotBacked = errors.New("the TPM policy is not backed by this boot path")

// pcrLoadOptions gets what the stub and systemd-boot add to a UKI from outside:
// a command line that stands in for its own, which needs Secure Boot off, and
// credentials. It is zero where nobody does.
const pcrLoadOptions = 12

// sealPolicy turns the configured policy into the one the volume is sealed
// under. PCR 15 at zero is part of every literal policy: init extends it before
// hand-over, so that the booted system cannot unseal again.
func sealPolicy(c config.TPM2, publicKey []byte) (tpm.Policy, error) {
	switch c.Policy {
	case config.PolicySignedPCR11And7:
		return tpm.Policy{SignedPCRs: []int{pcrKernel}, PublicKey: publicKey, PCRs: []int{7}}, nil
	case config.PolicySignedPCR11And4:
		return tpm.Policy{SignedPCRs: []int{pcrKernel}, PublicKey: publicKey, PCRs: []int{4, pcrLoadOptions}}, nil
	case config.PolicyPCRs:
		pcrs := slices.Clone(c.PCRs)
		if !slices.Contains(pcrs, pcrVolume) {
			pcrs = append(pcrs, pcrVolume)
		}
		slices.Sort(pcrs)
		return tpm.Policy{PCRs: pcrs, Values: tpm.Values{pcrVolume: nil}}, nil // nil: zero
	}
	return tpm.Policy{}, fmt.Errorf("cannot seal under policy %q: %w", c.Policy, errNotBacked)
}

// backed checks, before anything is sealed, that the way this machine was
// booted gives the policy its meaning.
func backed(c config.TPM2, path bootPath) error {
	if c.WithoutMeasuredBoot == config.AcceptTheft {
		return nil
	}
	measured := path != pathUnmeasured
	if path == pathGRUBEFI {
		// GRUB's measurements count only when the policy holds them.
		measured = slices.Contains(c.PCRs, 8) && slices.Contains(c.PCRs, 9)
	}
	switch {
	case !measured:
		return fmt.Errorf("cannot seal to the TPM: %s; set tpm_without_measured_boot: %s to accept that: %w",
			path.describe(), config.AcceptTheft, errNotBacked)
	case c.Policy == config.PolicySignedPCR11And7 && path != pathUKISecureBoot:
		return fmt.Errorf("cannot seal to PCR 7: Secure Boot is off, or the kernel was not started as a UKI; boot the UKI with Secure Boot on, or choose signed-pcr11+4: %w", errNotBacked)
	case c.Policy == config.PolicySignedPCR11And4 && path != pathUKISecureBoot && path != pathUKI:
		return fmt.Errorf("cannot seal to PCR 11: the kernel was not started as a UKI: %w", errNotBacked)
	case c.Policy == config.PolicyPCRs && path != pathGRUBEFI && !c.LiteralBacked(path == pathUKISecureBoot):
		return fmt.Errorf("cannot seal to PCRs %v: another system or command line would get the key; boot with Secure Boot on and have 7 in state.tpm2.pcrs, or have 4 and 12 there: %w", c.PCRs, errNotBacked)
	}
	return nil
}
