package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"sealroot/bounded"
	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/state"
	"sealroot/state/enrol"
	"sealroot/state/luks2"
	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
)

// errLocked: no configured method opened the volume.
var errLocked = errors.New("the encrypted volume stays locked")

// unlock tries the methods of the configuration: those that need nobody first,
// then, where on_failure or the list of methods asks for it, a person.
func (b *boot) unlock(ctx context.Context, h *luks2.Header) ([]byte, error) {
	if b.sealsState() {
		if key := b.unlockByTPM(ctx, h); key != nil {
			return key, nil
		}
	}
	if b.usesKeyFile() {
		if key := b.unlockByKeyFile(ctx, h); key != nil {
			return key, nil
		}
	}
	if wait := b.promptWait(); b.mayPrompt() && wait > 0 {
		// Who switches off in front of a question has not seen the slot fail.
		again := b.giveBack()
		key, err := b.prompt(ctx, h, wait)
		if err == nil {
			again()
			return key, nil
		}
		b.attempt("prompt: %v", err)
	}
	return nil, fmt.Errorf("cannot unlock volume %s: %w", h.UUID(), errLocked)
}

// mayPrompt: a person is asked when the configuration has a method for people,
// and either names the prompt or has no other method.
func (b *boot) mayPrompt() bool {
	people := slices.Contains(b.cfg.State.Unlock, config.UnlockRecoveryKey) || slices.Contains(b.cfg.State.Unlock, config.UnlockPassphrase)
	return people && (slices.Contains(b.cfg.State.OnFailure, config.FailurePrompt) || !b.sealsState() && !b.usesKeyFile())
}

// trialWait is how long a trial waits for a key that each image's first boot takes.
const trialWait = 2 * time.Minute

// promptWait is how long the prompt waits without a key press; 0: nobody is asked, and
// the committed slot that a trial stands in for opens by itself. Where no image can
// before it has run (enrol.PersonPerImage), that would end every update.
func (b *boot) promptWait() time.Duration {
	switch {
	case !b.trialWithStandIn():
		return keyLimit
	case enrol.PersonPerImage(b.cfg):
		return trialWait
	}
	return 0
}

// attempt notes why a method did not open the volume.
func (b *boot) attempt(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	b.sys.Log.Warn("state: %s", text)
	b.report.State.Attempts = append(b.report.State.Attempts, clean(text))
}

// unlockByTPM tries every systemd-tpm2 token that may be used without a person.
func (b *boot) unlockByTPM(ctx context.Context, h *luks2.Header) []byte {
	if b.tpm.dev == nil || b.tpm.broken != nil {
		b.attempt("tpm2: %v", b.tpm.broken)
		return nil
	}
	if err := b.floorLost(); err != nil {
		b.pin.withheld = true
		b.attempt("tpm2: %v", err)
		return nil
	}
	budget := newBudget()
	open := func(t usableToken, secret []byte) ([]byte, error) { return b.openWith(ctx, h, t, secret, budget) }
	found, withPIN := false, []usableToken{}
	for _, t := range h.Tokens() {
		if t.Type != tpm.TokenType {
			continue
		}
		found = true
		u, err := b.usable(ctx, t)
		if err == nil && u.token.PIN {
			withPIN = append(withPIN, u)
			continue
		}
		var key []byte
		if err == nil {
			key, err = b.unsealAndOpen(ctx, u, nil, open)
		}
		if err == nil {
			return key
		}
		b.refuse(u, err)
	}
	if !found {
		b.attempt("tpm2: %v", errNoToken)
		b.binding.refused(errNoToken)
	}
	if b.fw.Kexec {
		b.attempt("tpm2: %s", enrol.Kexec.Describe())
	}
	return b.unsealWithPIN(ctx, withPIN, open)
}

// usableToken is a token that may be used as the configuration is.
type usableToken struct {
	id       int
	keyslots []int
	token    tpm.Token
}

