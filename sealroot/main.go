// Command sealroot is for the running system: it tells how the machine was booted
// and what is mounted why; keeps the slot that runs, installs images into the other
// one, with layers over them, and puts that on trial; unlocks, resizes, repairs and
// resets the encrypted state, and changes its keys. Its service divides the state
// partition between the volume and what lies beside it. A part of it acts on a disk,
// or a disk's image, of another machine. verbs.go has all of it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/mount/dm"
	"sealroot/sealroot/boots"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/checks"
	"sealroot/sealroot/etc"
	"sealroot/sealroot/exit"
	"sealroot/sealroot/hooks"
	"sealroot/sealroot/install"
	"sealroot/sealroot/kexec"
	"sealroot/sealroot/layers"
	"sealroot/sealroot/machine"
	"sealroot/sealroot/prebuilt"
	"sealroot/sealroot/recovery"
	"sealroot/sealroot/secret"
	"sealroot/sealroot/sharing"
	"sealroot/sealroot/volume"
	"sealroot/slots"
	"sealroot/slots/bootlog"
	"sealroot/slots/gpt"
	"sealroot/state"
	"sealroot/state/enrol"
	"sealroot/state/layout"
	"sealroot/state/luks2"
	"sealroot/state/resize"
	"sealroot/state/tpm"
)

const exitText = `Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused or nothing to do it
with, 4 not root, 5 this system was not booted by sealroot, 6 what was checked
or verified is bad.
`

// Exit statuses.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitRefused
	exitNotRoot
	exitNotBooted
	exitBad
)

var (
	errUsage = errors.New("wrong usage")
	// errSaid: wrong usage, and the flag package has said so.
	errSaid      = errors.New("wrong usage, explained")
	errNotRoot   = errors.New("only root may do this; use sudo")
	errNotBooted = errors.New("this system was not booted by sealroot")
	// errBad: what was checked or verified is bad.
	errBad = errors.New("not good")
)

// Machine is a boot disk as the commands need it.
type Machine interface {
	Slots() ([]slots.Slot, error)
	Record() (bootlog.Record, error)
	UpdateRecord(change func(bootlog.Record) (bootlog.Record, error)) error
	// Versions are those of the slots' images, by slot; hints.
	Versions() (map[string]string, error)
	// Kept says where the slots are kept and who starts them.
	Kept() (store, loader string)
	// Loaded is the slot whose kernel runs; "" when nobody told.
	Loaded() (string, error)
	// Refill is how many tries a commit gives; 0 without boot.recount.
	Refill() int
	// BootSet is what the commands that change slots act on; changed is told of
	// each place whose default was changed.
	BootSet(changed func(place, slot string)) (bootset.Machine, error)
	Close() error
}

// Where says which boot disk is meant.
type Where struct {
	Report report.Report // of this machine's boot
	Disk   string        // a disk that no machine runs from now; "" for this machine's
	Store  string        // with Disk: where its slots are kept; "" to find out
	Write  bool          // it will be changed, and other commands that write are locked out
}

// Env is what the commands know of the world beside their arguments.
type Env struct {
	UID      int
	Stdin    io.Reader
	Terminal bool   // a person sits at standard input and output
	Report   string // path of boot.json
	Key      string // path of the kept recovery key
	Escrow   string // folder with the certificates of the escrow
	Lock     string // file that commands which write lock
	State    string // where the state partition is mounted
	Trial    string // file that is there when this boot is on trial
	// LayersTrial is Trial for layers on a slot that is not.
	LayersTrial string
	// LayersFailed says why layers on trial are not to be kept.
	LayersFailed string
	Refused      string   // file that says why a commit was refused
	Eager        string   // file that names the device of the root when all of it is to be read
	Checks       []string // folders of health checks, the one that wins first
	Hooks        string   // folder of the image's hooks
	TPM          string   // the TPM in sysfs
	Config       string   // path of the configuration of this boot
	PCRKey       string   // path of its PCR policy key
	// LayerCerts is the folder of the certificates for layers that are added, and
	// ShowLayer makes the tree of such a one visible. Root is the root directory.
	LayerCerts string
	ShowLayer  layers.Mounter
	Root       string
	Voucher    string // path of what a degraded boot leaves for state unlock
	PCRKeys    string // folder of the keys before it that still count
	Meminfo    string // how much memory there is
	// Limits is the file with the limits of the volume's size, Decisions the one with
	// what was decided last, and Volume opens the volume to resize it, whose devices are
	// of that size; key may be nil.
	Limits    string
	Decisions string
	Volume    func(device state.DeviceSize, key resize.Key) (Resizer, error)
	// Devices and Mounter open the volume of a degraded boot.
	Devices state.Devices
	Mounter mount.Mounter
	// OpenTPM opens the TPM, TTY the terminal at which a person can be asked.
	OpenTPM func(context.Context) (*tpm.TPM, error)
	TTY     func() (*os.File, error)
	Version string
	Open    func(Where) (Machine, error)
	Reboot  func(context.Context) error
	// Kexec loads a kernel to be started by the one that runs, StartKexec starts it,
	// UnloadKexec forgets it. KexecLoaded is the path of what tells whether there is one.
	Kexec       func(kexec.Kernel) error
	StartKexec  func(context.Context) error
	UnloadKexec func() error
	KexecLoaded string
	// Layer is the device of a layer in this boot.
	Layer func(name string) (device string, err error)
	// End ends the machine at once, from memory. Systemd is there where systemd is PID 1
	// (sd_booted(3)), which does that itself.
	End     func(exit.Ending) error
	Systemd string
}

// version is set by the linker.
var version = "devel"

