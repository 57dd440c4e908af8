package main

import (
	"fmt"
	"path/filepath"
	"slices"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/volume"
	"sealroot/slots"
	"sealroot/state/tpm/pcrsig"
)

// sealer is a machine that knows what the images of its slots open the state by.
type sealer interface {
	// Sealed is config.State.SealedUnder of a slot's image, as its signed manifest has
	// it; it goes by the certificates in the folder trust.
	Sealed(slot, trust string) (string, error)
}

// fingerprint is that of a PCR policy key (PEM); "" when there is none.
func fingerprint(pem []byte) string {
	key, err := pcrsig.ParsePublicKey(pem)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%x", pcrsig.Fingerprint(key))
}

// recordKeys are the fingerprints of the previous keys that records of the TPM need. One
// that cannot be read is none that a set has.
func (c *command) recordKeys(r report.Report) (keys []string) {
	for _, name := range r.TPM.RecordKeys {
		text, err := readSmall(filepath.Join(c.env.PCRKeys, name))
		key := fingerprint(text)
		if err != nil || key == "" {
			key = name
		}
		keys = append(keys, key)
	}
	return keys
}

// neededKeys are the PCR policy keys that the state of a machine needs: of the tokens
// that open it any, in the order of the header, of the TPM's records each.
type neededKeys struct{ tokens, records []string }

// keysNeeded finds them: present is the key of the image that runs, records the
// previous keys that the TPM's records lie under, of which PID 1 has told.
func keysNeeded(present string, records []string, tokens []volume.Token) neededKeys {
	n := neededKeys{records: records}
	if len(records) == 0 {
		n.records = []string{present}
	}
	for _, t := range tokens {
		switch {
		case t.NextBoot != volume.Yes && t.NextBoot != volume.NeedsPerson:
		case t.Key == "":
			n.tokens = append(n.tokens, present)
		default:
			n.tokens = append(n.tokens, t.Key)
		}
	}
	return n
}

// list is what an image must have at least.
func (n neededKeys) list() []string {
	list := slices.Clone(n.records)
	if len(n.tokens) > 0 && !slices.ContainsFunc(n.tokens, func(key string) bool { return slices.Contains(list, key) }) {
		list = append(list, n.tokens[0])
	}
	return list
}

// opensBy says whether an image that seals under a line (config.State.SealedUnder)
// opens what needs the keys.
func opensBy(s config.State, n neededKeys, sealed string) bool {
	if !s.TPM2.Signed() {
		return sealed == s.SealedUnder()
	}
	next := config.ParseSealed(sealed)
	lacks := func(key string) bool { return !slices.Contains(next.Keys(), key) }
	return next.Policy == s.TPM2.Policy && next.PIN == s.TPM2.PIN && !slices.ContainsFunc(n.records, lacks) &&
		slices.ContainsFunc(n.tokens, func(key string) bool { return !lacks(key) })
}

// rollsKey tells whether an enrolment takes the state from a previous PCR policy key to
// the present one: tokens are those before it.
func rollsKey(tokens []volume.Token) bool {
	return slices.ContainsFunc(tokens, func(t volume.Token) bool {
		return t.PreviousKey && (t.NextBoot == volume.Yes || t.NextBoot == volume.NeedsPerson)
	})
}

// noSlotLeft refuses to seal the state to a key that the image of another slot does not
// have: it would not open it any more when it stands in.
func (c *command) noSlotLeft(r report.Report, key string) error {
	m, err := c.env.Open(Where{Report: r})
	if err != nil {
		return fmt.Errorf("cannot enrol the TPM: what the other slots hold is not known: %w", err)
	}
	defer m.Close()
	s, ok := m.(sealer)
	if !ok {
		return fmt.Errorf("cannot enrol the TPM: this disk does not say what the other slots hold: %w", bootset.ErrRefused)
	}
	list, err := m.Slots()
	if err != nil {
		return fmt.Errorf("cannot enrol the TPM: what the other slots hold is not known: %w", err)
	}
	for _, slot := range list {
		if slot.Name == r.Slot.Name || slot.State() == slots.Unbootable {
			continue
		}
		sealed, err := s.Sealed(slot.Name, report.RootCertificates)
		why := "does not have the present PCR policy key"
		if err != nil {
			why = "has unknown PCR policy keys (" + err.Error() + ")"
		}
		if !slices.Contains(config.ParseSealed(sealed).Keys(), key) {
			return fmt.Errorf("cannot enrol the TPM: slot %s %s and could not open the state any more; sealroot replicate, or an update, frees it, --burn gives that slot up: %w", slot.Name, why, bootset.ErrRefused)
		}
	}
	return nil
}