// refuse notes why a token did not open the volume.
func (b *boot) refuse(t usableToken, err error) {
	b.attempt("tpm2, token %d: %v", t.id, err)
	b.binding.refused(err)
}

// usable reads a token; with an error only its number is known. One with a PIN is
// tried as far as that goes without: nobody types a PIN that would open nothing.
func (b *boot) usable(ctx context.Context, t luks2.Token) (usableToken, error) {
	u := usableToken{id: t.ID, keyslots: t.Keyslots}
	token, err := tpm.ParseToken(t.JSON)
	if err != nil {
		return u, err
	}
	u.token = token
	switch wanted := b.cfg.State.TPM2.PIN; {
	case !token.Capped() && !b.cfg.State.TPM2.AllowUncapped:
		return u, fmt.Errorf("%w: its policy holds no PCR that is closed before hand-over: what runs later could unseal it; enrol anew, or set allow_uncapped", errNotUsed)
	case wanted && !token.PIN:
		return u, fmt.Errorf("%w: it opens without a PIN, and state.tpm2.pin is set; enrol anew", errNotUsed)
	case token.PIN && !wanted:
		return u, fmt.Errorf("%w: it has a PIN, and state.tpm2.pin is not set", errNotUsed)
	case !wanted:
		return u, nil
	case token.StorageKey() == nil:
		return u, fmt.Errorf("%w: it has a PIN and names no storage key: whoever answers for the TPM would learn of the PIN; enrol anew", errNotUsed)
	}
	ctx, cancel := context.WithTimeout(ctx, tpmTime)
	defer cancel()
	return u, b.tpm.dev.Check(ctx, token, b.signatures())
}

// unsealAndOpen asks the TPM for a token's secret; open is what follows.
func (b *boot) unsealAndOpen(ctx context.Context, t usableToken, pin []byte, open func(usableToken, []byte) ([]byte, error)) ([]byte, error) {
	within, cancel := context.WithTimeout(ctx, tpmTime)
	defer cancel()
	secret, err := b.tpm.dev.Unseal(within, t.token, b.signatures(), pin)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	return open(t, secret)
}

// openWith opens one of the token's keyslots with the secret that the TPM gave, if
// that is of this machine's volume.
func (b *boot) openWith(ctx context.Context, h *luks2.Header, t usableToken, secret []byte, budget *luks2.Budget) (key []byte, err error) {
	pass := tpm.Passphrase(secret)
	defer clear(pass)
	err = fmt.Errorf("%w: it names no keyslot", errNotUsed)
	list := h.Keyslots()
	for i := range list {
		k := &list[i]
		if !slices.Contains(t.keyslots, k.ID) {
			continue
		}
		if key, err = budget.Unlock(h, k, pass); err != nil {
			continue
		}
		id := luks2.VolumeKeyID(key, state.DeviceName, h.UUID())
		if err = b.ours(ctx, id); err == nil || b.adopts(err) || b.vouched(ctx, id, err) {
			err = b.floorFor(id)
		}
		if err != nil {
			clear(key)
			b.pin.withheld = true
			return nil, err
		}
		b.report.TPM.PCRs, b.report.TPM.Policy, b.report.TPM.PIN = t.token.AllPCRs(), b.cfg.State.TPM2.Policy, t.token.PIN
		b.keyEnrolled = b.underPresentKey(t.token)
		b.report.State.Unlocked, b.report.State.Token, b.report.State.Keyslot = report.UnlockedTPM2, t.id, k.ID
		b.sys.Log.Info("state: unlocked by the TPM (token %d)", t.id)
		return key, nil
	}
	return nil, err
}

// stubSignatures and stubPublicKey are where systemd-stub leaves what the UKI holds.
const (
	stubSignatures = "/.extra/tpm2-pcr-signature.json"
	stubPublicKey  = "/.extra/tpm2-pcr-public-key.pem"
)