func main() {
	if exit.Entered() {
		exit.Main(os.Args[1:])
	}
	ctx, stop := untilStopped()
	code := Main(ctx, os.Args[1:], os.Stdout, os.Stderr, Env{
		UID:      os.Geteuid(),
		Stdin:    os.Stdin,
		Terminal: isTerminal(os.Stdin) && isTerminal(os.Stdout),
		Report:   report.Path,
		Key:      recovery.File,
		Escrow:   report.EscrowCertificates,
		Lock:     report.Lock,
		State:    boots.State,
		Trial:    report.Trial, LayersTrial: report.LayersTrial, LayersFailed: report.LayersFailed,
		Refused:    report.Refused,
		Eager:      report.EagerCheck,
		Checks:     []string{"/etc/sealroot/checks.d", "/usr/lib/sealroot/checks.d"},
		Hooks:      hooks.Dir,
		TPM:        "/sys/class/tpm/tpm0",
		Config:     report.Config,
		PCRKey:     report.PCRPublicKey,
		LayerCerts: report.LayerCertificates,
		ShowLayer:  layers.Show,
		Root:       "/",
		Voucher:    report.Voucher,
		PCRKeys:    report.PCRPreviousKeys,
		Meminfo:    "/proc/meminfo",
		Limits:     sharing.LimitsFile,
		Decisions:  sharing.DecisionsFile,
		Volume:     openVolume(boots.State),
		Devices:    state.KernelDevices{DM: dm.New()},
		Mounter:    mount.Kernel{},
		OpenTPM:    func(ctx context.Context) (*tpm.TPM, error) { return tpm.Open(ctx, "/dev") },
		TTY:        terminal,
		Version:    version,
		Open:       open,
		Reboot:     restart,
		Kexec:      kexec.Load,
		StartKexec: startKexec, UnloadKexec: kexec.Unload, KexecLoaded: kexec.LoadedFile,
		Layer: func(name string) (string, error) { return checks.Mapped("/sys/block", layout.LayerDevice(name)) },
		End:   exit.End, Systemd: "/run/systemd/system",
	})
	stop()
	os.Exit(code)
}

// What commands ask their Machine for beside it, this one has.
var (
	_ installer = (*machine.Machine)(nil)
	_ leveller  = (*machine.Machine)(nil)
	_ predictor = (*machine.Machine)(nil)
)

func open(w Where) (Machine, error) {
	var m *machine.Machine
	var err error
	if w.Disk != "" {
		m, err = machine.OpenDisk(w.Disk, w.Store, w.Write)
	} else {
		m, err = machine.Open(w.Report, w.Write)
	}
	if err != nil {
		return nil, err // not a nil *Machine inside the interface
	}
	return m, nil
}

// restart asks the real init to restart the machine.
func restart(ctx context.Context) error {
	cmd := restartCommand(ctx, "/run")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot restart: %s: %w: %s", cmd.Args[0], err, line(string(out)))
	}
	return nil
}

// throughFirmware has systemctl reboot restart the machine, where it would start a kernel
// that is loaded, or only the programs of a tree in /run/nextroot (systemctl(1)).
const throughFirmware = "SYSTEMCTL_SKIP_AUTO_KEXEC=1 SYSTEMCTL_SKIP_AUTO_SOFT_REBOOT=1"

// restartCommand is systemd's systemctl; other inits have a program reboot.
func restartCommand(ctx context.Context, run string) *exec.Cmd {
	if !systemdRuns(run) {
		return exec.CommandContext(ctx, "reboot")
	}
	cmd := exec.CommandContext(ctx, "systemctl", "--no-block", "--no-wall", "reboot")
	cmd.Env = append(os.Environ(), strings.Fields(throughFirmware)...)
	return cmd
}

// systemdRuns goes by its private socket: in /run/systemd/system PID 1 of the
// initramfs leaves the deadline of a trial, whatever comes after it.
func systemdRuns(run string) bool {
	_, err := os.Stat(filepath.Join(run, "systemd/private"))
	return err == nil
}

// Main runs one command and returns the exit status.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer, env Env) int {
	err := run(ctx, args, stdout, stderr, env)
	code := exitCode(err)
	if err == nil || errors.Is(err, flag.ErrHelp) || errors.Is(err, errSaid) {
		return code
	}
	fmt.Fprintf(stderr, "sealroot: %v\n", err)
	return code
}

func exitCode(err error) int {
	for _, c := range []struct {
		code int
		errs []error
	}{
		{exitOK, []error{nil, flag.ErrHelp}},
		{exitNotRoot, []error{errNotRoot}},
		{exitNotBooted, []error{errNotBooted}},
		{exitUsage, []error{errUsage, errSaid, bootset.ErrUsage}},
		{exitBad, []error{errBad, install.ErrSet, install.ErrBad}},
		{exitRefused, []error{errNoAuthority, luks2.ErrPassphrase, luks2.ErrRecoveryKey, luks2.ErrLastKeyslot, volume.ErrNothing, volume.ErrPCRs}},
		{exitRefused, []error{enrol.ErrNotBacked, tpm.ErrNoTPM, tpm.ErrSanity, secret.ErrForm, state.ErrNoImage, state.ErrNotImage}},
		{exitRefused, []error{bootset.ErrRefused, bootset.ErrNoImage, machine.ErrInUse, machine.ErrNotDisk, install.ErrRoom, etc.ErrNever, recovery.ErrNone, recovery.ErrNoEscrow, recovery.ErrNotTerminal}},
		{exitRefused, []error{prebuilt.ErrThere, prebuilt.ErrBtrfs, gpt.ErrHasState, gpt.ErrNoRoom, state.ErrNoRoom, state.ErrNotEmpty}},
	} {
		for _, e := range c.errs {
			if errors.Is(err, e) {
				return c.code
			}
		}
	}
	return exitFailed
}
