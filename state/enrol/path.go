package enrol

import "sealroot/init/report"

// Path is a row of the table of boot paths in DESIGN and README: who vouches for
// the initramfs. Its text is report.Report.BootPath.
type Path string

// The boot paths, with the PCRs that tell an exchanged initramfs.
const (
	UKISecureBoot Path = report.PathUKISecureBoot // firmware; PCR 7 and 11
	UKI           Path = report.PathUKI           // PCR 4 and 11
	GRUBEFI       Path = report.PathGRUBEFI       // PCR 8 and 9
	Unmeasured    Path = report.PathUnmeasured    // nobody
	Kexec         Path = report.PathKexec         // nobody
)

// Describe is the row in words, for the console and status.
func (p Path) Describe() string {
	switch p {
	case UKISecureBoot:
		return "UKI with Secure Boot: the firmware vouches for the initramfs"
	case UKI:
		return "UKI without Secure Boot: PCR 4 and 11 tell an exchanged initramfs"
	case GRUBEFI:
		return "EFI GRUB: PCR 8 and 9 tell an exchanged initramfs"
	case Kexec:
		return "started by kexec: nobody vouches for the initramfs, and the TPM is closed until the machine restarts"
	}
	return "nobody vouches for the initramfs: verity protects against accidents, not against a thief who edits the disk"
}