// signatures are the signed PCR values of this image, nil without a UKI that has them.
func (b *boot) signatures() pcrsig.File {
	text, err := bounded.ReadFile(b.sys.Initramfs+stubSignatures, 1<<20)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		var f pcrsig.File
		if f, err = pcrsig.Parse(text); err == nil {
			return f
		}
	}
	b.attempt("%s: %v", stubSignatures, err)
	return nil
}

// Limits of the prompt: typing wrong costs time, and not for ever.
const (
	promptTries = 30
	promptDelay = time.Second
	promptMax   = 30 * time.Second
)

// prompt asks on all consoles for the recovery key or a passphrase; wait is how long
// it waits without a key press.
func (b *boot) prompt(ctx context.Context, h *luks2.Header, wait time.Duration) ([]byte, error) {
	c, err := b.openConsole()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	// A USB keyboard may appear later than the disk.
	defer b.watchDrivers(ctx)()
	c.Print("\n\nsealroot: the encrypted state could not be unlocked automatically.\n")
	for _, a := range b.report.State.Attempts {
		c.Print("  " + a + "\n")
	}
	key, method, err := b.typedKey(ctx, c, h, promptTries, wait)
	if err != nil {
		return nil, err
	}
	c.Print("sealroot: unlocked.\n")
	b.report.State.Unlocked = method
	b.sys.Log.Info("state: unlocked by %s", method)
	if !b.trialWithStandIn() {
		b.offerBinding(ctx, c, key) // on trial it would take the token of the other slot away
	}
	return key, nil
}

// typedKey asks for a recovery key or passphrase until one opens the volume, at most
// so many times; idle is how long it waits for a key press.
func (b *boot) typedKey(ctx context.Context, c Console, h *luks2.Header, tries int, idle time.Duration) (key []byte, method string, err error) {
	delay := promptDelay
	for range tries {
		c.Print("sealroot: type the recovery key or passphrase (it is not shown) and press Enter: ")
		line, err := c.ReadLine(ctx, idle)
		c.Print("\n")
		if err != nil {
			return nil, "", err
		}
		key, method := b.tryLine(h, line, newBudget())
		clear(line[:cap(line)])
		if key != nil {
			return key, method, nil
		}
		c.Print("sealroot: that does not open the volume.\n")
		b.sys.Power.Sleep(delay)
		delay = min(2*delay, promptMax)
		// A key that hangs must not use up the tries of whoever comes next.
		c.Flush()
	}
	return nil, "", fmt.Errorf("%d wrong entries", tries)
}

// tryLine tries what a person typed: as a recovery key where it has the form of
// one, then as it is.
func (b *boot) tryLine(h *luks2.Header, line []byte, budget *luks2.Budget) (key []byte, method string) {
	if len(line) == 0 {
		return nil, ""
	}
	if slices.Contains(b.cfg.State.Unlock, config.UnlockRecoveryKey) {
		if pass, err := luks2.NormalizeRecoveryKey(line); err == nil {
			key := b.tryKeyslots(h, h.MayHoldRecovery(), pass, budget)
			clear(pass)
			if key != nil {
				return key, report.UnlockedRecoveryKey
			}
		}
	}
	if slices.Contains(b.cfg.State.Unlock, config.UnlockPassphrase) {
		if key := b.tryKeyslots(h, anyKeyslot, line, budget); key != nil {
			return key, report.UnlockedPassphrase
		}
	}
	return nil, ""
}

func anyKeyslot(*luks2.KeyslotInfo) bool { return true }

func (b *boot) tryKeyslots(h *luks2.Header, may func(*luks2.KeyslotInfo) bool, pass []byte, budget *luks2.Budget) []byte {
	list := h.Keyslots()
	for i := range list {
		k := &list[i]
		if !may(k) {
			continue
		}
		key, err := budget.Unlock(h, k, pass)
		if err == nil {
			b.report.State.Keyslot = k.ID
			return key
		}
		if errors.Is(err, luks2.ErrKDFCost) && !slices.Contains(b.report.State.Attempts, clean(err.Error())) {
			b.attempt("%v", err)
		}
	}
	return nil
}
