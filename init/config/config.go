// Package config is the configuration that an image builder writes as YAML,
// mkinitramfs checks and stores as strict JSON in the initramfs, and PID 1
// reads there. The initramfs is measured or signed; what stands here is
// therefore policy, and nothing that comes from a disk or from the kernel
// command line may weaken it.
package config

import "slices"

// Path is where the configuration lies in the initramfs.
const Path = "/etc/sealroot/config.json"

// Config is one image's configuration. Keys are the same in YAML and JSON, and
// in both every key is known, spelled exactly and given once. WithDefaults says
// what a missing key means, Validate what is accepted. A value of this type
// that Parse or yamlconfig returned has passed both.
type Config struct {
	// Name is the product: the verified root's os-release IMAGE_ID must equal it.
	Name string `json:"name"`
	// Version of the image, shown to people; it decides nothing.
	Version string `json:"version"`
	// SecurityVersion is a small integer that rollback protection compares; 0
	// when the builder does not use it.
	SecurityVersion int `json:"security_version,omitempty"`
	// Build is "production" or "development".
	Build Build `json:"build"`

	Boot   Boot    `json:"boot"`
	Root   Root    `json:"root"`
	Trust  Trust   `json:"trust"`
	State  State   `json:"state"`
	Etc    EtcMode `json:"etc,omitempty"` // default overlay
	Binds  Binds   `json:"binds"`
	Layers []Layer `json:"layers,omitempty"` // from the lowest to the topmost
	// LayersAllowed are the names of layers that the running system may add over them,
	// signed for Trust.Layer: a name, or the beginning of one and "*". Default: none.
	LayersAllowed []string `json:"layers_allowed,omitempty"`
	Modules       Modules  `json:"modules"`
	// Kernel is filled in by mkinitramfs (Embed) and refused in YAML.
	Kernel *Kernel `json:"kernel,omitempty"`

	// Overlays are directories of the image that are made writable.
	Overlays []Overlay `json:"overlays,omitempty"`
}

// Build tells a production image from a development one.
type Build string

// The two builds.
const (
	Production  Build = "production"
	Development Build = "development"
)

// Boot says how the machine is started and how boots are counted.
type Boot struct {
	Loader Loader `json:"loader"`
	Store  Store  `json:"store"` // default gpt
	// Tries is how often a slot on trial is started before it is given up:
	// 1 to 15, default 3.
	Tries int `json:"tries"`
	// Recount also counts the boots of a committed slot: each one spends a try, a
	// commit refills them to Tries, and a slot without tries comes last.
	Recount bool `json:"recount,omitempty"`
	// CommitDeadline is how long a system on trial may run uncommitted; 10
	// seconds to 24 hours, default 10m.
	CommitDeadline Duration `json:"commit_deadline,omitempty"`
	// EagerCheck has a slot on trial read as a whole, through dm-verity, before
	// it is committed.
	EagerCheck bool `json:"eager_check,omitempty"`
	// Replicate says after what the running system makes the other slot a verified
	// copy of the running one: ReplicateFailedInstall, ReplicateCommit. Default: never.
	Replicate []string `json:"replicate,omitempty"`
	Watchdog  Watchdog `json:"watchdog"`
	// NewGUIDs is NewGUIDsFirstBoot or NewGUIDsNever: whether the first boot of a
	// disk gives it and its partitions new random GUIDs. Default: first-boot,
	// never where something rests on them.
	NewGUIDs string `json:"new_guids,omitempty"`
}

// The values of Boot.NewGUIDs.
const (
	NewGUIDsFirstBoot = "first-boot"
	NewGUIDsNever     = "never"
)

// The values of Boot.Replicate.
const (
	ReplicateFailedInstall = "failed-install" // an installation left the slot unbootable
	ReplicateCommit        = "commit"         // the running slot was committed
)

// Loader is the program that loads the kernel.
type Loader string

// The loaders.
const (
	LoaderGRUB        Loader = "grub"
	LoaderUKI         Loader = "uki"
	LoaderSystemdBoot Loader = "systemd-boot"
)

// Store is where slot state is kept.
type Store string

