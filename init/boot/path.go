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
