package boot

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/mount/uevent"
	"sealroot/slots"
	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
)

// PCRs that this program extends, beside trust.measure_pcr.
const (
	pcrKernel = pcrsig.PCRKernel
	pcrVolume = pcrsig.PCRVolume
)

// tpmDeadline is how long a configured TPM may take to appear.
const tpmDeadline = 15 * time.Second

// tpmTime bounds one use of the TPM, enrolTime making a key and sealing to it:
// a discrete TPM takes seconds, one that hangs must not hang the boot.
const (
	tpmTime   = time.Minute
	enrolTime = 3 * time.Minute
)

// measurementLog is where systemd's tools look for userspace measurements.
const measurementLog = "/run/log/systemd/tpm2-measure.log"

// measurer is the TPM as this boot uses it.
type measurer struct {
	dev *tpm.TPM
	log *tpm.Log
	// broken is the first measurement that failed. With it no secret may be
	// taken from the TPM any more: what runs is not what its PCRs say.
	broken error
	capped bool
}

// sealsState tells whether the configuration uses the TPM at all.
func (b *boot) sealsState() bool { return slices.Contains(b.cfg.State.Unlock, config.UnlockTPM2) }

// openTPM opens the TPM. A machine that seals nothing boots without one.
func (b *boot) openTPM(ctx context.Context) error {
	dev, err := b.waitForTPM(ctx)
	if err != nil {
		b.tpm.broken = err
		if b.sealsState() {
			b.warn("TPM: %v", err)
		}
		return nil
	}
	b.tpm.dev = dev
	b.report.TPM.Present = true
	ctx, cancel := context.WithTimeout(ctx, tpmTime)
	defer cancel()
	banks, err := dev.ActiveBanks(ctx)
	for _, bank := range banks {
		b.report.TPM.Banks = append(b.report.TPM.Banks, string(bank))
	}
	if err != nil {
		b.tpm.broken = err
		b.warn("TPM: %v", err)
		return nil
	}
	if b.fw.Stub {
		b.measure(ctx, tpm.Event{PCR: pcrKernel, Data: []byte(pcrsig.PhaseEnterInitrd), Text: pcrsig.PhaseEnterInitrd, Type: "phase"})
	}
	return nil
}

// waitForTPM waits for the device only where the state is sealed to it.
func (b *boot) waitForTPM(ctx context.Context) (dev *tpm.TPM, err error) {
	ctx, cancel := context.WithTimeout(ctx, tpmDeadline)
	defer cancel()
	if dev, err = b.sys.OpenTPM(ctx); !errors.Is(err, tpm.ErrNoTPM) || !b.sealsState() {
		return dev, err
	}
	waited := uevent.WaitFor(ctx, "the TPM (/dev/tpmrm0)", b.events, func(events []uevent.Event) (bool, error) {
		if err := b.loadDrivers(ctx, events); err != nil {
			return false, err
		}
		dev, err = b.sys.OpenTPM(ctx)
		return !errors.Is(err, tpm.ErrNoTPM), nil
	})
	return dev, errors.Join(err, waited)
}

// measure extends a PCR; what fails is remembered, and reported once.
func (b *boot) measure(ctx context.Context, e tpm.Event) {
	if b.tpm.dev == nil || b.tpm.broken != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tpmTime)
	defer cancel()
	err := b.tpm.dev.Measure(ctx, e, b.measureLog())
	if err == nil || errors.Is(err, tpm.ErrLog) {
		return
	}
	b.tpm.broken = err
	b.warn("cannot measure %q: %v", e.Text, err)
}

// measureLog opens the event log once.
func (b *boot) measureLog() *tpm.Log {
	if b.tpm.log != nil {
		return b.tpm.log
	}
	if err := os.MkdirAll(filepath.Dir(measurementLog), 0o755); err != nil {
		return nil
	}
	f, err := os.OpenFile(measurementLog, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil
	}
	b.tpm.log = &tpm.Log{W: f, BootID: strings.ReplaceAll(b.report.BootID, "-", ""), Now: sinceBoot, Incomplete: incomplete(f)}
	return b.tpm.log
}

