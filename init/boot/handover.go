package boot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/bounded"
	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/slots"
	"sealroot/slots/live"
)

// defaultInit is the real init.
const defaultInit = "/sbin/init"

// initPath is the real init, or what the builder's own command line has in place
// of it.
func (b *boot) initPath() string { return cmp.Or(b.cmd.Init, defaultInit) }

// initEnv is the environment of the real init. A kernel without an initramfs
// would give it HOME and TERM; nothing of ours is added.
var initEnv = [...]string{"HOME=/", "TERM=linux"}

// publish leaves the boot report for the real system, and hands on what the
// stub gave us and systemd looks for.
func (b *boot) publish(context.Context) error {
	err := errors.Join(passOn(stubSignatures, "/run/systemd/tpm2-pcr-signature.json"),
		passOn(stubPublicKey, "/run/systemd/tpm2-pcr-public-key.pem"),
		passOn(config.PublicKeyPath, report.PCRPublicKey)) // what sealroot state enroll seals to
	for _, name := range b.cfg.State.TPM2.PreviousKeys {
		err = errors.Join(err, passOn(config.PreviousKeysDir+"/"+name, report.PCRPreviousKeys+"/"+name))
	}
	if err := errors.Join(err, b.leaveTrust(), b.leaveMarks(), b.leaveVolatileRoot(), b.leaveVoucher()); err != nil {
		b.warn("%v", err)
	}
	if b.layerFailed {
		// A system without the layer may never get to keep a report.
		b.logReport(false)
	}
	return b.writeReport()
}

// deadlineDropIn gives the timer of the commit deadline its time.
const deadlineDropIn = "/run/systemd/system/sealroot-deadline.timer.d/deadline.conf"

// leaveTrust hands on what install and verify check against: the initramfs is
// gone by then.
func (b *boot) leaveTrust() error {
	if err := writeFile(report.Config, b.cfgText); err != nil {
		return err
	}
	for _, name := range b.cfg.State.Escrow {
		if err := leave(filepath.Join(config.EscrowDir, name), report.EscrowCertificates); err != nil {
			return err
		}
	}
	return errors.Join(b.leaveRoles(b.cfg.RootRoles(), report.RootCertificates), b.leaveRoles(b.cfg.LayerRoles(), report.LayerCertificates))
}

func (b *boot) leaveRoles(roles []config.Role, dir string) error {
	for _, role := range roles {
		for _, name := range b.cfg.Trust.Certificates(role) {
			if err := leave(filepath.Join(config.CertificatesDir, string(role), name), dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxHandedOn is more than any file has, in bytes, that is copied out of the initramfs.
const maxHandedOn = 1 << 20

// leave copies a small file into a folder.
func leave(file, dir string) error {
	text, err := bounded.ReadFile(file, maxHandedOn)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, filepath.Base(file)), text)
}

// leaveMarks tells the real system that it is on trial, and for how long, or
// that it stands in for another slot.
func (b *boot) leaveMarks() error {
	if f := b.report.FellBack; f != nil {
		if err := writeFile(report.FellBack, []byte("slot "+f.From+": "+f.Reason+"\n")); err != nil {
			return err
		}
		if err := (live.Kept{Store: b.slots.store}).TellFallback(); err != nil {
			b.warn("cannot tell the fallback in the store of the slots: %v", err)
		}
		b.noteTold()
	}
	if b.report.Degraded {
		if err := writeFile(report.Degraded, []byte(b.degraded+"\n")); err != nil {
			return err
		}
	}
	mark := report.Trial
	if !b.report.Slot.Trial {
		if mark = report.LayersTrial; !b.layersTried {
			return nil
		}
	}
	for _, m := range b.report.Mounts {
		if mark == report.Trial && b.cfg.Boot.EagerCheck && m.Where == b.image() && m.Type == b.cfg.Root.Filesystem {
			if err := writeFile(report.EagerCheck, []byte(m.What+"\n")); err != nil {
				return err
			}
		}
	}
	deadline := time.Duration(b.cfg.Boot.CommitDeadline)
	b.report.CommitDeadlineSeconds = int(deadline / time.Second)
	if err := writeFile(mark, []byte(b.report.Slot.Name+"\n")); err != nil {
		return err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("cannot read the clock: %w", err)
	}
	return writeFile(deadlineDropIn, deadlineConf(time.Duration(now.Nano()), deadline))
}

// noteTold remembers in the boot log that this fallback was told, so that later
// boots do not tell it again.
func (b *boot) noteTold() {
	if f := b.slots.fellBack; f != nil && b.slots.log != nil {
		if err := b.slots.log.Record(slots.LogChange{Told: slots.Told(*f)}); err != nil {
			b.warn("cannot remember in the boot log that a fallback was told: %v", err)
		}
	}
}

// deadlineConf counts from the hand-over: systemd counts OnBootSec= from the
// start of the kernel, and a person may have been asked for long since then.
func deadlineConf(up, deadline time.Duration) []byte {
	seconds := int((up + deadline + time.Second - 1) / time.Second)
	return fmt.Appendf(nil, "# written by sealroot: boot.commit_deadline\n[Timer]\nOnBootSec=\nOnBootSec=%ds\n", seconds)
}

func (b *boot) writeReport() error {
	b.report.Stages = b.clock.list
	text, err := b.report.Encode()
	if err == nil {
		err = writeFile(report.Path, text)
	}
	if err != nil {
		// The report is worth having and not worth a boot.
		b.sys.Log.Warn("cannot write the boot report: %v", err)
	}
	return nil
}

func writeFile(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

// passOn copies a small file of the initramfs. One that is not there is none of this boot:
// the stub of another boot path, or a configuration without such a key.
func passOn(from, to string) error {
	text, err := bounded.ReadFile(from, maxHandedOn)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = writeFile(to, text)
	}
	if err != nil {
		return fmt.Errorf("cannot hand on %s: %w", from, err)
	}
	return nil
}

// handOver makes the verified root the root directory and becomes the real
// init. It returns only when that failed.
func (b *boot) handOver(ctx context.Context) error {
	root, err := mount.OpenRoot(newRoot)
	if err != nil {
		return fmt.Errorf("cannot open the new root: %w", err)
	}
	initPath := b.initPath()
	err = mount.CheckInit(root, initPath)
	args, passed := b.initArgs(root, initPath)
	root.Close()
	if err != nil {
		return imageError(slots.Mount, "cannot start %s: %w", initPath, err)
	}
	b.sys.Log.Info("slot %s: starting %s", b.report.Slot.Name, initPath)
	b.capAndRelease(ctx)
	b.restoreSysRq()
	collect()
	warning, err := mount.SwitchRoot(newRoot, b.sys.Root)
	if err != nil {
		return fmt.Errorf("cannot switch to the new root: %w", err)
	}
	if warning != nil {
		b.sys.Log.Warn("the initramfs keeps some memory: %v", warning)
	}
	unix.Umask(0o022) // what a fresh init has
	b.letWatchdogGo()
	err = b.sys.Exec(initPath, args, initEnv[:], passed)
	return b.notImage(imageError(slots.Mount, "cannot start %s: %w", initPath, err))
}
