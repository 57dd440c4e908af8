package boot

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"sealroot/state/tpm"
	"sealroot/state/tpm/tpmtest"
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

// between is B on the TPM's bus: a TPM of their own answers for the owner's where a
// token of theirs is in turn.
type between struct {
	owner, theirs *tpmtest.Machine
	named         bool // their token names the key of theirs
	turned        bool // to theirs
	unsealed      int  // on theirs: proofs of the PIN in a session that they know
}

func (b *between) Close() error { return nil }

func (b *between) Send(ctx context.Context, command []byte) ([]byte, error) {
	switch code := tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])); code {
	case tpm2.TPMCCReadPublic: // of the SRK: theirs first, as their token is
		b.turned = b.named && !b.turned
	case tpm2.TPMCCCreatePrimary:
		b.turned = true
		// The template of the SRK in place of the transient one's: noDA.
		command = bytes.Replace(command, []byte{0, 3, 0, 0x72}, []byte{0, 3, 4, 0x72}, 1)
	case tpm2.TPMCCNVReadPublic, tpm2.TPMCCNVRead, tpm2.TPMCCGetCapability:
		return b.owner.Send(ctx, command)
	case tpm2.TPMCCUnseal:
		if b.turned {
			b.unsealed++
		}
	}
	if b.turned {
		return b.theirs.Send(ctx, command)
	}
	return b.owner.Send(ctx, command)
}

// Who is in the middle of the bus and writes the disk puts a token of their own in
// front of the owner's, and gets no proof of the PIN.
func TestPINAndBus(t *testing.T) {
	for _, tt := range []struct {
		name    string
		without bool // tpm2_srk
		lines   []string
		method  string
		why     string
	}{
		{"names_no_key", true, []string{"1234"}, "tpm2", "names no storage key"},
		{"names_another_key", false, []string{"open sesame"}, "passphrase", errOtherKeys.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSealed(t, true, "1234", "1234")
			theirs := &sealed{t: t, m: tpmtest.Start(t), outer: s.outer, pin: true}
			theirs.measure("grub.cfg")
			b := theirs.boot(&person{})
			policy, err := b.sealablePolicy(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			token, _, err := b.sealNew(t.Context(), policy, []byte("theirs"))
			if err != nil {
				t.Fatal(err)
			}
			token.Keyslots = []int{tpmKeyslot}
			if tt.without {
				token.SRK, token.Salt = nil, nil
			}
			text, err := token.Encode()
			if err != nil {
				t.Fatal(err)
			}
			h := s.header()
			own := h.Tokens()[0].JSON
			if h, err = h.RemoveToken(0); err == nil {
				h, err = h.AddToken(0, text)
			}
			if err == nil {
				h, err = h.AddToken(1, own)
			}
			if err != nil {
				t.Fatal(err)
			}
			s.write(h)

			p, bus := &person{lines: tt.lines}, &between{owner: s.m, theirs: theirs.m, named: !tt.without}
			b = s.boot(p)
			b.tpm.dev = tpm.New(bus)
			if err := s.open(b); err != nil || b.report.State.Unlocked != tt.method {
				t.Errorf("open: %v, by %q, want %q; the console shows\n%s", err, b.report.State.Unlocked, tt.method, p.saw.String())
			}
			if bus.unsealed > 0 {
				t.Errorf("%d proofs of the PIN went to the TPM in between", bus.unsealed)
			}
			if why := strings.Join(b.report.State.Attempts, "\n"); !strings.Contains(why, tt.why) {
				t.Errorf("attempts %q, want %q", why, tt.why)
			}
			if strings.Contains(p.saw.String(), "bind the TPM") {
				t.Errorf("a new PIN is asked for:\n%s", p.saw.String())
			}
		})
	}
}
