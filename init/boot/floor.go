package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/slots"
	"sealroot/state"
	"sealroot/state/floor"
	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
)

// rollback is the rollback floor as this boot found it.
type rollback struct {
	tpm.Floor
	key int // which policy key it is under, see readRecord
	// lost is why the floor is not known; nil when it is. The TPM gives no secret
	// then: a floor that somebody took away must not open the way for an old image.
	lost error
}

// errNoFloor goes with the reason why the floor is not known.
var errNoFloor = errors.New("the rollback floor is not known; the volume is not unlocked without a person")

// readFloor asks the TPM for the floor before any slot is looked at.
func (b *boot) readFloor(ctx context.Context) {
	if !b.cfg.Trust.RollbackFloor {
		return
	}
	r := &b.rollback
	r.key, r.lost = b.readRecord(ctx, func(ctx context.Context, policy tpm.Policy) (err error) {
		r.Floor, err = b.tpm.dev.ReadFloor(ctx, policy)
		return err
	})
	b.report.Floor = &report.Floor{Value: r.Value, Known: r.lost == nil}
	if r.lost != nil {
		b.sys.Log.Warn("%v", r.lost) // an ordinary thing where no volume was made yet
	}
}

// aboveFloor refuses the verified image of a slot whose security version is below
// the floor.
func (b *boot) aboveFloor(slot string, version int) error {
	if b.cfg.Trust.RollbackFloor && b.rollback.lost == nil && version < b.rollback.Value {
		return belowFloor(slot, version, b.rollback.Value)
	}
	return nil
}

// kernelAboveFloor refuses to go on under a unified kernel image of an older
// version, whatever root it is to carry: its kernel is what is old then. The slot's
// own is asked for. Whether it is one, the configuration says: anybody may have
// written the EFI variable.
func (b *boot) kernelAboveFloor(slot string) error {
	if b.cfg.Trust.RollbackFloor && !b.grub() && b.rollback.lost == nil && b.cfg.SecurityVersion < b.rollback.Value {
		return b.kernelBelow(slot, b.rollback.Value)
	}
	return nil
}

func (b *boot) kernelBelow(slot string, floor int) error {
	return environmentError(slots.WrongKernel, "cannot go on with slot %s: the running kernel's image has security version %d, the rollback floor of this machine is %d",
		slot, b.cfg.SecurityVersion, floor)
}

func belowFloor(slot string, version, floor int) error {
	return imageError(slots.RollbackFloor, "cannot boot slot %s: its security version is %d, the rollback floor of this machine is %d", slot, version, floor)
}

// floorLost says why the TPM must not open the volume.
func (b *boot) floorLost() error {
	if b.cfg.Trust.RollbackFloor && b.rollback.lost != nil {
		return fmt.Errorf("%w: %w", errNoFloor, b.rollback.lost)
	}
	return nil
}

// errOtherFloor: the floor says nothing about this volume.
var errOtherFloor = errors.New("it was written for another volume")

// floorFor compares the floor with the volume whose key was found, by
// luks2.VolumeKeyID. Anybody who can run a genuine image without this volume gets
// a genuine floor of zero from it, so one that is another volume's counts as lost.
func (b *boot) floorFor(keyID []byte) error {
	r := &b.rollback
	if b.cfg.Trust.RollbackFloor && r.lost == nil && !bytes.Equal(r.Volume[:], keyID) {
		r.lost = errOtherFloor
		b.report.Floor = &report.Floor{Value: r.Value}
	}
	return b.floorLost()
}

// makeFloor gives a machine that gets its volume now a floor of that volume. The
// height of one that it has, from a volume before, stays.
func (b *boot) makeFloor(ctx context.Context, keyID []byte) error {
	if !b.cfg.Trust.RollbackFloor {
		return nil
	}
	return b.raiseFloor(ctx, b.rollback.Value, keyID)
}

// keepFloor raises the floor as the running system asked for, once the volume is
// open and before the PCRs of the policy are closed. Where the TPM has lost the
// floor a person has opened the volume, and what is asked for there is the floor.
func (b *boot) keepFloor(ctx context.Context, v *state.Volume) error {
	if !b.cfg.Trust.RollbackFloor {
		return nil
	}
	if err := b.floorFor(v.KeyID); err != nil {
		b.sys.Log.Warn("%v", err)
	}
	if v.Unreplayed != nil && b.rollback.lost != nil {
		return nil // what is there may be older than what was asked for
	}
	asked, err := askedFloor()
	if err != nil {
		b.warn("the rollback floor asked for is not honoured: %v; remove /state/encrypted/%s to begin anew", err, floor.File)
		if b.rollback.lost != nil {
			return nil // what cannot be read must not become a floor of zero
		}
	}
	return b.settleFloor(ctx, asked, v.KeyID)
}

// settleFloor is keepFloor once it is known what was asked for.
func (b *boot) settleFloor(ctx context.Context, asked int, keyID []byte) error {
	slot, root := b.report.Slot.Name, b.report.Root.SecurityVersion
	running := root
	if !b.grub() {
		running = min(root, b.cfg.SecurityVersion) // else this kernel would not start the machine again
	}
	if b.report.Slot.Trial && b.rollback.lost == nil {
		asked = min(asked, b.rollback.Value) // what is on trial may prove bad, and the slot below be all there is
	}
	next := floor.Decide(floor.Known{TPM: b.rollback.Value, Lost: b.rollback.lost != nil, Asked: asked, Running: running})
	moves := !next.Refuse && b.moveTo(b.rollback.key) != b.rollback.key
	switch {
	case next.Refuse && root >= next.Floor:
		return b.kernelBelow(slot, next.Floor)
	case next.Refuse:
		return belowFloor(slot, root, next.Floor)
	case next.Waits && !moves:
		b.warn("the rollback floor stays at %d: %d was asked for, and slot %s runs with security version %d", next.Floor, asked, slot, running)
	case next.Write, moves:
		if err := b.raiseFloor(ctx, next.Floor, keyID); err != nil {
			b.warn("%v", err)
			return nil
		}
		b.sys.Log.Info("the rollback floor is %d now", next.Floor)
	}
	return nil
}

// raiseFloor writes the floor under the policy of the state's key: what may open
// the volume may raise the floor.
func (b *boot) raiseFloor(ctx context.Context, to int, keyID []byte) error {
	want := tpm.Floor{Value: to, Volume: [32]byte(keyID)}
	key := b.moveTo(b.rollback.key)
	err := b.writeRecord(ctx, key, func(ctx context.Context, policy tpm.Policy, sigs pcrsig.File) error {
		return b.tpm.dev.RaiseFloor(ctx, policy, sigs, want)
	})
	if err != nil {
		return fmt.Errorf("cannot set the rollback floor: %w", err)
	}
	b.rollback = rollback{Floor: want, key: key}
	b.report.Floor = &report.Floor{Value: to, Known: true}
	return nil
}

// askedFloor reads what the running system asked for; 0 when it did not.
func askedFloor() (int, error) {
	volume, err := mount.OpenRoot(encryptedDir)
	if err != nil {
		return 0, err
	}
	defer volume.Close()
	f, err := mount.OpenBeneath(volume, floor.File, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, mount.Strict)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return floor.Read(f)
}
