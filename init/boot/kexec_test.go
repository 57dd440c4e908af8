package boot

import (
	"errors"
	"strings"
	"testing"

	"sealroot/state/enrol"
)

// After a kexec the TPM, closed by the boot before, opens nothing; and nothing is bound to
// what its PCRs hold then, whatever a person says. The same boot without a kexec, of a
// machine whose PCRs have changed, is the control.
func TestNothingIsBoundAfterKexec(t *testing.T) {
	for _, kexec := range []bool{true, false} {
		s := newSealed(t, false)
		if kexec {
			if err := s.boot(&person{}).extendCap(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		s.measure("another")
		before := s.header().SequenceID()
		p := &person{lines: []string{"open sesame", "yes"}}
		b := s.boot(p)
		b.fw.Kexec = kexec
		if err := s.open(b); err != nil {
			t.Fatalf("kexec %v: %v\n%s", kexec, err, p.saw.String())
		}
		asked, bound := strings.Contains(p.saw.String(), "Type yes"), s.header().SequenceID() != before
		tells := strings.Contains(strings.Join(b.report.State.Attempts, "\n"), "started by kexec")
		if asked == kexec || bound == kexec || tells != kexec {
			t.Errorf("kexec %v: asked %v, bound %v, told why %v", kexec, asked, bound, tells)
		}
		if !kexec {
			continue
		}
		if b.report.State.Pinned == "anew" || b.started() != enrol.Kexec {
			t.Errorf("pinned %q, started by %q", b.report.State.Pinned, b.started())
		}
		_, sealable := b.sealablePolicy(t.Context())
		for what, err := range map[string]error{"seal": sealable, "pin": b.makePin(t.Context(), s.id)} {
			if !errors.Is(err, enrol.ErrNotBacked) {
				t.Errorf("to %s after a kexec: %v", what, err)
			}
		}
		s.m.Reset()
		s.measure("grub.cfg")
		if again := s.boot(&person{}); s.open(again) != nil || again.report.State.Unlocked != "tpm2" {
			t.Errorf("the boot after a restart: %+v", again.report.State)
		}
	}
}
