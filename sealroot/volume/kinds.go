package volume

import (
	"errors"
	"fmt"
	"slices"

	"sealroot/state/enrol"
	"sealroot/state/luks2"
	"sealroot/state/tpm"
)

// Kind says what opens a keyslot.
type Kind string

// The kinds.
const (
	TPM2       Kind = "tpm2"
	Recovery   Kind = "recovery"
	Manage     Kind = "manage"
	Passphrase Kind = "passphrase"
	// Unknown keyslots have a token of another program, or none and the key
	// derivation of random secrets, as key files have.
	Unknown Kind = "unknown"
)

// Kinds are those that a person may name.
func Kinds() []Kind { return []Kind{TPM2, Recovery, Passphrase, Manage} }

// Keyslot is one keyslot.
type Keyslot struct {
	ID   int    `json:"id"`
	Kind Kind   `json:"kind"`
	KDF  string `json:"kdf"`
	// Tokens name the keyslot.
	Tokens []int `json:"tokens"`
}

// Keyslots lists the keyslots of a header by id.
func Keyslots(h *luks2.Header) []Keyslot {
	list := []Keyslot{}
	for _, k := range h.Keyslots() {
		one := Keyslot{ID: k.ID, Kind: Unknown, KDF: k.KDF.Type, Tokens: []int{}}
		if k.KDF.Type != luks2.KDFPBKDF2 {
			one.Kind = Passphrase
		}
		for _, t := range h.Tokens() {
			if !slices.Contains(t.Keyslots, k.ID) {
				continue
			}
			one.Tokens = append(one.Tokens, t.ID)
			one.Kind = kindOf(t.Type)
		}
		list = append(list, one)
	}
	return list
}

func kindOf(token string) Kind {
	switch token {
	case tpm.TokenType:
		return TPM2
	case luks2.RecoveryTokenType:
		return Recovery
	case enrol.ManageTokenType:
		return Manage
	}
	return Unknown
}

// WithoutTPM tells whether keyslots open a volume when the TPM does not: a recovery key, a
// passphrase or, where PID 1 looks for a key file, one that nothing names.
func WithoutTPM(list []Keyslot, keyFile bool) bool {
	return slices.ContainsFunc(list, func(k Keyslot) bool {
		return k.Kind == Recovery || k.Kind == Passphrase || k.Kind == Unknown && keyFile
	})
}

// Of lists the keyslots of a kind.
func Of(h *luks2.Header, kind Kind) []int {
	var ids []int
	for _, k := range Keyslots(h) {
		if k.Kind == kind {
			ids = append(ids, k.ID)
		}
	}
	return ids
}

// ErrNothing: there is no such keyslot.
var ErrNothing = errors.New("there is no such keyslot")

// Ways is what is known of the keyslots that need no person.
type Ways struct {
	Dead    []int // tokens of the TPM that will not open the volume
	KeyFile bool  // PID 1 looks for a key file, whose keyslot nothing names
}

func (w Ways) alive(k Keyslot) bool {
	return slices.ContainsFunc(k.Tokens, func(t int) bool { return !slices.Contains(w.Dead, t) })
}

// Remove returns a header without these keyslots and the tokens that name them. One
// that opens the volume from outside has to be left: the manage key lies inside of
// it, a dead token opens nothing, and what an unknown keyslot is for nobody knows.
// Errors: ErrNothing, luks2.ErrLastKeyslot.
func Remove(h *luks2.Header, keyslots []int, ways Ways) (*luks2.Header, error) {
	var tokens []int
	there, opens := 0, false
	for _, k := range Keyslots(h) {
		if slices.Contains(keyslots, k.ID) {
			there++
			tokens = append(tokens, k.Tokens...)
			continue
		}
		switch k.Kind {
		case Recovery, Passphrase:
			opens = true
		case TPM2:
			opens = opens || ways.alive(k)
		case Unknown:
			opens = opens || ways.KeyFile
		}
	}
	switch {
	case there == 0 || there != len(keyslots):
		return nil, fmt.Errorf("cannot remove keyslots %v: %w", keyslots, ErrNothing)
	case !opens:
		return nil, fmt.Errorf("cannot remove keyslots %v: nothing that is known would open the volume at a boot: %w", keyslots, luks2.ErrLastKeyslot)
	}
	slices.Sort(tokens)
	return h.Retire(slices.Compact(tokens), keyslots)
}

// Left lists in words what opens a volume.
func Left(h *luks2.Header, ways Ways) []string {
	names := map[Kind]string{
		TPM2: "the TPM", Recovery: "a recovery key", Passphrase: "a passphrase",
		Manage: "the manage key", Unknown: "something that is not known here",
	}
	var words []string
	for _, k := range append(Kinds(), Unknown) {
		if slices.ContainsFunc(Keyslots(h), func(one Keyslot) bool { return one.Kind == k && (k != TPM2 || ways.alive(one)) }) {
			words = append(words, names[k])
		}
	}
	return words
}
