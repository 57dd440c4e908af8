package report

// Dir is the folder of what PID 1 leaves for the running system, and of what the
// command sealroot keeps until the machine stops.
const Dir = "/run/sealroot"

const (
	// Path is where PID 1 leaves the report.
	Path = Dir + "/boot.json"
	// Config is the configuration, byte for byte as the boot path vouched for.
	Config = Dir + "/config.json"
	// RootCertificates is the folder with the certificates that PID 1 trusts for
	// the images of the slots, roots or /usr.
	RootCertificates = Dir + "/verity.d/root"
	// LayerCertificates is the folder with those for layers that the running system
	// adds.
	LayerCertificates = Dir + "/verity.d/layer"
	// PCRPublicKey is the key of the PCR policy, as the boot path vouched for it; the
	// one in a token on the disk is anybody's.
	PCRPublicKey = Dir + "/pcr-public.pem"
	// PCRPreviousKeys is the folder with the keys before it that still count.
	PCRPreviousKeys = Dir + "/pcr-previous"
	// EscrowCertificates is the folder with those that the recovery key is encrypted to.
	EscrowCertificates = Dir + "/escrow"
	// Trial and FellBack are files, so that a systemd unit can have them as a
	// condition: the slot that runs is on trial; another one should have run.
	Trial    = Dir + "/trial"
	FellBack = Dir + "/fell-back"
	// Refused says why the last commit of this boot was refused.
	Refused = Dir + "/refused"
	// LayersTrial is Trial for what was changed about the layers, on a slot that is not.
	LayersTrial = Dir + "/layers-trial"
	// LayersFailed says why what was changed about the layers is not to be kept.
	LayersFailed = Dir + "/layers-failed"
	// Degraded says why the state is not open for writing.
	Degraded = Dir + "/degraded"
	// Voucher is for root, to tell the next boot which volume is this machine's.
	Voucher = Dir + "/voucher"
	// EagerCheck names the device of the root, which sealroot check is to read.
	EagerCheck = Dir + "/eager-check"
	// ESP is where the EFI system partition is mounted while it is needed.
	ESP = Dir + "/esp"
	// Lock is the file that commands lock which write.
	Lock = Dir + "/lock"
)
