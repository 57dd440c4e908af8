package enrol

import "sealroot/init/config"

// Adopts says whether PID 1 takes a volume that the TPM opens although none is
// pinned under the present policy, as after an update that changed literal PCRs.
// Where an attacker with the disk can run another system anyway, asking a person
// would stop nobody. A pin that names another volume refuses there too.
func Adopts(c config.TPM2, path Path) bool {
	return c.Policy != config.PolicySignedPCR11And7 && path != UKISecureBoot
}