// The stores.
const (
	StoreGPT          Store = "gpt"
	StoreGrubenvDarch Store = "grubenv-darch"
	StoreGrubenvRAUC  Store = "grubenv-rauc"
	StoreBLS          Store = "bls"
	StoreEFI          Store = "efi"
	StoreFixed        Store = "fixed"
)

// Root says what kind of root a slot holds.
type Root struct {
	Source     string `json:"source"`     // SourceVerity (default) | SourceUsrVerity
	Filesystem string `json:"filesystem"` // squashfs (default) | erofs
	// Partitions is how the partitions of a slot are found on the boot disk:
	// PartitionsLabels (default), PartitionsDiscoverable or PartitionsPartUUIDs.
	Partitions string `json:"partitions,omitempty"`
	// PartUUIDs are what PartitionsPartUUIDs finds them by.
	PartUUIDs    PartUUIDs `json:"partuuids,omitzero"`
	OnCorruption string    `json:"on_corruption"` // eio (default) | restart | panic; as dm.OnCorruption
	Verity       Verity    `json:"verity"`
	// Hash ties the initramfs to one root: its root hash in lower-case hex. No
	// signature is asked then. In YAML also HashEmbed, which mkinitramfs replaces.
	Hash string `json:"hash,omitempty"`
}

// The values of Root.Partitions.
const (
	// PartitionsLabels: root-a, root-a-verity, root-a-verity-sig, or usr-a and so on.
	PartitionsLabels = "labels"
	// PartitionsDiscoverable: by UUIDs that are halves of the root hash, as
	// systemd-repart and mkosi make disks.
	PartitionsDiscoverable = "discoverable"
	PartitionsPartUUIDs    = "partuuids" // by Root.PartUUIDs
)

// Verity says how an image's hash tree is made, and where it lies. Hash and block
// sizes are the builder's: on the disk the superblock names them, and PID 1
// takes each that is legal.
type Verity struct {
	Algorithm     string `json:"algorithm,omitempty"`       // sha256 (default) | sha512
	DataBlockSize int    `json:"data_block_size,omitempty"` // bytes, default 4096
	HashBlockSize int    `json:"hash_block_size,omitempty"` // bytes, default 4096
	// TreeAtMiB is 0 for a tree in a partition of its own; else where in the
	// root's partition, behind the image, its superblock lies.
	TreeAtMiB int `json:"tree_at_mib,omitempty"`
	// FECRoots is how many parity bytes 255 bytes get, 2 to 24; 0 for none.
	FECRoots int `json:"fec_roots,omitempty"`
}

// TreeAt is TreeAtMiB in bytes.
func (v Verity) TreeAt() int64 { return int64(v.TreeAtMiB) << 20 }

// CmdlineMeasured as Trust.Cmdline honours roothash= (usrhash= for a /usr) and init=
// of the command line in the UKI.
const CmdlineMeasured = "measured"

// HashEmbed as Root.Hash means the image that the initramfs is built with.
const HashEmbed = "embed"

// Trust names certificates and what the command line may say.
type Trust struct {
	// Root, Usr, Layer and Dev are certificate file names, one list for each role:
	// in YAML relative to the YAML file, in JSON the base name below
	// /etc/verity.d/<role>/. Those of Dev vouch for the images of slots in
	// development builds.
	Root    []string `json:"root,omitempty"`
	Usr     []string `json:"usr,omitempty"`
	Layer   []string `json:"layer,omitempty"`
	Dev     []string `json:"dev,omitempty"`
	Cmdline string   `json:"cmdline,omitempty"` // ignore (default) | CmdlineMeasured
	// RollbackFloor refuses roots whose security version is below the floor that
	// the TPM keeps.
	RollbackFloor bool `json:"rollback_floor,omitempty"`
	// MeasurePCR is the PCR for role, root hash and security version of the root
	// that runs: 13 by default, or 8, 12 or 14 where nobody else uses them.
	MeasurePCR int `json:"measure_pcr,omitempty"`
}

