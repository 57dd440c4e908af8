package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sealroot/state/luks2"
	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
)

// Prospect says whether a token will open the volume at the next boot of the image
// that runs.
type Prospect string

// The prospects.
const (
	Yes         Prospect = "yes"
	No          Prospect = "no"
	NotKnown    Prospect = "unknown"
	NeedsPerson Prospect = "with-pin"
)

// Token is one token of the header.
type Token struct {
	ID       int    `json:"id"`
	Type     string `json:"type"`
	Keyslots []int  `json:"keyslots"`
	// The rest is for tokens of the TPM.
	Policy     string `json:"policy,omitempty"` // in words
	PCRs       []int  `json:"pcrs,omitempty"`   // bound to fixed values
	SignedPCRs []int  `json:"signed_pcrs,omitempty"`
	Bank       string `json:"bank,omitempty"`
	PIN        bool   `json:"pin,omitempty"`
	// Key is the fingerprint of the PCR policy key that signs for SignedPCRs: SHA-256
	// of PKCS#1 DER in hex. PreviousKey: it is not the present one of the image, and
	// still counts.
	Key         string `json:"key,omitempty"`
	PreviousKey bool   `json:"previous_key,omitempty"`
	// OpensNow: the TPM gives the key to the system that runs.
	OpensNow bool     `json:"opens_now,omitempty"`
	NextBoot Prospect `json:"next_boot,omitempty"`
	Why      string   `json:"why,omitempty"`
}

// Look is what is known of the TPM and of the image that runs.
type Look struct {
	TPM *tpm.TPM // nil: there is none, or it does not answer
	Why string   // why there is none
	// PublicKey is the PCR policy key of the image, PEM; nil: it has none.
	PublicKey []byte
	// PreviousKeys are those before it that still count, PEM.
	PreviousKeys [][]byte
	// Kernel is PCR 11 in the initramfs of the image, by bank; missing: not known.
	Kernel map[tpm.Bank][]byte
	// AllowUncapped: PID 1 takes tokens without a PCR that it closes.
	AllowUncapped bool
	// PIN: state.tpm2.pin is set. PID 1 takes no token of the other kind.
	PIN bool
}

// Tokens lists the tokens of a header, with what they will do.
func (l Look) Tokens(ctx context.Context, h *luks2.Header) []Token {
	list := []Token{}
	for _, t := range h.Tokens() {
		one := Token{ID: t.ID, Type: t.Type, Keyslots: append([]int{}, t.Keyslots...)}
		if t.Type == tpm.TokenType {
			l.token(ctx, &one, t.JSON)
		}
		list = append(list, one)
	}
	return list
}

// Dead are those of the TPM's tokens that will not open the next boot.
func (l Look) Dead(ctx context.Context, h *luks2.Header) (ids []int) {
	for _, t := range l.Tokens(ctx, h) {
		if t.NextBoot == No {
			ids = append(ids, t.ID)
		}
	}
	return ids
}

func (l Look) token(ctx context.Context, one *Token, text []byte) {
	t, err := tpm.ParseToken(text)
	if err != nil {
		one.NextBoot, one.Why = No, err.Error()
		return
	}
	one.PCRs, one.SignedPCRs, one.Bank, one.PIN = t.PCRs, t.PubPCRs, string(t.Bank), t.PIN
	one.Policy = Words(t)
	if key, err := pcrsig.ParsePublicKey(t.PubKey); err == nil {
		one.Key = fmt.Sprintf("%x", pcrsig.Fingerprint(key))
		one.PreviousKey = l.previous(t.PubKey)
	}
	one.NextBoot, one.Why, one.OpensNow = l.examine(ctx, t)
}

// Words is a token's policy for people.
func Words(t tpm.Token) string {
	var parts []string
	if len(t.PubPCRs) > 0 {
		parts = append(parts, "signed PCR "+ints(t.PubPCRs))
	}
	if len(t.PCRs) > 0 {
		parts = append(parts, "PCR "+ints(t.PCRs)+" as when it was sealed")
	}
	if t.PIN {
		parts = append(parts, "a PIN")
	}
	if len(parts) == 0 {
		return "whatever runs"
	}
	return strings.Join(parts, " and ")
}

func ints(list []int) string {
	words := make([]string, len(list))
	for i, n := range list {
		words[i] = fmt.Sprint(n)
	}
	return strings.Join(words, ", ")
}

// Examine says what a token will do at the next boot, and why not.
func (l Look) Examine(ctx context.Context, t tpm.Token) (Prospect, string) {
	p, why, _ := l.examine(ctx, t)
	return p, why
}

