package enrol

import "sealroot/init/config"

// Adopts says whether PID 1 takes a volume that the TPM opens although none is
// pinned under the present policy, as after an update that changed literal PCRs. It
// goes by the configuration, not by the boot path of the moment: what is adopted with
// Secure Boot switched off would still be pinned when it is on again, under a policy
// that lacks PCR 7. GRUB never has Secure Boot's row: there an attacker with the disk
// runs another system anyway, and asking a person would stop nobody. A pin that names
// another volume refuses there too.
func Adopts(loader config.Loader, policy string) bool {
	return loader == config.LoaderGRUB && policy == config.PolicyPCRs
}

// PersonPerImage says whether each image takes a person at its first boot: its policy
// holds literal PCRs that every image changes, under which the volume is not pinned before it
// has run, and PID 1 does not adopt one. Nobody could pin it before: the TPM tells the
// image that does so from any other system by those PCRs alone (ARCHITECTURE.md).
func PersonPerImage(c *config.Config) bool {
	if Adopts(c.Boot.Loader, c.State.TPM2.Policy) {
		return false
	}
	for _, pcr := range c.State.TPM2.PCRs {
		if c.OfImage(pcr) {
			return true
		}
	}
	return c.State.TPM2.Policy == config.PolicySignedPCR11And4
}
