package tpm

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"sealroot/state/tpm/pcrsig"
)

// Check returns nil when Unseal of a token that needs a PIN would need nothing but
// that: nobody is asked for a PIN that would open nothing. It proves no
// authorization value, so it never counts towards a lockout. Errors as of Unseal,
// but for ErrPIN and ErrLockedOut.
func (t *TPM) Check(ctx context.Context, token Token, sigs pcrsig.File) error {
	if err := token.Usable(); err != nil {
		return err
	}
	parts, err := splitBlob(token.Blob)
	if err != nil {
		return fmt.Errorf("%w: blob %w", ErrToken, err)
	}
	public, err := checkSealed(parts.public, token.Policy)
	if err != nil {
		return err
	}
	b := t.bind(ctx)
	srk, release, err := b.primaryFor(token)
	if err != nil {
		return err
	}
	object, err := b.load(srk, parts.private, public)
	if err != nil {
		return errors.Join(err, release())
	}
	err = b.checkPolicy(srk, token, sigs, token.SRK == nil)
	if token.PubKey != nil && errors.Is(err, errPolicyDigest) && b.checkPolicy(srk, token, sigs, token.SRK != nil) == nil {
		err = nil // the other form of the key's exponent, as in Unseal
	}
	return errors.Join(err, b.flush(object.Handle), release())
}

func (b bound) checkPolicy(srk SRK, token Token, sigs pcrsig.File, explicit bool) error {
	s, err := b.startSession(tpm2.TPMSEPolicy, srk, nil)
	if err != nil {
		return err
	}
	return errors.Join(b.satisfy(s, token, sigs, explicit), s.end(b))
}