// incomplete sets or clears the sticky bit, by which systemd's tools tell a log
// that lacks a measurement.
func incomplete(f *os.File) func(bool) error {
	return func(on bool) error {
		mode := os.FileMode(0o600)
		if on {
			mode |= os.ModeSticky
		}
		return f.Chmod(mode)
	}
}

func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// measureRoot measures the root finally chosen and the layers that may come over it,
// before any secret is released.
func (b *boot) measureRoot(ctx context.Context) error {
	hash, err := hex.DecodeString(b.report.Root.RootHash)
	if err != nil {
		return fmt.Errorf("cannot measure root hash %q: %w", b.report.Root.RootHash, err)
	}
	text := pcrsig.RootEvent(string(b.cfg.Root.ImageRole()), hash, b.report.Root.SecurityVersion)
	b.measure(ctx, tpm.Event{PCR: b.cfg.Trust.MeasurePCR, Data: []byte(text), Text: text})
	// What a directory in the volume holds is not known before it is open.
	for _, l := range b.cfg.Images() {
		b.measureLayer(ctx, l)
	}
	return nil
}

func (b *boot) measureLayer(ctx context.Context, l config.Layer) {
	text := pcrsig.LayerEvent(l.Name, l.Hash)
	b.measure(ctx, tpm.Event{PCR: b.cfg.Trust.MeasurePCR, Data: []byte(text), Text: text})
}

// capOrStop ends the time in which the TPM gives out the state's secret. Where the
// state is sealed to it, a TPM that cannot be closed ends the boot: what runs
// next could take the secret.
func (b *boot) capOrStop(ctx context.Context) error {
	if !capsPCRs {
		b.warn("TEST BUILD: the TPM stays open")
		b.tpm.capped = true
		return nil
	}
	if b.tpm.dev == nil && b.sealsState() {
		if err := b.lateTPM(ctx); err != nil {
			return environmentError(slots.TPM, "cannot close the TPM: %w", err)
		}
	}
	if b.tpm.dev == nil {
		return nil
	}
	if b.fw.Stub {
		b.measure(ctx, tpm.Event{PCR: pcrKernel, Data: []byte(pcrsig.PhaseLeaveInitrd), Text: pcrsig.PhaseLeaveInitrd, Type: "phase"})
	}
	if err := b.extendCap(ctx); err != nil && b.sealsState() {
		return environmentError(slots.TPM, "cannot close the TPM: %w", err)
	}
	return nil
}

// lateTPM opens a TPM that could not be opened before. That there is none is
// fine; one that is there and cannot be closed would give the state's secret to
// whoever replays the measurements.
func (b *boot) lateTPM(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tpmTime)
	defer cancel()
	dev, err := b.sys.OpenTPM(ctx)
	if errors.Is(err, tpm.ErrNoTPM) {
		if there, globErr := filepath.Glob("/sys/class/tpm/tpm[0-9]*"); globErr == nil && len(there) == 0 {
			return nil
		}
	}
	b.tpm.dev = dev
	return err
}

// extendCap extends the PCRs that every policy of ours holds one of.
func (b *boot) extendCap(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tpmTime)
	defer cancel()
	done, err := b.tpm.dev.Cap(ctx, b.measureLog(), pcrKernel, pcrVolume)
	b.report.TPM.Capped = done.PCRs
	if err == nil {
		b.tpm.capped = true
	}
	return err
}

// capAndRelease is the last act on every way out: the TPM gives nothing away after it.
func (b *boot) capAndRelease(ctx context.Context) {
	if b.tpm.dev == nil {
		return
	}
	if !b.tpm.capped {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tpmDeadline)
		defer cancel()
		if err := b.extendCap(ctx); err != nil {
			b.sys.Log.Error("cannot close the TPM: %v", err)
		}
	}
	b.tpm.dev.Close()
	b.tpm.dev = nil
}
