package config

// measurePCR refuses PCRs that already say something else, or nothing.
func (v *validator) measurePCR(c *Config) {
	const path, remedy = "trust.measure_pcr", "leave it out, which is 13, or choose 8, 12 or 14"
	pcr := c.Trust.MeasurePCR
	var holds string
	switch {
	case pcr == DefaultMeasurePCR, pcr == 14:
	case pcr == 8 && c.Boot.Loader == LoaderGRUB:
		holds = "GRUB's commands"
	case pcr == 12 && c.Trust.Cmdline == "measured":
		holds = "the command line, which trust.cmdline: measured goes by"
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
