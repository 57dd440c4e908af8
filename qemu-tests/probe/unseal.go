package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"sealroot/state/luks2"
	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
)

// unseal does what a thief in the running system would do: it asks the TPM for
// the secret of every TPM token of the volume, through every bank of PCRs. It
// says for each "unsealed" or why not.
func unseal(w io.Writer, image string) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	header, err := luks2.Read(f, info.Size())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	t, err := tpm.Open(ctx, "/dev")
	if err != nil {
		return err
	}
	defer t.Close()
	banks, err := t.ActiveBanks(ctx)
	if err != nil {
		return err
	}
	var signatures pcrsig.File
	if text, err := os.ReadFile("/run/systemd/tpm2-pcr-signature.json"); err == nil {
		if signatures, err = pcrsig.Parse(text); err != nil {
			return err
		}
	}
	found := false
	for _, token := range header.Tokens() {
		if token.Type != tpm.TokenType {
			continue
		}
		sealed, err := tpm.ParseToken(token.JSON)
		if err != nil {
			return err
		}
		for _, sealed.Bank = range banks {
			found = true
			_, err := t.Unseal(ctx, sealed, signatures, nil)
			switch {
			case err == nil:
				fmt.Fprintf(w, "token %d, %s: unsealed\n", token.ID, sealed.Bank)
			case errors.Is(err, tpm.ErrPCRsChanged), errors.Is(err, tpm.ErrPolicy):
				fmt.Fprintf(w, "token %d, %s: refused by its policy: %v\n", token.ID, sealed.Bank, err)
			default:
				return err
			}
		}
	}
	if !found {
		return errors.New("the volume has no TPM token")
	}
	return nil
}
