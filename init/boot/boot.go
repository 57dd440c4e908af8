// Package boot is the story of a boot: PID 1 from /init in the initramfs to
// the real /sbin/init on a verified root. Run reads as the list of its stages;
// each stage has a file of its own.
package boot

import (
	"context"
	"fmt"
	"strings"
	"time"

	"sealroot/bounded"
	"sealroot/init/cmdline"
	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/mount/kmod"
	"sealroot/mount/uevent"
	"sealroot/slots/live"
	"sealroot/verity/osrelease"
)

// Places that PID 1 uses while it works.
const (
	newRoot      = "/sysroot"
	runDir       = report.Dir
	espDir       = report.ESP
	stateDir     = newRoot + "/state"
	encryptedDir = stateDir + "/encrypted"
)

// boot is one boot of the machine.
type boot struct {
	sys    *System
	report *report.Report
	clock  stages

	cfg *config.Config
	// cfgText is what cfg was read from.
	cfgText []byte
	cmd     cmdline.CommandLine
	cmdText string // what cmd was read from
	loader  *kmod.Loader
	events  uevent.Source
	fw      firmware
	tpm     measurer
	// rollback is set with trust.rollback_floor only.
	rollback      rollback
	pin           pinnedVolume
	binding       binding
	voucher       []byte // for root of a degraded boot
	keyEnrolled   bool   // a token under the present policy key opened the volume
	pinTries      int    // wrong PINs of the TPM in this boot
	pinUnanswered bool   // nobody typed one: nobody is asked again
	degraded      string // why the boot is degraded
	disk          *live.Disk
	slots         slotState
	kernelRelease string
	rootRelease   osrelease.Release // of the root that runs
	imageDevNo    string            // of the device that the image is on
	layered       bool              // the root is an overlay
	layersTried   bool              // what the machine changed about the layers is on trial
	logged        []byte            // this boot's report in the boot log
	layerFailed   bool              // an image of one was no good, and is left out
	volume        openedState
	resetAgreed   bool      // at the console, to a reset that needs a key too
	guard         *watchman // nil: no watchdog
	sysRq         []byte    // the kernel's setting before muteSysRq; nil: untouched

	// What is mounted as image, state partition and volume; without type: nothing.
	imageFS, outerFS, volumeFS mount.Filesystem
	layers                     []config.Layer // of this boot
	unsigned                   bool           // one is in use that lies in the volume
	spoilt                     error          // why none is
}

// Run boots the machine. It returns only when this boot came to its end: with
// errReboot when all that is left is to restart, else with what stopped it.
// Whatever happens, the TPM is closed before Run returns.
func Run(ctx context.Context, sys *System) error {
	b := newBoot(sys)
	// The door is closed first, so that no way out can forget it.
	defer b.capAndRelease(ctx)
	return b.through(ctx, []stage{
		{"configuration", func(context.Context) error { return b.configure() }},
		{"modules", b.loadModules},
		{"disk", b.findDisk},
		{"tpm", b.openTPM},
		{"root", b.openRoot},
		{"measure", b.measureRoot},
		{"state", func(ctx context.Context) error { return onWipedStack(func() error { return b.openState(ctx) }) }},
		{"cap", b.capOrStop}, // before anything runs that is not PID 1's own
		{"layers", b.assemble},
		{"report", b.publish},
		{"handover", b.handOver},
	})
}

type stage struct {
	name string
	run  func(context.Context) error
}

// through goes through the stages.
func (b *boot) through(ctx context.Context, list []stage) error {
	for _, stage := range list {
		end := b.clock.begin(stage.name)
		b.watch(stage.name)
		err := guarded(ctx, stage.run)
		end()
		if err != nil {
			return b.watchEnd(b.ended(ctx, stage.name, err))
		}
	}
	return nil
}

func newBoot(sys *System) *boot {
	b := &boot{sys: sys, report: &report.Report{Schema: report.Schema, Program: sys.Program}}
	b.clock.start, b.clock.began = time.Now(), readMoment()
	b.report.State.Token, b.report.State.Keyslot = -1, -1
	if id, err := bounded.ReadFile("/proc/sys/kernel/random/boot_id", 64); err == nil {
		b.report.BootID = strings.TrimSpace(string(id))
	}
	return b
}

// warn says something on the console and in the report, as one line of each.
func (b *boot) warn(format string, args ...any) {
	text := clean(fmt.Sprintf(format, args...))
	b.sys.Log.Warn("%s", text)
	b.report.Warnings = append(b.report.Warnings, text)
}
