package boot

import (
	"context"
	"fmt"
	"os"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/state"
	"sealroot/state/escrow"
	"sealroot/verity/signature"
)

// escrowKey encrypts the recovery key of a new volume to the certificates in the
// folder certificates, and keeps it on the unencrypted side before the volume has
// its name: a volume of that configuration is never without it.
func (b *boot) escrowKey(ctx context.Context, recovery []byte, certificates string) error {
	certs, err := signature.LoadCertificates(os.DirFS(certificates))
	to := make([]escrow.Recipient, len(certs))
	for i, c := range certs {
		if err == nil {
			to[i], err = escrow.NewRecipient(c.Issuer, c.Serial, c.Key)
		}
	}
	var message []byte
	if err == nil {
		message, err = escrow.Seal(b.randomness(ctx), recovery, to)
	}
	if err == nil {
		err = state.WriteEscrow(b.volume.outer, message)
	}
	if err != nil {
		return fmt.Errorf("cannot escrow the recovery key: %w", err)
	}
	b.sys.Log.Info("state: the recovery key is escrowed")
	return nil
}

// escrowState corrects what is known of the recovery key where it is escrowed.
func (b *boot) escrowState() {
	switch {
	case b.cfg.State.Recovery != config.RecoveryEscrow || b.report.State.Recovery != report.RecoveryEnrolled:
	case state.HasEscrow(b.volume.outer):
		b.report.State.Recovery = report.RecoveryEscrowed
	default:
		b.warn("no escrow of the recovery key is on the state partition (%s): deleted, or the volume is older than recovery: escrow; a copy fetched before still opens the state, unless the key was replaced", state.EscrowName)
	}
}
