package boot

import (
	"context"
	"errors"
	"fmt"

	"sealroot/bounded"
	"sealroot/init/config"
	"sealroot/state/enrol"
	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
)

// A policy key is rolled over while images are signed by the present one and by those
// before. What a system signed by a previous key wrote into the TPM counts as well,
// for nobody else could. The records follow the token: PID 1 writes them under the
// present key once a token of that has opened the volume, which somebody with a key
// of the volume has enrolled (sealroot state enroll), and not on trial, where an image
// that knows one key only may still be needed.
//
// Crash points: the pin goes into the other of its two indices, and the one of before
// stays. Where both are taken, and for the floor, which has one index, a cut between
// its undefining and its writing leaves none: a person is asked.

// presentKey is the place of the configured key among those that count.
const presentKey = 0

// policyKeys are the configured policy, under the present key and if the boot path
// backs it, and the public keys that count for it (PEM), the present one first; for a
// literal policy that is nil.
func (b *boot) policyKeys() (policy tpm.Policy, keys [][]byte, err error) {
	c := &b.cfg.State.TPM2
	if err := enrol.Backed(b.cfg.Boot.Loader, *c, b.fw.path(b.grub())); err != nil {
		return tpm.Policy{}, nil, err
	}
	if c.Policy == config.PolicyPCRs {
		keys = [][]byte{nil}
	} else {
		path := config.PublicKeyPath
		for i := 0; ; i++ {
			key, err := bounded.ReadFile(b.sys.Initramfs+path, 64<<10)
			if err != nil {
				return tpm.Policy{}, nil, fmt.Errorf("cannot read the key of the PCR policy: %w", err)
			}
			keys = append(keys, key)
			if i == len(c.PreviousKeys) {
				break
			}
			path = config.PreviousKeysDir + "/" + c.PreviousKeys[i]
		}
	}
	policy, err = enrol.Policy(*c, keys[presentKey])
	return policy, keys, err
}

// statePolicy is the configured policy under the present key.
func (b *boot) statePolicy() (tpm.Policy, error) {
	policy, _, err := b.policyKeys()
	return policy, err
}

// readRecord runs read for a record that only a system under the state's policy
// writes, under each key that counts until there is one. It returns the key's place.
func (b *boot) readRecord(ctx context.Context, read func(context.Context, tpm.Policy) error) (key int, err error) {
	policy, keys, err := b.policyKeys()
	if err == nil {
		err = b.tpm.broken
	}
	if err != nil {
		return presentKey, err
	}
	ctx, cancel := context.WithTimeout(ctx, tpmTime)
	defer cancel()
	for key, policy.PublicKey = range keys {
		if err = read(ctx, policy); !errors.Is(err, tpm.ErrUnpinned) {
			return key, err
		}
	}
	return presentKey, err
}

// writeRecord runs write for such a record under one of the keys: what may open the
// volume may write it.
func (b *boot) writeRecord(ctx context.Context, key int, write func(context.Context, tpm.Policy, pcrsig.File) error) error {
	if b.tpm.broken != nil {
		return b.tpm.broken
	}
	if err := b.closedBefore(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, enrolTime)
	defer cancel()
	policy, keys, err := b.policyKeys()
	if err == nil {
		err = enrol.Measured(ctx, b.tpm.dev, policy, false)
	}
	if err != nil {
		return err
	}
	policy.PublicKey = keys[key]
	return write(ctx, policy, b.signatures())
}

// underPresentKey tells whether a token is sealed to the present key.
func (b *boot) underPresentKey(token tpm.Token) bool {
	_, keys, err := b.policyKeys()
	return err == nil && pcrsig.SameKey(keys[presentKey], token.PubKey)
}

// moveTo is the key that a record found under key is to be written under.
func (b *boot) moveTo(key int) int {
	if b.keyEnrolled && !b.report.Slot.Trial {
		return presentKey
	}
	return key
}

// recordKeys names the previous keys in the report that are still needed.
func (b *boot) recordKeys() {
	var names []string
	for i, name := range b.cfg.State.TPM2.PreviousKeys {
		if i+1 == b.pin.key || i+1 == b.rollback.key {
			names = append(names, name)
		}
	}
	b.report.TPM.RecordKeys = names
}
