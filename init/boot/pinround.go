package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"sealroot/state/tpm"
)

// pinRound is the tokens that a PIN may be for, in the order in which the next one
// is tried on them.
type pinRound struct {
	left []usableToken
}

// errNotAll goes with tpm.ErrPIN where a PIN was not tried on every token.
var errNotAll = errors.New("not tried on every token")

// errOtherKeys is for all tokens with a PIN. Binding anew does not mend it: what
// answers for the TPM would get the new PIN.
var errOtherKeys = errors.New("no PIN is asked for: the tokens name several storage keys, and a TPM has one: who put a token there may answer for the TPM")

// oneStorageKey tells whether all tokens are for the same TPM. Each was told that its
// key is there; who is between us and the TPM can say so to a token of their own too,
// and would get what a PIN is searched with.
func oneStorageKey(tokens []usableToken) bool {
	for _, t := range tokens {
		if !bytes.Equal(t.token.StorageKey(), tokens[0].token.StorageKey()) {
			return false
		}
	}
	return true
}

// try tries a PIN on most tokens, until one opens. A token that something else is
// wrong with is refused and left out from then on. Those that a PIN was not tried on
// come first the next time. Errors: tpm.ErrPIN, with errNotAll where there are such;
// tpm.ErrLockedOut; where no token is left, what was wrong with the last one.
func (r *pinRound) try(most int, unseal func(t usableToken) error, refuse func(t usableToken, err error)) (err error) {
	wrong := []usableToken{}
	for len(r.left) > 0 && len(wrong) < most {
		t := r.left[0]
		err = unseal(t)
		if err == nil || errors.Is(err, tpm.ErrLockedOut) {
			break
		}
		r.left = r.left[1:]
		if errors.Is(err, tpm.ErrPIN) {
			wrong = append(wrong, t)
			continue
		}
		refuse(t, err)
	}
	untried := len(r.left)
	r.left = append(r.left, wrong...)
	switch {
	case err == nil || errors.Is(err, tpm.ErrLockedOut) || len(r.left) == 0:
		return err
	case untried > 0:
		return fmt.Errorf("%w: %w", tpm.ErrPIN, errNotAll)
	}
	return tpm.ErrPIN
}

// pinsLeft is on how many of n tokens a PIN may be tried: each wrong one counts in
// the TPM, and what somebody put there must not by itself lock its owner out.
func (b *boot) pinsLeft(ctx context.Context, n int) int {
	if n == 1 {
		return n
	}
	ctx, cancel := context.WithTimeout(ctx, tpmTime)
	defer cancel()
	left, err := b.tpm.dev.TriesLeft(ctx)
	if err != nil {
		b.sys.Log.Warn("%v", err)
	}
	return max(1, min(n, left-1))
}
