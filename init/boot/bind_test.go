package boot

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount/kmod"
	"sealroot/slots"
	"sealroot/state"
	"sealroot/state/luks2"
	"sealroot/state/tpm"
	"sealroot/state/tpm/tpmtest"
)

// sealed is a machine with a volume on its disk, sealed to PCR 8.
type sealed struct {
	t     *testing.T
	m     *tpmtest.Machine
	outer *os.File
	id    []byte
	pin   bool // state.tpm2.pin
}

// newSealed makes one; lines are what is typed at its first boot.
func newSealed(t *testing.T, pin bool, lines ...string) *sealed {
	t.Helper()
	s := &sealed{t: t, m: tpmtest.Start(t), outer: outerWithVolume(t), pin: pin}
	s.measure("grub.cfg")
	h, key, _ := volume(t)
	s.id = luks2.VolumeKeyID(key, state.DeviceName, h.UUID())
	b := s.boot(&person{lines: lines})
	h, err := h.RemoveKeyslot(tpmKeyslot)
	if err == nil {
		h, err = b.enrollTPM(t.Context(), h, key)
	}
	if err == nil {
		err = b.makePin(t.Context(), s.id)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.write(h)
	return s
}

func (s *sealed) measure(text string) {
	s.t.Helper()
	if err := tpm.New(s.m).Extend(s.t.Context(), 8, []byte(text)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sealed) write(h *luks2.Header) {
	s.t.Helper()
	f, err := os.OpenFile(filepath.Join(s.outer.Name(), state.ImageName), os.O_RDWR, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if _, err := luks2.WriteNew(f, h, rand.Reader); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sealed) header() *luks2.Header {
	s.t.Helper()
	f, err := os.Open(filepath.Join(s.outer.Name(), state.ImageName))
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	h, err := luks2.Read(f, 1<<30)
	if err != nil {
		s.t.Fatal(err)
	}
	return h
}

// boot is one boot of the machine, up to its state.
func (s *sealed) boot(p *person) *boot {
	s.t.Helper()
	b := measuring(s.t, s.m, config.UnlockTPM2, config.UnlockPassphrase)
	b.cfg.Trust.RollbackFloor = false
	b.cfg.State.OnFailure = []string{config.FailurePrompt, config.FailureHalt}
	b.cfg.State.TPM2.PCRs, b.cfg.State.TPM2.PIN = []int{8}, s.pin
	b.sys.Rand, b.sys.Power = rand.Reader, &fakePower{}
	b.sys.OpenConsole = func() (Console, error) { return p, nil }
	b.loader, b.sys.Devices = kmod.NewLoader(kmod.List{}, "/nonexistent", nil), &fakeDevices{t: s.t}
	if err := b.openTPM(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	return b
}

// open opens the volume as openVolume does.
func (s *sealed) open(b *boot) error {
	s.t.Helper()
	v, err := state.Open(s.outer, b.sys.Devices, state.Oversized, func(l *state.LockedVolume) ([]byte, error) {
		b.binding.volume = l
		return b.unlock(s.t.Context(), l.Header)
	})
	if err != nil {
		return err
	}
	b.keepPin(s.t.Context(), s.id)
	return v.Close()
}

// After the PCRs changed, the TPM is bound anew by the word yes of a person who has
// opened the volume, and by nothing else.
func TestBinding(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(s *sealed)
		lines  []string
		bound  bool
		asks   bool
		shows  string
	}{
		{"yes", func(s *sealed) { s.measure("another") }, []string{"open sesame", " yes "}, true, true, "one of the PCRs 8, 15 of bank sha256 changed"},
		{"no", func(s *sealed) { s.measure("another") }, []string{"open sesame", "no"}, false, true, "nothing was bound"},
		{"y_is_not_yes", func(s *sealed) { s.measure("another") }, []string{"open sesame", "y"}, false, true, "nothing was bound"},
		{"nobody_answers", func(s *sealed) { s.measure("another") }, []string{"open sesame"}, false, true, "nothing was bound"},
		{"no_token", func(s *sealed) {
			h, err := s.header().Retire([]int{tpmKeyslot}, nil)
			if err != nil {
				s.t.Fatal(err)
			}
			s.write(h)
		}, []string{"open sesame", "yes"}, true, true, errNoToken.Error()},
		// Whose record it is stays, and nobody is asked.
		{"another_volume_is_pinned", func(s *sealed) {
			if err := s.boot(&person{}).makePin(s.t.Context(), bytes.Repeat([]byte{5}, 32)); err != nil {
				s.t.Fatal(err)
			}
		}, []string{"open sesame", "yes"}, false, false, errOtherVolume.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSealed(t, false)
			tt.change(s)
			before := s.header()
			p := &person{lines: tt.lines}
			b := s.boot(p)
			if err := s.open(b); err != nil || b.report.State.Unlocked != "passphrase" {
				t.Fatalf("open: %v, unlocked by %q, attempts %q", err, b.report.State.Unlocked, b.report.State.Attempts)
			}
			asks := strings.Contains(p.saw.String(), "Type yes")
			if asks != tt.asks || !strings.Contains(p.saw.String(), tt.shows) {
				t.Errorf("asks: %v, want %v and %q; the console shows\n%s", asks, tt.asks, tt.shows, p.saw.String())
			}
			after := s.header()
			if changed := after.SequenceID() != before.SequenceID(); changed != (tt.bound && tt.asks) {
				t.Errorf("the header was written: %v", changed)
			}
			if tokens := after.TokensOfType(tpm.TokenType); tt.bound && len(tokens) != 1 || len(after.Keyslots()) > 2 {
				t.Errorf("tokens %v, %d keyslots, want the old ones gone", tokens, len(after.Keyslots()))
			}
			next := s.boot(&person{})
			err := s.open(next)
			if (err == nil) != tt.bound || tt.bound && (next.report.State.Unlocked != "tpm2" || next.report.State.Pinned != report.PinnedYes) {
				t.Errorf("the next boot: %v, state %+v, want it to unlock by itself: %v", err, next.report.State, tt.bound)
			}
		})
	}
}

// With a pin that names another volume nothing that somebody types binds this one: it
// opens, with a warning, and ours opens by itself when it is back. Once the pin is
// undefined, as the owner of both volumes does it, this one is pinned.
func TestBindingOfAnotherVolume(t *testing.T) {
	s := newSealed(t, false)
	s.measure("another") // the TPM does not open it either
	ours := bytes.Repeat([]byte{5}, 32)
	if err := s.boot(&person{}).makePin(t.Context(), ours); err != nil {
		t.Fatal(err)
	}
	open := func(lines ...string) (*boot, *person) {
		t.Helper()
		p := &person{lines: lines}
		b := s.boot(p)
		if err := s.open(b); err != nil {
			t.Fatal(err)
		}
		return b, p
	}
	before := s.header().SequenceID()
	b, p := open("open sesame", "yes")
	warnings := strings.Join(b.report.Warnings, "\n")
	if !strings.Contains(p.saw.String(), "NOT THE VOLUME OF THIS MACHINE") || strings.Count(warnings, "ANOTHER VOLUME") != 1 || b.report.State.Pinned != report.PinnedNo {
		t.Errorf("pinned: %q, warnings %q, the console shows\n%s", b.report.State.Pinned, warnings, p.saw.String())
	}
	if s.header().SequenceID() != before || s.boot(&person{}).ours(t.Context(), ours) != nil {
		t.Error("the header or the pin was written")
	}

	for _, index := range []string{"0x1c05ea3", "0x1c05ea4"} {
		s.m.Run("", "tpm2_nvundefine", index, "-C", "o")
	}
	if b, _ := open("open sesame", "yes"); b.report.State.Pinned != report.PinnedAnew {
		t.Errorf("undefined: pinned: %q, want %q", b.report.State.Pinned, report.PinnedAnew)
	}
	if b, _ := open(); b.report.State.Unlocked != config.UnlockTPM2 || b.report.State.Pinned != report.PinnedYes {
		t.Errorf("the boot after: state %+v, want it to unlock by itself", b.report.State)
	}
}

// A cut after the pin was written leaves the old token, and the question; what
// passes by itself is no reason to ask.
func TestBindingThatIsCut(t *testing.T) {
	s := newSealed(t, false)
	s.measure("another")
	if err := s.boot(&person{}).makePin(t.Context(), s.id); err != nil {
		t.Fatal(err)
	}
	p := &person{lines: []string{"open sesame", "yes"}}
	if err := s.open(s.boot(p)); err != nil || !strings.Contains(p.saw.String(), "Type yes") {
		t.Errorf("open: %v, the console shows\n%s", err, p.saw.String())
	}
	for _, cause := range []error{tpm.ErrBusy, tpm.ErrFails, tpm.ErrLockedOut, errNotPinned, errOtherVolume, errNoFloor} {
		if lasting(cause) {
			t.Errorf("bound anew because of %v", cause)
		}
	}
}

// Tokens of other tools, and of the keyslot that a person used, stay.
func TestDeadTokens(t *testing.T) {
	s := newSealed(t, false)
	h := s.header()
	foreign := bytes.Replace(h.Tokens()[0].JSON, []byte(`"type"`), []byte(`"x-new":1,"type"`), 1)
	h, err := h.AddToken(7, foreign)
	if err != nil {
		t.Fatal(err)
	}
	if got := deadTokens(h, 5); !slices.Equal(got, []int{tpmKeyslot}) {
		t.Errorf("dead tokens %v, want %d", got, tpmKeyslot)
	}
	if got := deadTokens(h, tpmKeyslot); len(got) > 0 {
		t.Errorf("dead tokens %v, and one names the keyslot that is used", got)
	}
}

func TestTPMPIN(t *testing.T) {
	s := newSealed(t, true, "12", "12", "1234", "1235", "1234", "1234")
	s.m.MustRun("", "tpm2_dictionarylockout", "-s", "-n", "10", "-t", "1000", "-l", "1000")
	for _, tt := range []struct {
		name   string
		lines  []string
		method string
		shows  string
		tries  int
	}{
		{"right", []string{"1234"}, "tpm2", "", 0},
		{"empty_does_not_count", []string{"", "", "", "", "1234"}, "tpm2", "", 0},
		{"right_after_a_wrong_one", []string{"12345", "1234"}, "tpm2", "Tries left: 2", 1},
		{"three_wrong_ones_then_the_passphrase", []string{"a", "b", "c", "open sesame", "no"}, "passphrase", "TPM PIN refused", 3},
		{"nobody", nil, "", "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &person{lines: tt.lines}
			b := s.boot(p)
			err := s.open(b)
			if (err == nil) != (tt.method != "") || b.report.State.Unlocked != tt.method || b.pinTries != tt.tries || !strings.Contains(p.saw.String(), tt.shows) {
				t.Errorf("open: %v, by %q after %d wrong PINs, want %q after %d; the console shows\n%s", err, b.report.State.Unlocked, b.pinTries, tt.method, tt.tries, p.saw.String())
			}
			if len(p.lines) > 0 {
				t.Errorf("lines %q are left", p.lines)
			}
		})
	}

	t.Run("PCRs_changed_and_no_question_for_a_PIN", func(t *testing.T) {
		s.measure("another")
		p := &person{lines: []string{"open sesame", "yes", "new PIN", "new PIN"}}
		b := s.boot(p)
		if err := s.open(b); err != nil || strings.Contains(p.saw.String(), "type the PIN") || !b.binding.done {
			t.Fatalf("open: %v, the console shows\n%s", err, p.saw.String())
		}
		if b := s.boot(&person{lines: []string{"1234", "new PIN"}}); s.open(b) != nil || b.report.State.Unlocked != "tpm2" {
			t.Errorf("the new PIN does not open: attempts %q", b.report.State.Attempts)
		}
	})
	t.Run("locked_out", func(t *testing.T) {
		// Wrong PINs count towards the TPM's own lockout.
		for range 40 {
			p := &person{lines: []string{"a", "b", "c"}}
			b := s.boot(p)
			b.cfg.State.OnFailure = []string{config.FailureHalt}
			if err := s.open(b); !errors.Is(err, errLocked) {
				t.Fatal(err)
			}
			if strings.Contains(p.saw.String(), "takes no PIN for a while") {
				if !b.binding.never || !strings.Contains(strings.Join(b.report.State.Attempts, "\n"), tpm.ErrLockedOut.Error()) {
					t.Errorf("attempts %q, a new binding may be offered: %v", b.report.State.Attempts, !b.binding.never)
				}
				return
			}
		}
		t.Error("the TPM never locks out: its object takes any number of PINs")
	})
}

// What was typed before the question is no PIN: not a wrong one, and not a new one.
func TestPINTypedAhead(t *testing.T) {
	s := newSealed(t, true, "1234", "1234")
	p := &person{ahead: []string{"RING", "RING", "RING"}, lines: []string{"1234"}}
	b := s.boot(p)
	if err := s.open(b); err != nil || b.pinTries != 0 {
		t.Errorf("open: %v, %d wrong PINs", err, b.pinTries)
	}
	p = &person{ahead: []string{"RING", "RING"}, lines: []string{"5678", "5678"}}
	if pin, err := s.boot(p).firstPIN(t.Context()); err != nil || string(pin) != "5678" {
		t.Errorf("firstPIN() = %q, %v, want 5678", pin, err)
	}
}

// One question that nobody answers is enough, however many tokens there are.
func TestPINIsAskedForOnce(t *testing.T) {
	for _, lines := range [][]string{nil, make([]string, 2*promptTries)} { // nobody, and Enter alone
		s := newSealed(t, true, "1234", "1234")
		h := s.header()
		for _, id := range []int{5, 6} {
			var err error
			if h, err = h.AddToken(id, h.Tokens()[0].JSON); err != nil {
				t.Fatal(err)
			}
		}
		s.write(h)
		p := &person{lines: lines}
		b := s.boot(p)
		b.cfg.State.OnFailure = []string{config.FailureHalt}
		err := s.open(b)
		asked := strings.Count(p.saw.String(), "type the PIN")
		if !errors.Is(err, errLocked) || asked > max(1, len(lines)/2) || len(b.report.State.Attempts) != 3 {
			t.Errorf("open: %v, asked %d times, attempts %q, want three tokens and one question", err, asked, b.report.State.Attempts)
		}
	}
}

// The configuration says whether there is a PIN, and the token has to agree: one
// without, which anybody opens on the way there, is not used where one is wanted.
func TestPINAndTokenDisagree(t *testing.T) {
	for _, has := range []bool{true, false} {
		s := newSealed(t, has, "1234", "1234")
		s.pin = !has
		b := s.boot(&person{lines: []string{"1234"}})
		b.cfg.State.OnFailure = []string{config.FailureHalt}
		if err := s.open(b); !errors.Is(err, errLocked) || !strings.Contains(strings.Join(b.report.State.Attempts, "\n"), errNotUsed.Error()) {
			t.Errorf("a token with a PIN: %v, state.tpm2.pin: %v: %v, attempts %q", has, s.pin, err, b.report.State.Attempts)
		}
	}
}

// Without a PIN of its own a volume that is to have one is not made.
func TestNoVolumeWithoutPIN(t *testing.T) {
	s := &sealed{t: t, m: tpmtest.Start(t), pin: true}
	s.measure("grub.cfg")
	h, key, _ := volume(t)
	for name, lines := range map[string][]string{
		"nobody": nil, "one": {"1234"}, "different": {"1234", "1235", "1234", "12345", "a", "b"}, "short": {"1", "1", "2", "2", "3", "3"},
	} {
		b := s.boot(&person{lines: lines})
		b.slots.observed = slots.Observed{}
		if _, err := b.enrollTPM(t.Context(), h, key); !errors.Is(err, errNoPIN) {
			t.Errorf("%s: %v, want errNoPIN", name, err)
		}
	}
}
