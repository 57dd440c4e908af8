// Package report is the boot report that PID 1 leaves in /run/sealroot/boot.json
// for the real system, and that the command sealroot reads.
package report

import "encoding/json"

// Schema is the version of the report's format.
const Schema = 1

// Report is what PID 1 found, decided and did in one boot. Fields of a newer version
// are ignored.
type Report struct {
	Schema  int    `json:"schema"`
	BootID  string `json:"boot_id"`
	Program string `json:"program"` // version of init
	Name    string `json:"name"`    // configuration: name
	Version string `json:"version"`
	Build   string `json:"build"`

	BootPath string    `json:"boot_path"` // row of the table in README: PathUKISecureBoot and so on
	Disk     Disk      `json:"disk"`
	Slot     Slot      `json:"slot"`
	Root     Root      `json:"root"`
	State    State     `json:"state"`
	FellBack *Fallback `json:"fell_back,omitempty"` // set in the first boot of a slot that another one should have run instead of
	// Disagreement is set when the loader did not load what should run.
	Disagreement *Disagreement `json:"disagreement,omitempty"`
	// CommitDeadlineSeconds is how long a slot on trial, or layers on trial, may run
	// uncommitted; 0 when neither is.
	CommitDeadlineSeconds int `json:"commit_deadline_seconds,omitempty"`
	// Ended is why this boot never reached the real init: such reports are in the
	// boot log only.
	Ended    string    `json:"ended,omitempty"`
	Failures []Failure `json:"failures,omitempty"` // every failure this boot met
	Mounts   []Mount   `json:"mounts"`
	Layers   []Layer   `json:"layers,omitempty"` // from the lowest up
	// LayerList names the list of added layers that this boot goes by (layerlist.ID).
	LayerList string `json:"layer_list,omitempty"`
	// LayerTrial: that list was not tried with this image before.
	LayerTrial bool `json:"layer_list_trial,omitempty"`
	// EtcImage names the image, with its layers, that the upper layer of /etc was merged
	// for; "" when that is not this boot's, or not used.
	EtcImage string `json:"etc_image,omitempty"`
	// EtcInMemory: changes of /etc last for this boot alone, over those of the volume.
	EtcInMemory bool `json:"etc_in_memory,omitempty"`
	// EtcConflicts is what this boot's merge of /etc found changed by the image and by
	// the machine, at most MaxEtcConflicts; each a path and, after a colon, why.
	EtcConflicts []string `json:"etc_conflicts,omitempty"`

	TPM      TPM       `json:"tpm"`
	Floor    *Floor    `json:"rollback_floor,omitempty"` // set with trust.rollback_floor
	Watchdog *Watchdog `json:"watchdog,omitempty"`       // set when the configuration asks for one and the machine has it
	Stages   []Stage   `json:"stages"`
	Warnings []string  `json:"warnings,omitempty"`
	Degraded bool      `json:"degraded,omitempty"`
}

// MaxEtcConflicts is how many conflicts of /etc a report names. `sealroot etc diff` has
// them all.
const MaxEtcConflicts = 20

// Disk is the boot disk.
type Disk struct {
	Device  string `json:"device"` // e.g. /dev/vda
	GUID    string `json:"guid"`
	FoundBy string `json:"found_by"` // FoundByLoader, FoundAlone
	// BootPartition is the UUID that the partition named by the loader has: in the
	// first boot of a disk the loader named another one, see boot.new_guids.
	BootPartition string `json:"boot_partition,omitempty"`
}

// Slot is the slot that runs.
type Slot struct {
	Name        string `json:"name"`
	Loaded      string `json:"loaded"` // slot whose kernel and initramfs run; "" when nobody told, "?" when it is none's
	Reason      string `json:"reason"` // why this slot: committed, trial, fallback, last-resort
	Trial       bool   `json:"trial"`
	Priority    int    `json:"priority"`
	Successful  bool   `json:"successful"`
	TriesBefore int    `json:"tries_before"`
	TriesAfter  int    `json:"tries_after"`
}

// Root is the verified image: a root file system, or /usr.
type Root struct {
	Role            string `json:"role,omitempty"` // root or usr
	RootHash        string `json:"root_hash"`
	HashSource      string `json:"hash_source"` // configuration, or signature partition: by Certificate
	Certificate     string `json:"certificate,omitempty"`
	Filesystem      string `json:"filesystem"`
	ImageID         string `json:"image_id"`
	ImageVersion    string `json:"image_version"`
	SecurityVersion int    `json:"security_version"`
	KernelRelease   string `json:"kernel_release"`
}