// State describes the encrypted volume on the state partition.
type State struct {
	Create string `json:"create"` // first-boot | never | none: everything is in memory
	// Unlock lists the accepted means, tried in the order given: UnlockTPM2,
	// UnlockKeyFile, UnlockRecoveryKey, UnlockPassphrase; or UnlockPlain alone.
	Unlock []string `json:"unlock,omitempty"`
	TPM2   TPM2     `json:"tpm2"`
	// KeyFile says where the key of UnlockKeyFile lies.
	KeyFile KeyFile `json:"key_file,omitzero"`
	// Recovery is show | escrow | later | none. A production build must say it;
	// a development build that does not gets later or, without tpm2 and
	// recovery-key among Unlock, none.
	Recovery string `json:"recovery"`
	// Escrow lists the certificate files that `recovery: escrow` encrypts the key
	// to: in YAML relative to the YAML file, in JSON the base name below EscrowDir.
	Escrow []string `json:"escrow,omitempty"`
	// ManageKey keeps a key inside the volume by which root on the running system
	// changes keyslots, and can carry off a lasting key.
	ManageKey bool `json:"manage_key,omitempty"`
	// Fsck is FsckNo (default) or FsckAuto: a file system with errors is checked
	// before it is mounted, by the root's own e2fsck.
	Fsck string `json:"fsck,omitempty"`
	// OnFailure is what happens, in order, when the state cannot be unlocked:
	// prompt, degraded, halt, reboot-with-backoff. Behind the last one the
	// machine restarts, after a pause that grows. Default: prompt when Unlock holds something to type, then halt.
	OnFailure []string `json:"on_failure,omitempty"`
	// DegradedUnlock lets root of a degraded boot say which volume the next boot
	// unlocks by itself.
	DegradedUnlock bool   `json:"degraded_unlock,omitempty"`
	Filesystem     string `json:"filesystem,omitempty"` // ext4 (default) | btrfs
	// PartitionFilesystem is that of the state partition itself, around the volume: ext4
	// (default) or btrfs.
	PartitionFilesystem string `json:"partition_filesystem,omitempty"`
	// AutoResize is what the running system's service does to the volume: AutoResizeOff
	// (default), AutoResizeGrow or AutoResizeBoth.
	AutoResize string `json:"auto_resize,omitempty"`
	// Reset says who may ask for a factory reset: ResetAuthenticated (default),
	// ResetPresence or ResetNever.
	Reset string `json:"reset,omitempty"`
	// Device is how large the file and the devices of the volume are: DeviceOversized
	// (default) or DeviceClassic.
	Device string `json:"device,omitempty"`
}

// The values of State.Reset.
const (
	// ResetAuthenticated: root on the running system, or a person at the console who
	// also gives a key of the volume.
	ResetAuthenticated = "authenticated"
	ResetPresence      = "physical-presence" // the person needs no key
	ResetNever         = "never"
)

// What may stand in State.Unlock, State.Create, State.Recovery, State.Fsck, State.AutoResize, State.Device and State.OnFailure.
const (
	UnlockTPM2        = "tpm2"
	UnlockRecoveryKey = "recovery-key"
	UnlockPassphrase  = "passphrase"
	UnlockKeyFile     = "key-file"
	// UnlockPlain asks for a state that is not encrypted.
	UnlockPlain = "plain"

	CreateFirstBoot = "first-boot"
	CreateNever     = "never"
	CreateNone      = "none"

	RecoveryShow   = "show"
	RecoveryLater  = "later"
	RecoveryEscrow = "escrow"
	RecoveryNone   = "none"

	FsckNo   = "no"
	FsckAuto = "auto"

	AutoResizeOff  = "off"
	AutoResizeGrow = "grow" // it takes free space of the state partition, and keeps it
	AutoResizeBoth = "both" // it gives back, too

	DeviceOversized = "oversized" // larger than what is reserved
	DeviceClassic   = "classic"   // exactly as large as the file system

	FailurePrompt   = "prompt"
	FailureDegraded = "degraded"
	FailureHalt     = "halt"
	FailureReboot   = "reboot-with-backoff"
)

// The policies of TPM2.Policy.
const (
	PolicySignedPCR11And7 = "signed-pcr11+7"
	PolicySignedPCR11And4 = "signed-pcr11+4"
	PolicyPCRs            = "pcrs"
)

