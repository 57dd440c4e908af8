package boot

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"sealroot/state/tpm"
)

// A PIN counts once it was wrong for every token, however few the TPM allows at once.
func TestPINRound(t *testing.T) {
	broken := errors.New("opens nothing")
	for _, tt := range []struct {
		name   string
		tokens int
		most   int
		right  map[int]error // what else than a wrong PIN a token says
		rounds []error       // what each round ends in
		left   []int
	}{
		{"one", 1, 1, nil, []error{tpm.ErrPIN, tpm.ErrPIN}, []int{0}},
		{"the_second_opens", 2, 2, map[int]error{1: nil}, []error{nil}, []int{1, 0}},
		{"all_wrong", 3, 3, nil, []error{tpm.ErrPIN}, []int{0, 1, 2}},
		{"one_at_a_time", 3, 1, map[int]error{2: nil}, []error{errNotAll, errNotAll, nil}, []int{2, 0, 1}},
		{"locked_out", 3, 3, map[int]error{1: tpm.ErrLockedOut}, []error{tpm.ErrLockedOut}, []int{1, 2, 0}},
		{"one_is_broken", 2, 2, map[int]error{0: broken}, []error{tpm.ErrPIN, tpm.ErrPIN}, []int{1}},
		{"all_are_broken", 2, 2, map[int]error{0: broken, 1: broken}, []error{broken}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := pinRound{}
			for i := range tt.tokens {
				r.left = append(r.left, usableToken{id: i})
			}
			for n, want := range tt.rounds {
				err := r.try(tt.most, func(u usableToken) error {
					if err, ok := tt.right[u.id]; ok {
						return err
					}
					return fmt.Errorf("of the TPM: %w", tpm.ErrPIN)
				}, func(u usableToken, err error) {
					if !errors.Is(err, broken) {
						t.Errorf("token %d is refused: %v", u.id, err)
					}
				})
				if !errors.Is(err, want) || errors.Is(err, errNotAll) != (want == errNotAll) {
					t.Errorf("round %d: %v, want %v", n, err, want)
				}
			}
			var left []int
			for _, u := range r.left {
				left = append(left, u.id)
			}
			if !slices.Equal(left, tt.left) {
				t.Errorf("left %v, want %v", left, tt.left)
			}
		})
	}
}

// withForeign is s with tokens that somebody sealed under the policy and a PIN of
// their own, in front of the owner's.
func (s *sealed) withForeign(n int) {
	s.t.Helper()
	b := s.boot(&person{})
	policy, err := b.sealablePolicy(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	h := s.header()
	own := h.Tokens()[0].JSON
	if h, err = h.RemoveToken(0); err != nil {
		s.t.Fatal(err)
	}
	for i := range n + 1 {
		text := own
		if i < n {
			token, _, err := b.sealNew(s.t.Context(), policy, []byte("theirs"))
			if err != nil {
				s.t.Fatal(err)
			}
			token.Keyslots = []int{tpmKeyslot}
			if text, err = token.Encode(); err != nil {
				s.t.Fatal(err)
			}
		}
		if h, err = h.AddToken(i, text); err != nil {
			s.t.Fatal(err)
		}
	}
	s.write(h)
}

// Tokens in front of the owner's do not use up the owner's tries, nor do they lock
// the TPM by themselves.
func TestForeignTokensAndPIN(t *testing.T) {
	for _, tt := range []struct {
		name    string
		foreign int
		limit   string // failed tries that lock the TPM
		lines   []string
		method  string
		tries   int
	}{
		{"one", 1, "10", []string{"1234"}, "tpm2", 0},
		{"one_and_a_wrong_PIN", 1, "10", []string{"4321", "1234"}, "tpm2", 1},
		{"as_many_as_it_takes", 2, "4", []string{"1234"}, "tpm2", 0},
		// The TPM locks after three: two are tried, and then the last one.
		{"more_than_the_TPM_allows_at_once", 2, "3", []string{"1234", "1234"}, "tpm2", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSealed(t, true, "1234", "1234")
			s.m.MustRun("", "tpm2_dictionarylockout", "-s", "-n", tt.limit, "-t", "1000", "-l", "1000")
			s.withForeign(tt.foreign)
			p := &person{lines: tt.lines}
			b := s.boot(p)
			if err := s.open(b); err != nil || b.report.State.Unlocked != tt.method || b.pinTries != tt.tries {
				t.Errorf("open: %v, by %q after %d wrong PINs, want %q after %d; attempts %q, the console shows\n%s",
					err, b.report.State.Unlocked, b.pinTries, tt.method, tt.tries, b.report.State.Attempts, p.saw.String())
			}
			if strings.Contains(p.saw.String(), "takes no PIN") {
				t.Error("the TPM is locked")
			}
		})
	}
}
