package boot

import (
	"errors"
	"fmt"
	"os"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/slots"
	"sealroot/state"
)

// withoutState goes down the ladder of state.on_failure after the volume could
// not be opened. The prompt, its first step, was taken inside unlock.
func (b *boot) withoutState(cause error) error {
	if b.trialWithStandIn() {
		// The try is spent. The committed slot most likely still unlocks, and a
		// machine with nobody before it must not wait here.
		f := slots.Failure{Slot: b.report.Slot.Name, Class: slots.StateFailure, Detail: clean(cause.Error())}
		_, f.Reason = classOf(cause)
		if err := b.apply(slots.Decision{Log: slots.LogChange{Failures: []slots.Failure{f}}}); err != nil {
			b.warn("%v", err)
		}
		return fmt.Errorf("slot %s is on trial and has no state: %w", b.report.Slot.Name, errReboot)
	}
	for _, step := range b.cfg.State.OnFailure {
		switch step {
		case config.FailureDegraded:
			return b.degrade(cause)
		case config.FailureHalt:
			return fmt.Errorf("%w, as state.on_failure says: %w", errHalt, cause)
		case config.FailureReboot:
			return cause
		}
	}
	return cause
}

// trialWithStandIn: this slot is on trial, and a committed one is there.
func (b *boot) trialWithStandIn() bool {
	_, ok := slots.Default(b.slots.observed.Slots)
	return b.report.Slot.Trial && ok
}

// degrade goes on with a volatile state: the machine is reachable, keeps
// nothing, and no slot can be committed. The image's own /etc lets in whom the
// owner's might not, so it never runs beside the decrypted volume.
func (b *boot) degrade(cause error) error {
	if errors.Is(cause, state.ErrMapped) {
		return fmt.Errorf("%w instead of a degraded boot: %w", errHalt, cause)
	}
	b.warn("DEGRADED: nothing written to /var, /home and /etc will survive a restart: %v", cause)
	b.setDegraded(cause)
	b.giveBack() // a degraded system cannot be committed, and the slot is not to blame
	s := &b.report.State
	s.Unlocked, s.Pinned, s.UUID = report.UnlockedDegraded, "", "" // state unlock goes by that
	return b.volatileState("degraded")
}

// setDegraded tells the report, and the real init, why this boot is not whole.
func (b *boot) setDegraded(cause error) { b.report.Degraded, b.degraded = true, clean(cause.Error()) }

// volatileState puts a file system in memory where the volume would be. source is
// the name that it has in the list of mounts.
func (b *boot) volatileState(source string) error {
	if b.volume.outer == nil {
		fs := mount.Filesystem{Type: "tmpfs", Source: "state", Options: []string{"mode=0755"}, Attr: volumeAttr}
		if err := b.mountIn(fs, mount.Place{Root: newRoot, Path: "state"}); err != nil {
			return stateError(slots.StateDamaged, "cannot mount a volatile state: %w", err)
		}
		if err := os.Mkdir(encryptedDir, 0o755); err != nil {
			return stateError(slots.StateDamaged, "cannot mount a volatile state: %w", err)
		}
	}
	fs := mount.Filesystem{Type: "tmpfs", Source: source, Options: []string{"mode=0755"}, Attr: volumeAttr}
	if err := b.mountIn(fs, mount.Place{Root: stateDir, Path: state.MountDir}); err != nil {
		return stateError(slots.StateDamaged, "cannot mount a volatile state: %w", err)
	}
	root, err := openDir(encryptedDir)
	if err != nil {
		return stateError(slots.StateDamaged, "cannot open the volatile state: %w", err)
	}
	defer root.Close()
	return fillVolume(root, nil, nil)
}
