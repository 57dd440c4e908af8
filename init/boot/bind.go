package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"sealroot/state"
	"sealroot/state/luks2"
	"sealroot/state/tpm"
)

// binding is what is known for binding the TPM to the volume anew, after a person
// has opened it.
//
// Crash points: the pin is written first, then the header, in one update that has
// the new keyslot and token and no longer the old ones (luks2.Update). A cut after
// the pin leaves a pinned volume and the old token: a person is asked once more.
type binding struct {
	volume *state.LockedVolume
	causes []error // why no token opened
	never  bool    // one of them mends itself
	done   bool
}

var (
	// errNoToken: nothing was sealed to a TPM.
	errNoToken = errors.New("the volume has no systemd-tpm2 token")
	// errNotUsed goes with the reason why a token is not used.
	errNotUsed = errors.New("not used")
)

// bindLimit is how long the question whether to bind anew waits.
const bindLimit = time.Minute

// refused notes why a token did not open the volume.
func (b *binding) refused(cause error) {
	b.causes = append(b.causes, cause)
	b.never = b.never || !lasting(cause)
}

// lasting tells whether binding anew mends what kept a token from opening. A TPM
// that is busy, fails or is locked out opens again by itself; and where its records
// stood in the way, they are written anew without it.
func lasting(cause error) bool {
	return slices.ContainsFunc([]error{
		tpm.ErrPCRsChanged, tpm.ErrOtherTPM, tpm.ErrPolicy, tpm.ErrPIN, tpm.ErrToken, luks2.ErrPassphrase, errNoToken, errNotUsed, errNoPIN,
	}, func(e error) bool { return errors.Is(cause, e) })
}

// offerBinding asks the person who has opened the volume whether the TPM is to open
// it from now on. Without the word yes nothing is changed.
func (b *boot) offerBinding(ctx context.Context, c Console, volumeKey []byte) {
	bind := &b.binding
	if bind.volume == nil || len(bind.causes) == 0 || bind.never || !b.sealsState() {
		return
	}
	policy, err := b.sealablePolicy(ctx)
	if err != nil {
		b.sys.Log.Warn("state: the TPM cannot be bound anew: %v", err)
		return
	}
	c.Print("sealroot: the TPM did not open the state:\n")
	for _, cause := range bind.causes {
		c.Print("  " + clean(cause.Error()) + "\n")
	}
	id := luks2.VolumeKeyID(volumeKey, state.DeviceName, bind.volume.Header.UUID())
	if err := b.ours(ctx, id); !mayPin(err) {
		if errors.Is(err, errOtherVolume) {
			c.Print("sealroot: THIS IS NOT THE VOLUME OF THIS MACHINE. Somebody put another one in its place.\n")
		}
		c.Print("sealroot: the TPM is not bound to it.\n")
		b.sys.Log.Warn("state: the TPM is not bound anew: %v", err)
		return
	}
	c.Flush()
	c.Print("sealroot: bind the TPM of this machine to the state anew? Type yes and press Enter (it is not shown): ")
	if !saysYes(ctx, c) {
		c.Print("\nsealroot: nothing was bound.\n")
		return
	}
	c.Print("\n")
	if err := b.rebind(ctx, c, policy, volumeKey, id); err != nil {
		c.Print("sealroot: " + clean(err.Error()) + "\n")
		b.warn("%v", err)
		return
	}
	c.Print("sealroot: the next boot unlocks by itself.\n")
	b.warn("the TPM is bound to the state anew, as somebody with its key said; before: %v", errors.Join(bind.causes...))
}

// saysYes reads the answer to a question that is not waited for long.
func saysYes(ctx context.Context, c Console) bool {
	ctx, cancel := context.WithTimeout(ctx, bindLimit)
	defer cancel()
	line, err := c.ReadLine(ctx, bindLimit)
	return err == nil && string(bytes.TrimSpace(line)) == "yes"
}

// rebind seals a new secret under the present policy, pins the volume, and brings
// the new keyslot and token to the disk in place of those that do not open.
func (b *boot) rebind(ctx context.Context, c Console, policy tpm.Policy, volumeKey, id []byte) error {
	pin, err := b.newPIN(ctx, c)
	if err != nil {
		return fmt.Errorf("cannot bind the TPM: %w", err)
	}
	defer clear(pin)
	token, pass, err := b.sealNew(ctx, policy, pin)
	if err != nil {
		return fmt.Errorf("cannot bind the TPM: %w", err)
	}
	defer clear(pass)
	l := b.binding.volume
	n, keyslot, tokenID, err := l.Header.Enroll(luks2.Enrolment{
		VolumeKey: volumeKey, Passphrase: pass, KDF: luks2.RandomSecretKDF(), Rand: b.sys.Rand,
		Token: func(keyslot int) ([]byte, error) {
			token.Keyslots = []int{keyslot}
			return token.Encode()
		},
		RetireTokens: deadTokens(l.Header, b.report.State.Keyslot),
	})
	if err != nil {
		return fmt.Errorf("cannot bind the TPM: %w", err)
	}
	if err := b.makePin(ctx, id); err != nil {
		return err
	}
	// crash point: pinned, and still the old token
	if err := l.Rewrite(n, b.sys.Rand); err != nil {
		return fmt.Errorf("cannot bind the TPM: %w", err)
	}
	b.binding.done = true
	b.sys.Log.Info("state: bound to the TPM anew (token %d, keyslot %d)", tokenID, keyslot)
	return nil
}

// deadTokens lists the tokens that a new binding takes the place of: all of ours,
// none of which has opened. One of another tool's with parts that are not known
// here stays, and so does one that names the keyslot which a person just used.
func deadTokens(h *luks2.Header, used int) (ids []int) {
	for _, t := range h.Tokens() {
		if t.Type != tpm.TokenType || slices.Contains(t.Keyslots, used) {
			continue
		}
		if token, err := tpm.ParseToken(t.JSON); err == nil && token.Usable() == nil && len(token.Unknown) == 0 {
			ids = append(ids, t.ID)
		}
	}
	return ids
}
