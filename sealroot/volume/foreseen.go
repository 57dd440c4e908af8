package volume

import (
	"context"
	"maps"
	"slices"

	"sealroot/state/luks2"
	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
)

// Foreseen are the PCRs of a boot of another image that differ from those of the
// present one, in bank sha256.
type Foreseen = tpm.Values

// OpenedBy is the token that opens the volume at such a boot; ok is false when none
// does, or it is not known.
func (l Look) OpenedBy(ctx context.Context, h *luks2.Header, at Foreseen) (id int, ok bool) {
	for _, t := range h.Tokens() {
		token, literal := l.literalToken(t)
		if !literal {
			continue
		}
		if fits, err := l.fits(ctx, token, at); err == nil && fits {
			return t.ID, true
		}
	}
	return 0, false
}

// literalToken reads a token that PID 1 takes and whose policy is one of fixed PCRs in
// bank sha256 alone.
func (l Look) literalToken(t luks2.Token) (tpm.Token, bool) {
	if t.Type != tpm.TokenType {
		return tpm.Token{}, false
	}
	token, err := tpm.ParseToken(t.JSON)
	ok := err == nil && token.Usable() == nil && token.PubKey == nil && token.Bank == pcrsig.SHA256 &&
		token.PIN == l.PIN && (!token.PIN || token.StorageKey() != nil) && (token.Capped() || l.AllowUncapped)
	return token, ok
}

// Unused are the tokens of this policy whose values no boot in kept has: those that
// were prepared for, or made by, images that are not there any more. The first in kept
// is the present boot: where no token opens that, PCRs have moved that no image moves,
// and none is unused, as nobody knows which come back. Tokens of another policy stay.
func (l Look) Unused(ctx context.Context, h *luks2.Header, p tpm.Policy, kept []Foreseen) (ids []int, err error) {
	if _, ok := l.OpenedBy(ctx, h, kept[0]); !ok {
		return nil, nil
	}
	for _, t := range h.Tokens() {
		token, literal := l.literalToken(t)
		if !literal || len(token.Unknown) > 0 || len(t.Keyslots) != 1 || !slices.Equal(slices.Sorted(slices.Values(token.PCRs)), slices.Sorted(slices.Values(p.PCRs))) {
			continue
		}
		used := false
		for _, at := range kept {
			fits, err := l.fits(ctx, token, at)
			if err != nil {
				return nil, err
			}
			used = used || fits
		}
		if !used {
			ids = append(ids, t.ID)
		}
	}
	return ids, nil
}

// Prepare returns a header in which a new secret, sealed for the boot that is foreseen,
// stands beside those that are there, but for the tokens in retire. Errors as of Enroll.
func (l Look) Prepare(ctx context.Context, h *luks2.Header, p tpm.Policy, at Foreseen, retire []int, c Change) (*luks2.Header, Enrolled, error) {
	e := Enrolled{Replaced: []Replaced{}, Kept: []int{}}
	for _, id := range retire {
		e.Replaced = append(e.Replaced, Replaced{Token: id, NextBoot: No, Why: "no slot has the image that it was for"})
	}
	values := maps.Clone(p.Values)
	for pcr, v := range at {
		if slices.Contains(p.PCRs, pcr) {
			values[pcr] = v
		}
	}
	p.Bank, p.Values = pcrsig.SHA256, values
	h, err := l.seal(ctx, h, p, c, retire, &e)
	return h, e, err
}