// KeyFile is a key on a medium of its own: whoever has that has the state.
type KeyFile struct {
	// Partition is the UUID of a GPT partition, not on the boot disk.
	Partition string `json:"partition,omitempty"`
	// Path of a file of MinKeyFile to MaxKeyFile bytes on it, without leading slash.
	Path       string `json:"path,omitempty"`
	Filesystem string `json:"filesystem,omitempty"` // vfat (default) | ext4
	// Without Path the key is Size bytes of the partition from byte Offset on.
	Offset int `json:"offset,omitempty"`
	Size   int `json:"size,omitempty"`
}

// The sizes of a key file, in bytes.
const (
	MinKeyFile = 32
	MaxKeyFile = 8 << 10
)

// TPM2 is the policy that the state is sealed under.
type TPM2 struct {
	Policy string `json:"policy,omitempty"` // one of the Policy constants
	// PCRs are the literal PCRs of policy "pcrs", 0 to 15; PCR 15 at zero is
	// always added to them, so that a list may be empty.
	PCRs []int `json:"pcrs,omitempty"`
	// PublicKey is the file of the key that signed policies are checked with
	// (PEM): in YAML relative to the YAML file, default pcr.pub; in the
	// initramfs it lies at PublicKeyPath.
	PublicKey string `json:"public_key,omitempty"`
	// PreviousKeys are files of keys that signed before, at most 4, and still sign
	// this image: what was sealed or written under their policies counts. In YAML as
	// PublicKey, in JSON the base name below PreviousKeysDir.
	PreviousKeys []string `json:"previous_public_keys,omitempty"`
	// PIN has the TPM ask for a PIN too, at every boot.
	PIN bool `json:"pin,omitempty"`
	// AllowUncapped accepts tokens, made by others, whose policy holds no PCR
	// that init extends before hand-over.
	AllowUncapped bool `json:"allow_uncapped,omitempty"`
	// WithoutMeasuredBoot must be AcceptTheft to seal to the TPM on a boot path
	// where nobody vouches for the initramfs (BIOS GRUB, a direct kernel).
	WithoutMeasuredBoot string `json:"tpm_without_measured_boot,omitempty"`
}

// PublicKeyPath is where the PCR policy key lies in the initramfs.
const PublicKeyPath = "/etc/sealroot/pcr-public.pem"

// PreviousKeysDir holds those of TPM2.PreviousKeys in the initramfs.
const PreviousKeysDir = "/etc/sealroot/pcr-previous"

// EscrowDir holds the certificates of State.Escrow in the initramfs.
const EscrowDir = "/etc/sealroot/escrow"

// AcceptTheft is the named exception of TPM2.WithoutMeasuredBoot.
const AcceptTheft = "accept-theft-by-disk-edit"

// EtcMode says what /etc is.
type EtcMode string

// The three kinds of /etc.
const (
	EtcOverlay  EtcMode = "overlay"
	EtcVolatile EtcMode = "volatile"
	EtcReadOnly EtcMode = "read-only"
)

// Binds lists what is bound besides the directories found by name.
type Binds struct {
	// Unencrypted lists the directories of the root, such as /home, that may
	// come from the unencrypted side; empty by default.
	Unencrypted []string    `json:"unencrypted,omitempty"`
	Extra       []ExtraBind `json:"extra,omitempty"`
	// Tmpfs are empty directories in memory, and Symlinks links that are made where a
	// boot can write; both after all else.
	Tmpfs    []Tmpfs   `json:"tmpfs,omitempty"`
	Symlinks []Symlink `json:"symlinks,omitempty"`
}

// Tmpfs is one directory in memory.
type Tmpfs struct {
	To      string   `json:"to"`                 // in the root: /srv/scratch
	SizeMiB int      `json:"size_mib,omitempty"` // 0: half of the memory, as tmpfs(5) has it
	Mode    string   `json:"mode,omitempty"`     // octal, default 0755
	Options []string `json:"options,omitempty"`  // as those of ExtraBind; nosuid and nodev always
}

// Symlink is one link.
type Symlink struct {
	At string `json:"at"` // in the root: /srv/www
	To string `json:"to"`
}

// ExtraBind is one explicit bind.
type ExtraBind struct {
	From    string   `json:"from"`              // below /state, without leading slash: encrypted/db
	To      string   `json:"to"`                // in the root: /var/lib/db
	Options []string `json:"options,omitempty"` // nosuid, nodev, noexec, nosymfollow, ro, noatime
	// Seed says what From begins with: SeedNone (default), SeedOnce, SeedTmpfiles or
	// SeedOverlay.
	Seed string `json:"seed,omitempty"`
}

