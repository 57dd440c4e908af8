package tpm

import (
	"context"

	"github.com/google/go-tpm/tpm2"
)

// UnsealInClear unseals a token with PCR 7 in a session that encrypts nothing:
// the control of the bus trace.
func UnsealInClear(ctx context.Context, t *TPM, token Token) error {
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
	s, err := b.startSession(tpm2.TPMSEPolicy, srk, nil)
	if err != nil {
		return err
	}
	if err := b.satisfy(s, token, nil, false); err != nil {
		return err
	}
	return b.do(command{
		code: tpm2.TPMCCUnseal, handles: []tpm2.NamedHandle{object}, auth: s.encrypts(false, false),
	})
}

// FloorPolicy returns the write policy of the floor's index.
func FloorPolicy(t *TPM) ([]byte, error) {
	_, public, err := t.bind(context.Background()).nvIndex(FloorIndex)
	if err != nil {
		return nil, err
	}
	return public.AuthPolicy.Buffer, nil
}
