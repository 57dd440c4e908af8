package main

import (
	"context"
	"fmt"
	"slices"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/volume"
	"sealroot/slots/manifest"
	"sealroot/state/enrol"
	"sealroot/state/tpm/predict"
)

// stateOpens refuses a set that could not open the state by itself, where the image
// that runs can: its trial would fall back, a try after the other.
func (c *command) stateOpens(ctx context.Context, r report.Report, m manifest.Manifest) error {
	if r.State.UUID == "" {
		return nil
	}
	cfg, err := c.env.configuration()
	if err != nil {
		c.say("whether version %s can open the state is not known: %v", m.Version, err)
		return nil
	}
	if !slices.Contains(cfg.State.Unlock, config.UnlockTPM2) {
		return nil // a person is asked anyway
	}
	if fmt.Sprintf("%x", m.RootHash) == r.Root.RootHash && !perSlot(cfg) {
		return nil // it is the image that runs
	}
	im, err := volume.Open(ctx, c.env.State, false)
	if err != nil {
		c.say("whether version %s can open the state is not known: %v", m.Version, err)
		return nil
	}
	if err := im.Close(); err != nil {
		return err
	}
	look, done := c.lookAtTPM(ctx, r, cfg)
	defer done()
	return nextOpens(cfg, fingerprint(look.PublicKey), c.recordKeys(r), m, look.Tokens(ctx, im.Header))
}

// perSlot tells whether the same image has other PCRs in another slot: GRUB's commands
// name the slot.
func perSlot(cfg config.Config) bool {
	return cfg.Boot.Loader == config.LoaderGRUB && slices.Contains(cfg.State.TPM2.PCRs, predict.PCRGRUBCommands)
}

// errPerImage: no token opens the state for an image, but one that is sealed to its
// PCRs could.
var errPerImage = fmt.Errorf("the TPM gives the key to this image only: %w", bootset.ErrRefused)

// nextOpens decides it: tokens are what the volume has, with what they do for the
// image that runs, key its PCR policy key, records the previous keys that the TPM's
// records still need.
func nextOpens(cfg config.Config, key string, records []string, m manifest.Manifest, tokens []volume.Token) error {
	var why []string
	opensNow := false
	for _, t := range tokens {
		if t.NextBoot != volume.Yes && t.NextBoot != volume.NeedsPerson {
			continue
		}
		opensNow = true
		changes := cfg.PerImage(t.PCRs)
		if len(changes) == 0 {
			why = nil
			break
		}
		why = append(why, fmt.Sprintf("token %d is bound to PCR %v, which every image changes", t.ID, changes))
	}
	needs := keysNeeded(key, records, tokens)
	switch {
	case opensNow && m.Sealed != "" && !opensBy(cfg.State, needs, m.Sealed) && !adopted(cfg, key, m.Sealed):
		hint := ""
		if !slices.Equal(needs.list(), []string{key}) {
			hint = " (sealroot state status says how to seal it under the present key)"
		}
		return fmt.Errorf("version %s could not open the state: it opens it by %q, and the volume is sealed under %q%s: %w",
			m.Version, m.Sealed, cfg.State.SealedUnder(needs.list()...), hint, bootset.ErrRefused)
	case len(why) > 0:
		return fmt.Errorf("version %s could not open the state: %s: %w", m.Version, why[0], errPerImage)
	}
	return nil
}

// adopted says whether an image that seals under another policy takes the volume
// although it is not pinned under that, as enrol.Adopts has it. The token must not
// need the signatures of a key that the image does not have.
func adopted(cfg config.Config, key, sealed string) bool {
	next := config.ParseSealed(sealed)
	switch {
	case next.Policy == "", next.Policy == config.SealedNothing, next.PIN != cfg.State.TPM2.PIN: // it takes no token of the other kind
		return false
	case !enrol.Adopts(cfg.Boot.Loader, next.Policy):
		return false
	}
	keys := next.Keys()
	return !cfg.State.TPM2.Signed() || len(keys) > 0 && keys[0] == key
}
