package boot

import "sealroot/init/report"

// bootPath is a row of the table of boot paths in DESIGN and README: who
// vouches for the initramfs.
type bootPath string

const (
	pathUKISecureBoot bootPath = report.PathUKISecureBoot
	pathUKI           bootPath = report.PathUKI
	pathGRUBEFI       bootPath = report.PathGRUBEFI
	pathUnmeasured    bootPath = report.PathUnmeasured
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

// describe is the row in words, for the console and status.
func (p bootPath) describe() string {
	switch p {
	case pathUKISecureBoot:
		return "UKI with Secure Boot: the firmware vouches for the initramfs"
	case pathUKI:
		return "UKI without Secure Boot: PCR 4 and 11 tell an exchanged initramfs"
	case pathGRUBEFI:
		return "EFI GRUB: PCR 8 and 9 tell an exchanged initramfs"
	}
	return "nobody vouches for the initramfs: verity protects against accidents, not against a thief who edits the disk"
}
