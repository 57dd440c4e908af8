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
	_, err = tpm2.Unseal{
		ItemHandle: tpm2.AuthHandle{Handle: object.Handle, Name: object.Name, Auth: s.encrypts(false, false)},
	}.Execute(b)
	return err
}

// FloorPolicy returns the write policy of the floor's index.
func FloorPolicy(t *TPM) ([]byte, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(FloorIndex)}.Execute(t.bind(context.Background()))
	if err != nil {
		return nil, err
	}
	public, err := rsp.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	return public.AuthPolicy.Buffer, nil
}
