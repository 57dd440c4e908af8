// Package boot is the story of a boot: PID 1 from /init in the initramfs to
// the real /sbin/init on a verified root. Run reads as the list of its stages;
// each stage has a file of its own.
package boot

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"

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

	cfg           *config.Config
	cmd           cmdline.CommandLine
	certs         []*x509.Certificate
	loader        *kmod.Loader
	events        *uevent.Listener
	fw            firmware
	tpm           measurer
	disk          *live.Disk
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
	defer b.lock(ctx)
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
		{"lock", b.close},
		{"report", b.publish},
		{"handover", b.handOver},
	} {
		end := b.clock.begin(stage.name)
		err := stage.run(ctx)
		end()
		if err != nil {
			return fmt.Errorf("%s: %w", stage.name, err)
		}
	}
	return nil
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

// failed notes a failure that does not end the boot.
func (b *boot) failed(stage, slot string, err error) slots.Failure {
	class, reason := classOf(err)
	b.sys.Log.Error("%s: %v", stage, err)
	b.report.Failures = append(b.report.Failures, report.Failure{
		Stage: stage, Slot: slot, Class: string(class), Error: err.Error(),
	})
	return slots.Failure{Slot: slot, Class: class, Reason: reason, Detail: clean(err.Error())}
}
