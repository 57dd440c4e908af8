package config

import "slices"

// measurePCR refuses PCRs that already say something else, or nothing.
func (v *validator) measurePCR(c *Config) {
	const path, remedy = "trust.measure_pcr", "leave it out, which is 13, or choose 8, 12 or 14"
	pcr := c.Trust.MeasurePCR
	var holds string
	switch {
	case pcr == DefaultMeasurePCR, pcr == 14:
	case pcr == 8 && c.Boot.Loader == LoaderGRUB:
		holds = "GRUB's commands"
	case pcr == 12 && c.Trust.Cmdline == CmdlineMeasured:
		holds = "the command line, which trust.cmdline: measured goes by"
	case pcr == 12 && c.State.TPM2.Policy == PolicySignedPCR11And4:
		holds = "the command line, which state.tpm2.policy signed-pcr11+4 goes by"
	case pcr == 12 && c.State.TPM2.WithoutMeasuredBoot == "" && slices.Contains(c.State.TPM2.PCRs, 12):
		holds = "the command line, which state.tpm2.pcrs goes by"
	case pcr == 8, pcr == 12:
	case pcr >= 0 && pcr <= 7:
		holds = "the firmware's measurements"
	case pcr == 9:
		holds = "the kernel's measurement of the initramfs"
	case pcr == 10:
		holds = "the kernel's measurements of files, in an order that nobody can predict"
	case pcr == 11:
		holds = "the unified kernel image and the words of the boot, and the signed policy"
	case pcr == 15:
		holds = "the identity of the encrypted volume, and is closed with the policies"
	case pcr > 15 && pcr < 24:
		holds = "nothing of this boot: the running system can reset it"
	default:
		v.add(path, remedy, "there is no PCR %d", pcr)
		return
	}
	if holds != "" {
		v.add(path, remedy, "PCR %d holds %s", pcr, holds)
	}
}

// rollbackFloor: the floor lies in the TPM under the policy of the state's key,
// so there must be one, and it must outlive an update.
func (v *validator) rollbackFloor(c *Config) {
	const path = "trust.rollback_floor"
	if !c.Trust.RollbackFloor {
		return
	}
	t := c.State.TPM2
	switch {
	case !c.State.can(UnlockTPM2):
		v.add(path, "add tpm2 to state.unlock, or leave it out", "the floor is kept in the TPM under the policy of the state, and state.unlock lacks tpm2")
	case t.Policy == PolicySignedPCR11And4:
		v.add(path, "use signed-pcr11+7", "with state.tpm2.policy %s no other version could raise the floor: each has a PCR 4 of its own", t.Policy)
	case t.Policy == PolicyPCRs && (slices.ContainsFunc(t.PCRs, changesWithVersion) || slices.Contains(t.PCRs, c.Trust.MeasurePCR)):
		v.add(path, "leave those PCRs out, or use signed-pcr11+7", "state.tpm2.pcrs holds a PCR that every version changes (4, 8, 9, 11, 12, 13, trust.measure_pcr): none but the first could raise the floor")
	case c.SecurityVersion == 0:
		v.add(path, "count from 1 upwards", "security_version is missing: there is nothing to compare")
	}
}

// changesWithVersion: the boot loader or kernel, its initramfs, its command line
// or its root are measured there.
func changesWithVersion(pcr int) bool {
	return slices.Contains([]int{4, 8, 9, 11, 12, 13}, pcr)
}