func (l Look) examine(ctx context.Context, t tpm.Token) (p Prospect, why string, now bool) {
	if err := t.Usable(); err != nil {
		return No, err.Error(), false
	}
	if !t.Capped() && !l.AllowUncapped {
		return No, "its policy holds no PCR that is closed before hand-over", false
	}
	if t.PIN != l.PIN {
		return No, map[bool]string{
			true:  "it has a PIN, and state.tpm2.pin is not set",
			false: "it opens without a PIN, and state.tpm2.pin is set",
		}[t.PIN], false
	}
	if t.PIN && t.StorageKey() == nil {
		return No, "it has a PIN and names no storage key of the TPM", false
	}
	if l.TPM == nil {
		return NotKnown, l.Why, false
	}
	if why, no := l.otherKey(t); no {
		return No, why, false
	}
	// The PCRs are closed, so that an unseal tells only whose TPM it is.
	if !t.PIN {
		secret, err := l.TPM.Unseal(ctx, t, nil, nil)
		clear(secret)
		switch {
		case err == nil:
			return Yes, "the system that runs can unseal it as well", true
		case errors.Is(err, tpm.ErrOtherTPM):
			return No, tpm.ErrOtherTPM.Error() + ", or this one was cleared", false
		case !errors.Is(err, tpm.ErrPCRsChanged) && !errors.Is(err, tpm.ErrPolicy):
			return NotKnown, err.Error(), false
		}
	}
	p, why = l.literal(ctx, t)
	if p == Yes && t.PIN {
		p = NeedsPerson
	}
	return p, why, false
}

// otherKey: the image has no signatures by the key of the token.
func (l Look) otherKey(t tpm.Token) (why string, other bool) {
	if t.PubKey == nil {
		return "", false
	}
	if l.PublicKey == nil {
		return "the image that runs has no PCR policy key", true
	}
	for _, key := range [][]byte{l.PublicKey, t.PubKey} {
		if _, err := pcrsig.ParsePublicKey(key); err != nil {
			return err.Error(), true
		}
	}
	if !pcrsig.SameKey(l.PublicKey, t.PubKey) && !l.previous(t.PubKey) {
		return "the PCR policy key of the token is not that of the image that runs, and none that it lists as a previous one", true
	}
	return "", false
}

// previous tells whether a key (PEM) is one of before that still counts.
func (l Look) previous(key []byte) bool {
	return !pcrsig.SameKey(l.PublicKey, key) && slices.ContainsFunc(l.PreviousKeys, func(p []byte) bool { return pcrsig.SameKey(p, key) })
}

// Identity is the volume that the TPM has for this machine's, as PID 1 reads it: under
// the policy, or the same with a previous key. Errors: tpm.ErrUnpinned, and the TPM's.
func (l Look) Identity(ctx context.Context, p tpm.Policy) ([]byte, error) {
	id, err := l.TPM.ReadIdentity(ctx, p)
	if p.PublicKey == nil {
		return id, err
	}
	for _, key := range l.PreviousKeys {
		if !errors.Is(err, tpm.ErrUnpinned) {
			break
		}
		p.PublicKey = key
		id, err = l.TPM.ReadIdentity(ctx, p)
	}
	return id, err
}

// literal compares the fixed PCRs with what they are at a boot of this image.
func (l Look) literal(ctx context.Context, t tpm.Token) (Prospect, string) {
	if t.PubKey != nil && t.SRK == nil {
		return NotKnown, "an older program made it, whose policy has a form of its own"
	}
	fits, err := l.fits(ctx, t, nil)
	if err != nil {
		return NotKnown, err.Error()
	}
	if fits {
		return Yes, ""
	}
	firmware := slices.DeleteFunc(slices.Clone(t.PCRs), func(pcr int) bool { return pcr == pcrsig.PCRVolume })
	if len(firmware) == 1 {
		return No, fmt.Sprintf("PCR %d of bank %s changed", firmware[0], t.Bank)
	}
	return No, fmt.Sprintf("one of PCR %s of bank %s changed", ints(firmware), t.Bank)
}

// fits says whether a token's policy is met by the PCRs of a boot of the image that
// runs, but for those in other.
func (l Look) fits(ctx context.Context, t tpm.Token, other tpm.Values) (bool, error) {
	values, err := l.values(ctx, t.Bank, t.PCRs)
	if err != nil {
		return false, err
	}
	for pcr, v := range other {
		values[pcr] = v
	}
	return tpm.Policy{SignedPCRs: t.PubPCRs, PublicKey: t.PubKey, PCRs: t.PCRs, Bank: t.Bank, PIN: t.PIN}.Fits(t.Policy, values)
}

// errKernel: nobody here knows what the stub measures of the image.
var errKernel = errors.New("what PCR 11 holds in the initramfs is not known: the unified kernel image of the slot that runs cannot be read, or is not the one that was booted")

// values are those of fixed PCRs when PID 1 unlocks: those that it closes are not
// what they were.
func (l Look) values(ctx context.Context, bank tpm.Bank, pcrs []int) (tpm.Values, error) {
	hash, err := bank.Hash()
	if err != nil {
		return nil, err
	}
	values := tpm.Values{}
	var ask []int
	for _, pcr := range pcrs {
		switch pcr {
		case pcrsig.PCRVolume:
			values[pcr] = make([]byte, hash.Size())
		case pcrsig.PCRKernel:
			if l.Kernel[bank] == nil {
				return nil, errKernel
			}
			values[pcr] = l.Kernel[bank]
		default:
			ask = append(ask, pcr)
		}
	}
	if len(ask) == 0 {
		return values, nil
	}
	now, err := l.TPM.ReadPCRs(ctx, bank, ask)
	for pcr, v := range now {
		values[pcr] = v
	}
	return values, err
}
