package boot

import (
	"context"
	"crypto/hmac"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/state/enrol"
	"sealroot/state/layout"
	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/voucher"
)

// makeVoucher makes a voucher in a degraded boot where none of the two pins is of the
// present policy, as after a change of PCR 7: only then is there anything to say. With
// a rollback floor a person is needed anyway, for that is lost with the pin. It takes
// state.degraded_unlock: whoever can be root of a degraded boot, which runs with the
// image's /etc, could have a volume of their own opened from then on.
//
// Crash points: the record in the TPM is written first; without the secret it is of
// no use, and the next degraded boot writes it anew. Once the volume is pinned record
// and file go; what a cut leaves of them is good for the volume that is pinned.
func (b *boot) makeVoucher(ctx context.Context) {
	if !b.cfg.State.DegradedUnlock || !b.report.Degraded || !b.sealsState() || b.cfg.Trust.RollbackFloor || b.volume.outer == nil {
		return
	}
	if err := b.ours(ctx, nil); !errors.Is(err, tpm.ErrUnpinned) || b.adopts(err) {
		return
	}
	err := b.writeRecord(ctx, presentKey, func(ctx context.Context, policy tpm.Policy, sigs pcrsig.File) error {
		policy.PIN = false
		token, secret, err := enrol.Seal(ctx, b.tpm.dev, policy, nil, b.randomness(ctx))
		if err != nil {
			return err
		}
		defer clear(secret)
		text, err := token.Encode()
		if err == nil {
			err = b.tpm.dev.WritePinned(ctx, tpm.VoucherPin(policy), sigs, voucher.Record(secret))
		}
		if err == nil {
			b.voucher = voucher.New(secret, text)
		}
		return err
	})
	if err != nil {
		b.warn("state unlock will not have the next boot unlock by itself: %v", err)
	}
}

// leaveVoucher leaves it to root of the running system, in memory.
func (b *boot) leaveVoucher() error {
	if b.voucher == nil {
		return nil
	}
	defer clear(b.voucher)
	return os.WriteFile(report.Voucher, b.voucher, 0o600)
}

// vouched tells whether root of a degraded boot has said that the volume of this
// identity is the machine's; cause is what ours says of it. Another image, which has
// state.degraded_unlock, may have made the voucher: it does not count in one without.
func (b *boot) vouched(ctx context.Context, id []byte, cause error) bool {
	if !b.cfg.State.DegradedUnlock || !errors.Is(cause, tpm.ErrUnpinned) || b.volume.outer == nil {
		return false
	}
	f, err := mount.OpenBeneath(b.volume.outer, layout.Voucher, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, mount.Strict)
	if err != nil {
		return false // the common case: there is none
	}
	spent, text, err := voucher.Token(f)
	f.Close()
	if err == nil {
		err = b.checkVoucher(ctx, spent, text, id)
	}
	if err != nil {
		b.attempt("tpm2: the voucher of a degraded boot is not good: %v", err)
	}
	b.pin.vouched = err == nil
	return b.pin.vouched
}

// errVoucher: the voucher is not one that this machine gave, or is for another volume.
var errVoucher = errors.New("somebody else wrote it, or for another volume")

func (b *boot) checkVoucher(ctx context.Context, spent, text, id []byte) error {
	token, err := tpm.ParseToken(text)
	if err != nil {
		return err
	}
	var record []byte
	if _, err := b.readRecord(ctx, func(ctx context.Context, policy tpm.Policy) (err error) {
		policy.PIN = false
		record, err = b.tpm.dev.ReadPinned(ctx, tpm.VoucherPin(policy))
		return err
	}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, tpmTime)
	defer cancel()
	raw, err := b.tpm.dev.Unseal(ctx, token, b.signatures(), nil)
	if err != nil {
		return err
	}
	defer clear(raw)
	secret := tpm.Passphrase(raw)
	defer clear(secret)
	if !hmac.Equal(voucher.Record(secret), record) || !voucher.For(spent, secret, id) {
		return errVoucher
	}
	return nil
}

// dropVoucher takes the voucher away, once the volume is pinned: a volume that was the
// machine's once must not become it again by it.
func (b *boot) dropVoucher(ctx context.Context) {
	if b.volume.outer == nil {
		return
	}
	err := unix.Unlinkat(int(b.volume.outer.Fd()), layout.Voucher, 0)
	if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	ctx, cancel := context.WithTimeout(ctx, tpmTime)
	defer cancel()
	if err = errors.Join(err, b.tpm.dev.RemoveVoucher(ctx)); err != nil {
		b.warn("cannot take the voucher of a degraded boot away: %v", err)
	}
}
