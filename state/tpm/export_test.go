package tpm

import (
	"context"
	"errors"

	"github.com/google/go-tpm/tpm2"
)

// AuthValue is the authorization value of a token's object.
func AuthValue(token Token, pin []byte) ([]byte, error) { return authValue(token, pin) }

// CreateInClear seals a secret in a session that encrypts nothing: the control of
// the bus trace.
func CreateInClear(ctx context.Context, t *TPM, token Token, secret, auth []byte) error {
	b := t.bind(ctx)
	srk, err := b.readSRK()
	if err != nil {
		return err
	}
	s, err := b.startSession(tpm2.TPMSEHMAC, srk, nil)
	if err != nil {
		return err
	}
	public, err := checkSealed(tokenPublic(token), token.Policy)
	if err != nil {
		return err
	}
	public.Unique, public.Parameters = tpm2.TPMUPublicID{}, tpm2.TPMUPublicParms{}
	err = b.do(command{
		code: tpm2.TPMCCCreate, handles: []tpm2.NamedHandle{srk.named()}, auth: s.encrypts(false, false),
		params: createParams(auth, secret, public),
	})
	return errors.Join(err, s.end(b))
}

func tokenPublic(token Token) []byte {
	parts, err := splitBlob(token.Blob)
	if err != nil {
		return nil
	}
	return parts.public
}

// UnsealInClear unseals a token with PCR 7 in a session that encrypts nothing, as
// CreateInClear seals.
func UnsealInClear(ctx context.Context, t *TPM, token Token, auth []byte) error {
	b := t.bind(ctx)
	srk, err := b.readSRK()
	if err != nil {
		return err
	}
	parts, err := splitBlob(token.Blob)
	if err != nil {
		return err
	}
	public, err := checkSealed(parts.public, token.Policy)
	if err != nil {
		return err
	}
	object, err := b.load(srk, parts.private, public)
	if err != nil {
		return err
	}
	s, err := b.startSession(tpm2.TPMSEPolicy, srk, auth)
	if err != nil {
		return err
	}
	if err = b.satisfy(s, token, nil, inFull); err == nil {
		err = b.do(command{
			code: tpm2.TPMCCUnseal, handles: []tpm2.NamedHandle{object}, auth: s.encrypts(false, false),
		})
	}
	return errors.Join(err, s.end(b), b.flush(object.Handle))
}

// FloorPolicy returns the write policy of the floor's index.
func FloorPolicy(t *TPM) ([]byte, error) {
	_, public, err := t.bind(context.Background()).nvIndex(FloorIndex)
	if err != nil {
		return nil, err
	}
	return public.AuthPolicy.Buffer, nil
}

// SealShort is Seal with the policy key as earlier versions wrote it.
func (t *TPM) SealShort(ctx context.Context, policy Policy, secret []byte) (Token, error) {
	return t.seal(ctx, policy, secret, nil, short)
}
