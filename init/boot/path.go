package boot

import "sealroot/state/enrol"

// bootPath is a row of the table of boot paths.
type bootPath = enrol.Path

const (
	pathUKISecureBoot = enrol.UKISecureBoot
	pathUKI           = enrol.UKI
	pathGRUBEFI       = enrol.GRUBEFI
	pathUnmeasured    = enrol.Unmeasured
)

// firmware is what the firmware and the loader told about themselves.
type firmware struct {
	EFI        bool
	Vars       bool // its variables can be read
	SecureBoot bool
	Stub       bool   // a UKI's stub started the kernel and measured it (StubPcrKernelImage)
	ESP        string // partition UUID that the loader was read from; "" unknown
	// Kexec: the kernel that ran before has started this one. What else is here tells
	// of how that one was started.
	Kexec bool
}

// started is the row of this boot; path is that of the boot of the firmware.
func (b *boot) started() bootPath {
	if b.fw.Kexec {
		return enrol.Kexec
	}
	return b.fw.path(b.grub())
}

// closedBefore says why nothing may be sealed to the PCRs of this boot, nor recorded
// under them: after a kexec they are those of the boot before, which has closed them.
func (b *boot) closedBefore() error {
	if !b.fw.Kexec {
		return nil
	}
	return enrol.Backed(b.cfg.Boot.Loader, b.cfg.State.TPM2, enrol.Kexec)
}

// path tells which row applies. A GRUB started by EFI counts as measured only
// when it is the configured loader: an EFI shell measures nothing into 8 and 9.
func (f firmware) path(grub bool) bootPath {
	switch {
	case f.EFI && f.Stub && f.SecureBoot:
		return pathUKISecureBoot
	case f.EFI && f.Stub:
		return pathUKI
	case f.EFI && grub:
		return pathGRUBEFI
	}
	return pathUnmeasured
}
