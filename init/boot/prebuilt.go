package boot

import (
	"context"

	"sealroot/state"
	"sealroot/state/luks2"
)

// leavePrebuilt is what comes of a volume that came with the image in place of its
// key: it is never opened, as every copy of that image has the same one. A first boot
// replaces it (state.ErrPrebuilt); errReset where a person wants that by force.
func (b *boot) leavePrebuilt(ctx context.Context, h *luks2.Header) error {
	if b.resetAgreed && b.resetAllowed(ctx, h) {
		return errReset
	}
	return state.ErrPrebuilt
}
