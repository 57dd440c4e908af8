package tpm

import (
	"context"

	"sealroot/state/tpm/pcrsig"
)

// Check returns nil when Unseal of a token that needs a PIN would need nothing but
// that: nobody is asked for a PIN that would open nothing. It proves no
// authorization value, so it never counts towards a lockout. Errors as of Unseal,
// but for ErrPIN and ErrLockedOut.
func (t *TPM) Check(ctx context.Context, token Token, sigs pcrsig.File) error {
	secret, err := t.unseal(ctx, token, sigs, nil)
	clear(secret) // of one without a PIN
	return err
}
