// Package layout holds all names of sealroot's on the state partition and in the
// encrypted volume, and how small they may be. It makes no system calls.
package layout

const (
	// State is where the running system has the partition.
	State = "/state"
	// Volume is the directory of the partition that the volume is mounted on, and
	// Image the file beside it that holds the volume.
	Volume = "encrypted"
	Image  = "encrypted.img"
	// ImageSubvolume has the file where the partition is btrfs: a subvolume, so that no
	// snapshot of the rest has the file in it.
	ImageSubvolume = ".encrypted"
	// NewImage has the volume that is about to take the place of a prebuilt one.
	NewImage = ".encrypted.img.new"
	// Provisioned is the partition's mark that a volume was made here.
	Provisioned = ".sealroot-provisioned"
	// Escrow is the recovery key, encrypted to the certificates of state.escrow.
	Escrow = ".sealroot-escrow.p7m"
	// Voucher is what a degraded boot tells the next one of whose volume is here.
	Voucher = ".sealroot-voucher"
	// GivenBack is the record of what the volume has given back of its room.
	GivenBack = ".sealroot-given-back"
	// Private is what is no user's business, 0700 root: in the volume, and on the
	// partition, where it is anybody's who has the disk.
	Private = ".sealroot"
)

// ResizeLock is locked by whoever resizes the volume.
const ResizeLock = "/run/sealroot/resize.lock"

// In the volume.
const (
	// RecoveryKey is kept by state.recovery later until it was shown.
	RecoveryKey = Private + "/recovery.key"
	// PendingSuffix ends the name of a kept key whose change a power cut may have ended.
	PendingSuffix = ".new"
	// ManageKey opens a keyslot of its own, with state.manage_key.
	ManageKey = Private + "/manage.key"
	// RollbackFloor is the floor that was asked for last.
	RollbackFloor = Private + "/rollback-floor"
	// LayerList has what the running system changed about the layers.
	LayerList = Private + "/layers"
	// LayersGood and the first digits of an image's root hash name the list that this
	// image came up with last, LayerProofs how far each list is under which image.
	LayersGood  = Private + "/layers-good-"
	LayerProofs = Private + "/layers-proofs"
	// ResetRequest asks for a factory reset at the next boot.
	ResetRequest = Private + "/reset-request"
	// LastRan is the system that ran last, for the hooks of an image.
	LastRan = Private + "/last-ran"
	// Balloons has the files that hold what the volume has given back.
	Balloons = Private + "/balloons"
	// Removed begins the names of folders with what a reset that keeps /home takes away.
	Removed = Private + "/removed-"
	// MachineID is the machine-id(5) of a machine whose /etc does not keep it.
	MachineID = Private + "/machine-id"
	// EtcWork is the work directory of the overlay over /etc.
	EtcWork = Private + "/etc-work"
	// Overlays has upper and work directory of each other overlay, by the escaped path
	// that it is for.
	Overlays = Private + "/overlays"
	// OverlaysRemoved has upper and work directories that nobody needs any more, on
	// their way out.
	OverlaysRemoved = Private + "/overlays-removed"
	// NextRan is what becomes LastRan when the hooks of an image have run.
	NextRan = Private + "/next-ran"
	// EtcKept has what the merge of /etc goes by, for each image.
	EtcKept = Private + "/etc"
)

// EtcPending is there while the new directories of an image, by the identity that
// EtcOwner names, are not all in /var.
func EtcPending(image string) string { return EtcKept + "/" + image + "/pending" }

// EtcTrial is there while the image is on trial that the upper layer of /etc was merged
// for, by the two words of EtcOwner.
func EtcTrial(image, merge string) string {
	return EtcKept + "/" + image + "/merge-" + merge + "/trial"
}

// SlotUpper is where an overlay, by its escaped path, has upper and work directory of
// one slot for the image with this root hash, in lower-case hex.
func SlotUpper(overlay, slot, rootHash string) string {
	return Overlays + "/" + overlay + "/" + slot + "-" + rootHash
}

// BindUpper is where a bind with seed: overlay, by the escaped path that it is for, has
// upper and work directory. No name of SlotUpper is alike.
func BindUpper(overlay, from string) string { return Overlays + "/" + overlay + "/extra/" + from }

// Etc is the upper layer of /etc, and EtcOwner its extended attribute that names the
// image which it was merged for, and the number of the merge.
const (
	Etc      = "etc"
	EtcOwner = "trusted.sealroot.image"
)

// Layers has the images of layers, on the partition: anybody may have written them,
// and their root hashes decide. In the volume it has those that are directories.
const Layers = ".layers"

// LayerImage is the file of a layer with this root hash in lower-case hex: another
// version has a name of its own, so that each slot finds its own.
func LayerImage(name, rootHash string) string {
	return Layers + "/" + name + "-" + rootHash[:min(len(rootHash), 16)] + ".raw"
}

// LayerDevice is the name of the device-mapper device that a layer's image has in a boot.
func LayerDevice(name string) string { return "sealroot-layer-" + name }

// LayerDir is the directory of a layer in the volume.
func LayerDir(name string) string { return Layers + "/" + name }

// Boots has the reports of the last boots, on the partition.
const Boots = Private + "/boots"
