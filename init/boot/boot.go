// Package boot is the story of a boot: PID 1 from /init in the initramfs to
// the real /sbin/init on a verified root. Run reads as the list of its stages;
// each stage has a file of its own.
package boot

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"sealroot/init/cmdline"
	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount/kmod"
	"sealroot/mount/uevent"
	"sealroot/slots"
	"sealroot/slots/live"
)

// Places that PID 1 uses while it works.
const (
	newRoot      = "/sysroot"
	runDir       = "/run/sealroot"
	espDir       = runDir + "/esp"
	stateDir     = newRoot + "/state"
	encryptedDir = stateDir + "/encrypted"
)

// Boot is one boot of the machine.
type boot struct {
	sys    *System
	report *report.Report
	clock  stages

	cfg    *config.Config
	cmd    cmdline.CommandLine
	certs  []*x509.Certificate
	loader *kmod.Loader
	events *uevent.Listener
	fw     firmware
	tpm    measurer
	disk   *live.Disk
	// bootPartition is the UUID that the disk was found by; "" when it was the
	// only candidate.
	bootPartition string
	slots         slotState
	kernelRelease string
	volume        openedState
}

// Run boots the machine. It returns only when this boot came to its end: with
// errReboot when all that is left is to restart, else with what stopped it.
// Whatever happens, the TPM is closed before Run returns.
func Run(ctx context.Context, sys *System) error {
	b := newBoot(sys)
	// The door is closed first, so that no way out can forget it.
	defer b.capAndRelease(ctx)
	for _, stage := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"configuration", func(context.Context) error { return b.configure() }},
		{"modules", b.loadModules},
		{"disk", b.findDisk},
		{"tpm", b.openTPM},
		{"root", b.openRoot},
		{"measure", b.measureRoot},
		{"state", b.openState},
		{"layers", b.assemble},
		{"cap", b.capOrStop},
		{"report", b.publish},
		{"handover", b.handOver},
	} {
		end := b.clock.begin(stage.name)
		err := stage.run(ctx)
		end()
		if err != nil {
			return b.ended(ctx, stage.name, err)
		}
	}
	return nil
}

// ended records what stopped the boot after a slot was chosen, so that the next
// boot does not make the same mistake, and decides how long the machine waits
// before that.
func (b *boot) ended(ctx context.Context, stage string, err error) error {
	if errors.Is(err, errReboot) || errors.Is(err, errHalt) {
		return fmt.Errorf("%s: %w", stage, err)
	}
	err = b.blame(err)
	if slot := b.report.Slot.Name; slot != "" {
		failure := b.failed(stage, slot, err)
		if class, _ := classOf(err); class == slots.ImageFailure {
			if err := b.giveUp(ctx, failure); err != nil {
				b.warn("%v", err)
			}
		}
	}
	return &failedBoot{err: fmt.Errorf("%s: %w", stage, err), pause: b.backoff()}
}

// failedBoot is a boot that did not reach the real init.
type failedBoot struct {
	err   error
	pause time.Duration
}

func (f *failedBoot) Error() string { return f.err.Error() }
func (f *failedBoot) Unwrap() error { return f.err }

// Pauses after failed boots: the first is long enough to read the reason, and
// they grow for as long as the boot log remembers (a commit forgets them).
const (
	firstPause = 20 * time.Second
	longPause  = 10 * time.Minute
)

// backoff counts a failed boot in the boot log.
func (b *boot) backoff() time.Duration {
	n := b.slots.observed.Pauses
	// A last resort was counted when it was chosen.
	if b.slots.log != nil && b.report.Slot.Reason != string(slots.BecauseLastResort) {
		if err := b.slots.log.Record(slots.LogChange{SetPauses: true, Pauses: n + 1}); err != nil {
			b.sys.Log.Warn("cannot write the boot log: %v", err)
		}
	}
	return min(firstPause<<min(n, 5), longPause)
}

func newBoot(sys *System) *boot {
	b := &boot{sys: sys, report: &report.Report{Schema: report.Schema, Program: sys.Program}}
	b.clock.start = sys.Now()
	b.report.State.Token, b.report.State.Keyslot = -1, -1
	if id, err := readBounded("/proc/sys/kernel/random/boot_id", 64); err == nil {
		b.report.BootID = strings.TrimSpace(string(id))
	}
	return b
}

// warn says something on the console and in the report.
func (b *boot) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	b.sys.Log.Warn("%s", text)
	b.report.Warnings = append(b.report.Warnings, text)
}

// failed notes a failure, whether the boot goes on after it or not.
func (b *boot) failed(stage, slot string, err error) slots.Failure {
	class, reason := classOf(err)
	b.sys.Log.Error("%s: %v", stage, err)
	b.report.Failures = append(b.report.Failures, report.Failure{
		Stage: stage, Slot: slot, Class: string(class), Error: err.Error(),
	})
	return slots.Failure{Slot: slot, Class: class, Reason: reason, Detail: clean(err.Error())}
}