// The values of ExtraBind.Seed.
const (
	SeedNone     = "none"
	SeedOnce     = "once"     // a copy of what the image has at To, when it is made
	SeedTmpfiles = "tmpfiles" // empty, as the image's directory is; the root's tmpfiles.d fills it
	// SeedOverlay has changes over what the image has at To, each image its own: From is
	// a name for them, and no directory that a bind shows.
	SeedOverlay = "overlay"
)

// Overlay is a directory of the image that is made writable: what the image has there
// stays visible, also that of a later image.
type Overlay struct {
	Path  string `json:"path"`  // such as /opt, not in /etc or /home, nor /var itself; or WholeRoot, in memory
	Upper string `json:"upper"` // where changes go: UpperEncrypted, UpperPerSlot, UpperMemory
}

// WholeRoot is the path of an overlay over the root as it is with its layers.
const WholeRoot = "/"

// RootInMemory tells whether changes to the root itself go to memory.
func (c *Config) RootInMemory() bool {
	return slices.ContainsFunc(c.Overlays, func(o Overlay) bool { return o.Path == WholeRoot })
}

// DirectoryOverlays are the others.
func (c *Config) DirectoryOverlays() []Overlay {
	return slices.DeleteFunc(slices.Clone(c.Overlays), func(o Overlay) bool { return o.Path == WholeRoot })
}

// The values of Overlay.Upper.
const (
	UpperEncrypted = "encrypted" // on the volume, for all slots
	UpperPerSlot   = "per-slot"  // on the volume, for one slot and the image in it
	UpperMemory    = "memory"    // gone with the next restart
)

// Layer is a directory tree over the root, read-only as that is.
type Layer struct {
	// Name is that of the layer's extension-release file: 1 to 32 of a-z, 0-9 and -.
	Name string `json:"name"`
	From string `json:"from"` // LayerFromState (default) | LayerFromPartition | LayerFromVolume
	// Verity is LayerVerified (default), or LayerUnverified for a directory in the
	// encrypted volume.
	Verity string `json:"verity,omitempty"`
	// Hash is the root hash of the layer's image in lower-case hex. In YAML Image may
	// stand for it: the image, relative to the YAML file, that mkinitramfs reads it from.
	Hash       string `json:"hash,omitempty"`
	Image      string `json:"image,omitempty"`
	Filesystem string `json:"filesystem,omitempty"` // squashfs | erofs; default that of the root
	OnFailure  string `json:"on_failure,omitempty"` // LayerStop (default) | LayerSkip (with LayerFromVolume always)
	// Build is Development for a layer of development builds only: a production build of
	// the same configuration has no such layer.
	Build Build `json:"build,omitempty"`
}

// The values of Layer.
const (
	LayerFromState     = "state"     // an image on the state partition
	LayerFromPartition = "partition" // one in partitions of the slot, beside its root's
	LayerFromVolume    = "encrypted" // a directory in the encrypted volume

	LayerVerified   = "required"
	LayerUnverified = "none"

	// LayerStop makes a layer that cannot be used the image's failure, LayerSkip goes
	// on without it.
	LayerStop = "stop"
	LayerSkip = "skip"
)

// Modules says which kernel modules the initramfs holds beyond what the other
// keys need.
type Modules struct {
	Sets []string `json:"sets,omitempty"` // virtio, nvme, usb, ahci, tpm, watchdog
	Add  []string `json:"add,omitempty"`  // single modules by name
}

// Kernel is what mkinitramfs knew of the kernel that the initramfs was made for.
type Kernel struct {
	Release string `json:"release"`
	// Cmdline is the line embedded in the UKI, byte for byte, for
	// trust.cmdline: measured.
	Cmdline string `json:"cmdline,omitempty"`
	// Data and Hash are the partitions that this line names, as gpt.Wanted has them,
	// with PartitionsDiscoverable: hints, for what is verified all the same.
	Data string `json:"data,omitempty"`
	Hash string `json:"hash,omitempty"`
}