// State is how the encrypted volume was found.
type State struct {
	// Unlocked: UnlockedTPM2 and so on.
	Unlocked      string   `json:"unlocked"`
	Keyslot       int      `json:"keyslot"`
	Token         int      `json:"token"` // -1 when none was used
	UUID          string   `json:"uuid,omitempty"`
	Attempts      []string `json:"attempts,omitempty"` // what was tried before and why it failed
	Recovery      string   `json:"recovery,omitempty"` // RecoveryNone, RecoveryEnrolled, RecoveryEscrowed, RecoveryWaiting
	ReservedBytes int64    `json:"reserved_bytes,omitempty"`
	// ReadOnly says why this boot had to leave the volume read-only; empty: it did not.
	ReadOnly string `json:"read_only,omitempty"`
	// Pinned tells whether the TPM has this volume for the machine's: yes; anew,
	// since this boot, for a person opened it; no. Empty where the state is not
	// sealed to the TPM, or is not open.
	Pinned string `json:"pinned,omitempty"`
	// Reset says who had the right to a factory reset that this boot has finished:
	// running-system, key, physical-presence; or ResetKeptHome. Empty without one.
	Reset string `json:"reset,omitempty"`
	// ResetBegun says the same of the boot that destroyed the volume and restarted,
	// whose report is in the boot log.
	ResetBegun string `json:"reset_begun,omitempty"`
}

// Fallback says that another slot should have run.
type Fallback struct {
	From   string `json:"from"`
	Reason string `json:"reason"`
	Class  string `json:"class"`
}

// Disagreement says what the boot loader loaded and what the slots say.
type Disagreement struct {
	Loaded string `json:"loaded"` // slot whose kernel runs, "?" when it is none's
	Wanted string `json:"wanted"` // slot whose kernel should run
	Why    string `json:"why"`
}

// Failure is one thing that went wrong.
type Failure struct {
	Stage string `json:"stage"`
	Slot  string `json:"slot,omitempty"`
	Class string `json:"class"` // image, environment, state
	Error string `json:"error"`
}

// Mount is one mount that PID 1 made in the new root.
type Mount struct {
	What    string   `json:"what"`
	Where   string   `json:"where"`
	Type    string   `json:"type"`
	Options []string `json:"options,omitempty"`
}

// Layer is a tree over the root.
type Layer struct {
	Name     string `json:"name"`
	RootHash string `json:"root_hash,omitempty"` // none for a directory
	Version  string `json:"version,omitempty"`
	LeftOut  string `json:"left_out,omitempty"` // why it is not there
	// Absent: left out by design, a directory that nobody has made, or not for this system.
	Absent bool `json:"absent,omitempty"`
	// Source is LayerAdded for one that the configuration does not name.
	Source string `json:"source,omitempty"`
	// Measured: one that was added was measured, behind those of the configuration.
	Measured bool `json:"measured,omitempty"`
}

// TPM is what was measured and closed.
type TPM struct {
	Present bool     `json:"present"`
	Banks   []string `json:"banks,omitempty"`
	Capped  []int    `json:"capped,omitempty"` // PCRs extended so that no second unseal works
	Policy  string   `json:"policy,omitempty"`
	PCRs    []int    `json:"pcrs,omitempty"`
	PIN     bool     `json:"pin,omitempty"` // the TPM wanted a PIN too
	// RecordKeys are those of state.tpm2.previous_public_keys, by name, that records of
	// the TPM, of the volume or the rollback floor, still lie under.
	RecordKeys []string `json:"record_keys,omitempty"`
}

// Floor is the rollback floor: images with a lower security version do not boot.
type Floor struct {
	Value int `json:"value"`
	// Known: the TPM has it, and this machine's initramfs wrote it. Without it
	// the TPM does not unlock the state.
	Known bool `json:"known"`
}

// Stage is the time one stage took, in microseconds since /init began.
type Stage struct {
	Name  string `json:"name"`
	Start int64  `json:"start_us"`
	End   int64  `json:"end_us"`
}

// Encode returns the report as indented JSON with a final newline.
func (r *Report) Encode() ([]byte, error) {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(b, '\n'), nil
}

// Line returns the report as one line of JSON, without the mounts, which a boot
// that came to its end has no more.
func (r *Report) Line() ([]byte, error) {
	short := *r
	short.Mounts = nil
	return json.Marshal(&short)
}
