package boot

import (
	"context"

	"sealroot/init/config"
	"sealroot/state"
)

// volumeKey finds the key of the volume that is there. One that came with the image
// is left to a first boot (state.ErrPrebuilt), but where a volume was made before:
// then it may be in use, and opens as any other.
func (b *boot) volumeKey(ctx context.Context, l *state.LockedVolume, prebuilt *state.Prebuilt) ([]byte, error) {
	if prebuilt != nil && b.cfg.State.Create == config.CreateFirstBoot {
		why, err := b.provisioned(ctx)
		if err != nil || why == "" {
			return nil, state.ErrPrebuilt // firstBoot asks again, and says it
		}
		b.warn("the volume that came with the image is not replaced, as %s; if it is not in use, reset the state on purpose", why)
	}
	if prebuilt != nil || state.IsKept(l.Header) {
		b.warn("the encrypted volume was made where the image was built: every copy of that image has the same keys")
	}
	b.binding.volume = l
	key, err := b.unlockOrReset(ctx, l.Header)
	if err == nil && prebuilt != nil {
		b.keepPrebuilt(l)
	}
	return key, err
}

// keepPrebuilt has the file itself say that it is in use: the marks that say so
// otherwise lie beside it, and do not come along with a copy.
func (b *boot) keepPrebuilt(l *state.LockedVolume) {
	h, err := state.Keep(l.Header)
	if err == nil {
		err = l.Rewrite(h, b.sys.Rand)
	}
	if err != nil {
		b.warn("cannot mark the volume that came with the image as in use; a first boot elsewhere would replace a copy of it: %v", err)
	}
}
