package boot

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/mount"
	"sealroot/slots"
	"sealroot/state"
	"sealroot/state/layout"
)

// openPlain takes the directory of the volume on the state partition itself for
// the state: not encrypted, as the configuration asks by name. Where a volume is,
// or content is gone that was there, nothing is changed.
//
// Crash points: the private directory is made, then the mark "provisioned" set; in
// between the next boot goes on with what is there.
func (b *boot) openPlain(ctx context.Context) error {
	if there, err := state.HasImage(b.volume.outer); err != nil || there {
		return stateError(slots.StateDamaged, "state.unlock is plain, and there is an encrypted volume (%s); nothing was changed: %w", state.ImageName, errors.Join(err, errLocked))
	}
	why, err := b.provisioned(ctx)
	if err != nil {
		return stateError(slots.StateDamaged, "%w", err)
	}
	where := mount.Place{Root: stateDir, Path: state.MountDir}
	if err := b.sys.Mounter.Bind(mount.Bind{From: where, To: where, Attr: volumeAttr}); err != nil {
		return stateError(slots.StateDamaged, "cannot mount the state: %w", err)
	}
	if err := b.fillPlain(why); err != nil {
		return stateError(slots.StateDamaged, "%w", errors.Join(err, b.sys.Mounter.Unmount(encryptedDir)))
	}
	b.warn("the state is NOT ENCRYPTED, as state.unlock: [plain] has it: whoever has the disk reads and changes it, /etc included")
	b.report.State.Unlocked = config.UnlockPlain
	b.setMarks(ctx, &state.Volume{})
	return nil
}

// fillPlain makes the private directory of a state that never was.
func (b *boot) fillPlain(provisioned string) error {
	root, err := openDir(encryptedDir)
	if err != nil {
		return err
	}
	defer root.Close()
	there, err := state.Exists(root, layout.Private)
	switch {
	case err != nil || there:
		return err
	case provisioned != "":
		return errors.New("the content of the state is gone, but " + provisioned + "; nothing was changed")
	case b.cfg.State.Create != config.CreateFirstBoot:
		return errors.New("there is no state, and state.create is " + b.cfg.State.Create)
	}
	b.sys.Log.Info("state: first boot, without encryption")
	if err := fillVolume(root, nil, nil); err != nil {
		return err
	}
	return unix.Syncfs(int(root.Fd()))
}
