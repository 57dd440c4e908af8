package report

// Words of Report.BootPath: who vouches for the initramfs.
const (
	PathUKISecureBoot = "uki-secure-boot" // firmware; PCR 7 and 11
	PathUKI           = "uki"             // PCR 4 and 11
	PathGRUBEFI       = "grub-efi"        // PCR 8 and 9
	PathUnmeasured    = "unmeasured"      // nobody
	PathKexec         = "kexec"           // nobody, and the TPM was closed by the boot before
)

// Words of Disk.FoundBy.
const (
	FoundByLoader = "loader"         // its partition UUID
	FoundAlone    = "only-candidate" // it is the only disk with slots
)

// LayerAdded is the word of Layer.Source.
const LayerAdded = "added"

// LayerOff as Layer.LeftOut is of a layer that sealroot layer override turned off.
const LayerOff = "turned off on this machine"

// Words of State.Unlocked. The first five are those of the configuration
// (state.unlock), as is UnlockedNone (state.create).
const (
	UnlockedTPM2        = "tpm2"
	UnlockedRecoveryKey = "recovery-key"
	UnlockedPassphrase  = "passphrase"
	UnlockedKeyFile     = "key-file"
	UnlockedPlain       = "plain"    // not encrypted
	UnlockedNone        = "none"     // no volume: everything is in memory
	UnlockedCreated     = "created"  // the volume was made in this boot
	UnlockedDegraded    = "degraded" // not open; everything is in memory
)

// Words of State.Recovery.
const (
	RecoveryNone     = "none"
	RecoveryEnrolled = "enrolled"
	RecoveryEscrowed = "escrowed"            // and encrypted to certificates, beside the volume
	RecoveryWaiting  = "waiting-to-be-shown" // and the key is kept in the volume
)

// ResetKeptHome is the word of State.Reset after a reset that root on the running
// system has asked for and that has left the volume and /home; else it says who had
// the right (state.ResetBy).
const ResetKeptHome = "kept-home"

// Words of State.Pinned.
const (
	PinnedYes  = "yes"
	PinnedAnew = "anew" // in this boot
	PinnedNo   = "no"   // the TPM has another volume for this machine's, or none
)
