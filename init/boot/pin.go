package boot

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/state/enrol"
	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
)

// A blob that unseals proves nothing about who made it: whoever knows the public
// part of the storage root key seals a key of their own under our policy. So the
// TPM also keeps the identity of this machine's volume, in a record that only a
// system under the state's policy can write, and a token counts only for that
// volume.
//
// Crash points of its making: it is written before encrypted.img gets its name, and
// the marks "provisioned" follow both. A cut before the name leaves a pin of
// nothing, and no mark: the next boot starts over and pins anew. A cut after it
// leaves a whole volume with its pin. So there is never a volume that only a person
// could open, perhaps before anybody holds a key for it. The other order would
// leave one.

// pinnedVolume is what the TPM says about whose volume is here.
type pinnedVolume struct {
	asked bool
	id    []byte // luks2.VolumeKeyID
	key   int    // which policy key it is under, see readRecord
	lost  error  // why id is not known; nil when it is
	// withheld: the TPM would open the volume of this boot, or might, but for what
	// its records say. With a new pin the next boot then unlocks by itself.
	withheld bool
	vouched  bool // by root of a degraded boot
}

var (
	// errOtherVolume: the TPM remembers another volume than the one on the disk.
	errOtherVolume = errors.New("this is not the volume that the TPM remembers; it is not unlocked without a person")
	// errNotPinned goes with the reason why nobody knows which volume is ours.
	errNotPinned = errors.New("it is not known which volume is this machine's; none is unlocked without a person")
)

// ours compares the volume whose key was found, by luks2.VolumeKeyID, with the pin.
// Errors: errOtherVolume, errNotPinned.
func (b *boot) ours(ctx context.Context, keyID []byte) error {
	if !pinsVolume {
		return nil
	}
	p := &b.pin
	if !p.asked {
		p.asked = true
		p.key, p.lost = b.readRecord(ctx, func(ctx context.Context, policy tpm.Policy) (err error) {
			p.id, err = b.tpm.dev.ReadIdentity(ctx, policy)
			return err
		})
	}
	switch {
	case p.lost != nil:
		return fmt.Errorf("%w: %w", errNotPinned, p.lost)
	case !hmac.Equal(p.id, keyID):
		return errOtherVolume
	}
	return nil
}

// makePin pins the volume that this machine gets now.
func (b *boot) makePin(ctx context.Context, keyID []byte) error {
	if !b.sealsState() {
		return nil
	}
	err := b.writeRecord(ctx, presentKey, func(ctx context.Context, policy tpm.Policy, sigs pcrsig.File) error {
		return b.tpm.dev.WriteIdentity(ctx, policy, sigs, keyID)
	})
	if err != nil {
		return fmt.Errorf("cannot pin the volume in the TPM: %w", err)
	}
	b.pin.asked, b.pin.id, b.pin.key, b.pin.lost = true, keyID, presentKey, nil
	return nil
}

// adopts says whether a volume that the TPM has opened is taken although none is
// pinned under the present policy: enrol.Adopts.
func (b *boot) adopts(err error) bool {
	return errors.Is(err, tpm.ErrUnpinned) && enrol.Adopts(b.cfg.Boot.Loader, b.cfg.State.TPM2.Policy)
}

// keepPin says whether the opened volume is the pinned one, and pins it where none
// is pinned under the present policy. Where the TPM refused by itself, because the
// PCRs changed or another slot's policy is another, the pin of there stays beside
// the new one. A pin that names another volume, or that could not be read, always
// stays: whoever has put a volume of their own there can type its key.
func (b *boot) keepPin(ctx context.Context, keyID []byte) {
	if !b.sealsState() || !pinsVolume {
		return
	}
	if b.binding.done {
		b.report.State.Pinned = report.PinnedAnew
		b.dropVoucher(ctx)
		return
	}
	b.report.State.Pinned = report.PinnedYes
	err := b.ours(ctx, keyID)
	if err == nil && b.cfg.State.DegradedUnlock {
		// Where PCRs came back, there may be one for those of in between.
		b.dropVoucher(ctx)
	}
	if err == nil && b.moveTo(b.pin.key) != b.pin.key {
		// It follows the token to the present key.
		if err = b.makePin(ctx, keyID); err != nil {
			b.warn("%v", err)
		}
		return
	}
	if err == nil {
		return
	}
	b.report.State.Pinned = report.PinnedNo
	if errors.Is(err, errOtherVolume) {
		b.warnOfOther()
	}
	if !mayPin(err) {
		return
	}
	if err := b.makePin(ctx, keyID); err != nil {
		b.warn("%v", err)
		return
	}
	b.report.State.Pinned = report.PinnedAnew
	b.dropVoucher(ctx)
	switch {
	case b.pin.vouched:
		b.warn("the volume that somebody with a key of it unlocked in a degraded boot is pinned in the TPM now")
	case b.report.State.Unlocked == config.UnlockTPM2:
		b.warn("no volume was pinned for the present PCRs: the one that the TPM opened is taken, and pinned now")
	case b.pin.withheld:
		b.warn("the volume that was opened with a key that somebody typed is pinned in the TPM now: the next boot unlocks it by itself")
	default:
		b.warn("the volume that was opened with a key that somebody typed is pinned in the TPM for the present PCRs too")
	}
}

// mayPin says whether a pin may be written, by what ours says: where there is none
// under the present policy, and over the one of the volume itself.
func mayPin(err error) bool { return err == nil || errors.Is(err, tpm.ErrUnpinned) }

func (b *boot) warnOfOther() {
	b.warn("ANOTHER VOLUME: its key was typed, but it is not the volume of this machine; if you did not put it there, do not trust what runs from it")
}
