package boot

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/state/enrol"
	"sealroot/state/layout"
	"sealroot/state/tpm"
	"sealroot/state/voucher"
)

// degradedVoucher is the voucher of a degraded boot after PCR 7 has changed; nil
// where there is none.
func (p *pinned) degradedVoucher(outer *os.File) []byte {
	p.t.Helper()
	b := p.believing(true)
	b.volume.outer, b.report.Degraded, b.sys.Rand = outer, true, rand.Reader
	b.makeVoucher(p.t.Context())
	if len(b.report.Warnings) > 0 {
		p.t.Errorf("warnings %q", b.report.Warnings)
	}
	return b.voucher
}

// believing is a boot of an image that has state.degraded_unlock, or has not.
func (p *pinned) believing(allowed bool) *boot {
	p.t.Helper()
	b := p.boot()
	b.cfg.State.DegradedUnlock = allowed
	return b
}

// sealAnew seals the volume under the present PCRs, as state unlock does.
func (p *pinned) sealAnew() {
	p.t.Helper()
	h, key, _ := volume(p.t)
	h, err := h.RemoveKeyslot(tpmKeyslot)
	b := p.boot()
	b.sys.Rand = rand.Reader
	if err == nil {
		p.h, err = b.enrollTPM(p.t.Context(), h, key)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// After a change of PCR 7 root of the degraded boot, who got the voucher, has the next
// boot unlock by itself. Nobody else can, and nobody for another volume.
func TestVoucher(t *testing.T) {
	spend := func(t *testing.T, v, id []byte) []byte {
		t.Helper()
		spent, err := voucher.Spend(v, id)
		if err != nil {
			t.Fatal(err)
		}
		return spent
	}
	for _, tt := range []struct {
		name  string
		spent func(t *testing.T, p *pinned, v []byte) []byte // nil: none is written
		opens bool
		why   string
	}{
		{"spent_for_ours", func(t *testing.T, p *pinned, v []byte) []byte { return spend(t, v, p.id) }, true, ""},
		// Control: without it a person is asked.
		{"not_spent", func(*testing.T, *pinned, []byte) []byte { return nil }, false, tpm.ErrUnpinned.Error()},
		{"for_another_volume", func(t *testing.T, p *pinned, v []byte) []byte { return spend(t, v, p.other) }, false, errVoucher.Error()},
		{"not_a_voucher", func(*testing.T, *pinned, []byte) []byte { return []byte("x") }, false, voucher.ErrFormat.Error()},
		{"not_a_token", func(*testing.T, *pinned, []byte) []byte { return bytes.Repeat([]byte("x"), 64) }, false, tpm.ErrToken.Error()},
		// What D can make without any secret: our TPM unseals it as well.
		{"sealed_by_somebody_else", func(t *testing.T, p *pinned, _ []byte) []byte {
			b := p.boot()
			policy, err := b.statePolicy()
			if err != nil {
				t.Fatal(err)
			}
			token, secret, err := enrol.Seal(t.Context(), b.tpm.dev, policy, nil, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			text, err := token.Encode()
			if err != nil {
				t.Fatal(err)
			}
			return spend(t, voucher.New(secret, text), p.id)
		}, false, errVoucher.Error()},
		{"record_of_somebody_else", func(t *testing.T, p *pinned, v []byte) []byte {
			p.m.MustRun("", "tpm2_nvundefine", "0x1c05ea5", "-C", "o")
			p.m.MustRun("", "tpm2_nvdefine", "0x1c05ea5", "-C", "o", "-s", "32", "-g", "sha256", "-a", "ownerwrite|authwrite|authread|no_da")
			return spend(t, v, p.id)
		}, false, tpm.ErrUnpinned.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPinned(t)
			p.pcrs = []int{7}
			p.pin(p.id)
			outer := openTestDir(t)
			if v := p.degradedVoucher(outer); v != nil {
				t.Fatal("a voucher, although the volume is pinned for the present PCRs")
			}
			if err := tpm.New(p.m).Extend(t.Context(), 7, []byte("dbx")); err != nil {
				t.Fatal(err)
			}
			v := p.degradedVoucher(outer)
			if v == nil {
				t.Fatal("no voucher after PCR 7 has changed")
			}
			p.sealAnew()
			path := filepath.Join(outer.Name(), layout.Voucher)
			if text := tt.spent(t, p, v); text != nil {
				if err := os.WriteFile(path, text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			b := p.believing(true)
			b.volume.outer = outer
			opened := b.unlockByTPM(t.Context(), p.h) != nil
			reasons := strings.Join(b.report.State.Attempts, "\n")
			if opened != tt.opens || !strings.Contains(reasons, tt.why) {
				t.Fatalf("opened: %v, want %v; attempts %q, want %q", opened, tt.opens, reasons, tt.why)
			}
			if !opened {
				return
			}
			b.keepPin(t.Context(), p.id)
			if b.report.State.Pinned != report.PinnedAnew || b.report.State.Unlocked != config.UnlockTPM2 {
				t.Errorf("state %+v, want it pinned anew", b.report.State)
			}
			if _, err := os.Stat(path); err == nil {
				t.Error("the voucher is still there")
			}
			// It was good once: the pin of the volume now holds by itself.
			if err := os.WriteFile(path, spend(t, v, p.other), 0o600); err != nil {
				t.Fatal(err)
			}
			next := p.believing(true)
			next.volume.outer = outer
			if next.unlockByTPM(t.Context(), p.h) == nil {
				t.Errorf("the boot after: attempts %q", next.report.State.Attempts)
			}
			for _, index := range []string{"0x1c05ea3", "0x1c05ea4"} {
				p.m.Run("", "tpm2_nvundefine", index, "-C", "o")
			}
			last := p.believing(true)
			last.volume.outer = outer
			if last.vouched(t.Context(), p.other, tpm.ErrUnpinned) {
				t.Error("a voucher counts twice")
			}
		})
	}
}

// Without state.degraded_unlock, the default, root of a degraded boot gets no voucher,
// and one that another image has made counts for nothing.
func TestNoVoucherUnlessAllowed(t *testing.T) {
	p := newPinned(t)
	p.pcrs = []int{7}
	p.pin(p.id)
	outer := openTestDir(t)
	if err := tpm.New(p.m).Extend(t.Context(), 7, []byte("db")); err != nil {
		t.Fatal(err)
	}
	b := p.believing(false)
	b.volume.outer, b.report.Degraded, b.sys.Rand = outer, true, rand.Reader
	if b.makeVoucher(t.Context()); b.voucher != nil {
		t.Error("a voucher, and the image has no state.degraded_unlock")
	}
	v := p.degradedVoucher(outer) // of an image that has it
	spent, err := voucher.Spend(v, p.id)
	if err == nil {
		err = os.WriteFile(filepath.Join(outer.Name(), layout.Voucher), spent, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	p.sealAnew()
	for _, allowed := range []bool{false, true} { // control: the voucher is good
		b := p.believing(allowed)
		b.volume.outer = outer
		if opened := b.unlockByTPM(t.Context(), p.h) != nil; opened != allowed {
			t.Errorf("with degraded_unlock %v the boot opens the volume: %v, attempts %q", allowed, opened, b.report.State.Attempts)
		}
	}
}

// A voucher ends with the pin of its policy, and in the first boot whose volume is
// pinned already.
func TestVoucherEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		path func(b *boot)
		back bool // PCR 7 is as it was before the voucher was made
	}{
		{"bound_anew_at_the_prompt", func(b *boot) { b.binding.done = true }, false},
		{"PCRs_came_back", func(*boot) {}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPinned(t)
			p.pcrs = []int{7}
			p.pin(p.id)
			outer := openTestDir(t)
			extend := func(text string) {
				t.Helper()
				if err := tpm.New(p.m).Extend(t.Context(), 7, []byte(text)); err != nil {
					t.Fatal(err)
				}
			}
			extend("db")
			v := p.degradedVoucher(outer)
			spent, err := voucher.Spend(v, p.other)
			path := filepath.Join(outer.Name(), layout.Voucher)
			if err == nil {
				err = os.WriteFile(path, spent, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			vouched := func() bool {
				b := p.believing(true)
				b.volume.outer = outer
				return b.vouched(t.Context(), p.other, tpm.ErrUnpinned)
			}
			if !vouched() { // control
				t.Fatal("the voucher is not good")
			}
			if tt.back {
				p.m.Reset()
				extend("firmware")
			}
			b := p.believing(true)
			b.volume.outer = outer
			tt.path(b)
			b.keepPin(t.Context(), p.id)
			if _, err := os.Stat(path); err == nil || len(b.report.Warnings) > 0 {
				t.Errorf("the voucher is there: %v, warnings %q", err == nil, b.report.Warnings)
			}
			// Whoever kept a copy of it puts it back.
			if err := os.WriteFile(path, spent, 0o600); err != nil {
				t.Fatal(err)
			}
			if tt.back {
				extend("db")
			}
			if vouched() {
				t.Error("the voucher still counts")
			}
		})
	}
}
