package slots

import "fmt"

// Class says what a failure counts against.
type Class string

// The classes of failures.
const (
	// ImageFailure is the slot's own fault: it is bad, or loses its place.
	ImageFailure Class = "image"
	// EnvironmentFailure (I/O error, late device, no TPM) never counts against
	// a committed slot.
	EnvironmentFailure Class = "environment"
	// StateFailure (unlock refused, volume damaged) never touches a committed
	// slot either; on a slot on trial the try is spent already.
	StateFailure Class = "state"
)

// Reason is the stable code of why a slot failed. It is stored in the boot log
// and in boot.json.
type Reason string

// The reasons of failures.
const (
	Verity             Reason = "verity"
	Signature          Reason = "signature"
	Mount              Reason = "mount"
	Modules            Reason = "modules"
	WrongImage         Reason = "wrong-image"
	KernelNeverReached Reason = "kernel-never-reached-init"
	NoCommit           Reason = "no-commit"
	HealthCheck        Reason = "health-check"   // the name of the check is the detail
	RollbackFloor      Reason = "rollback-floor" // the image is below trust.rollback_floor
	Manual             Reason = "marked-by-hand"
	IOError            Reason = "io-error"
	DeviceMissing      Reason = "device-missing"
	// NotSaved: the try could not be written. While this is on record the trial
	// waits: every attempt would be the first one. try and install forget it.
	NotSaved      Reason = "slots-not-saved"
	WrongKernel   Reason = "wrong-kernel"
	TPM           Reason = "tpm"
	UnlockRefused Reason = "unlock-refused"
	StateDamaged  Reason = "state-damaged"
	InternalError Reason = "internal-error" // the slot's own init panicked
)

// Text is the reason as a person reads it. An unknown code, written by a newer
// version, is its own text.
func (r Reason) Text() string {
	if t, ok := reasonTexts[r]; ok {
		return t
	}
	return string(r)
}

// never written after its declaration
var reasonTexts = map[Reason]string{
	Verity:             "hash tree does not match",
	Signature:          "signature refused",
	Mount:              "root file system cannot be mounted",
	Modules:            "kernel modules missing",
	WrongImage:         "image is not made for this system",
	KernelNeverReached: "kernel never reached init",
	NoCommit:           "no commit",
	HealthCheck:        "health check failed",
	RollbackFloor:      "older than the rollback floor",
	Manual:             "marked bad by hand",
	IOError:            "input/output error",
	DeviceMissing:      "device missing",
	NotSaved:           "the slots could not be saved",
	WrongKernel:        "needs another kernel",
	TPM:                "TPM absent or busy",
	UnlockRefused:      "unlock of the state refused",
	StateDamaged:       "state damaged",
	InternalError:      "internal error of its init",
}

// Failure is why a slot failed the last time.
type Failure struct {
	Slot   string
	Class  Class
	Reason Reason
	Detail string // one line for a person, may be empty
	// Above are the committed slots that the slot stood above when MarkBad put
	// it last, joined by commas: what Standing returned before. Restore gives the
	// place back. Empty when a person wanted it so, or nothing changed.
	Above string
}

// ByHand says that a person or a health check lowered the slot: that it boots
// and verifies well does not speak against it.
func (f Failure) ByHand() bool { return f.Reason == Manual || f.Reason == HealthCheck }

// String describes the failure for a person.
func (f Failure) String() string {
	if f.Detail == "" {
		return fmt.Sprintf("slot %s: %s", f.Slot, f.Reason.Text())
	}
	return fmt.Sprintf("slot %s: %s: %s", f.Slot, f.Reason.Text(), f.Detail)
}
