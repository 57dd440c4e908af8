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
