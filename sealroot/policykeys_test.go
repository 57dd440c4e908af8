package main

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/sealroot/volume"
	"sealroot/slots"
	"sealroot/state/enrol"
	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/tpmtest"
)

// sealedSlots is a disk whose images open the state by what is said here.
type sealedSlots struct {
	Machine
	list   []slots.Slot
	sealed map[string]string
}

func (s sealedSlots) Slots() ([]slots.Slot, error) { return s.list, nil }
func (s sealedSlots) Close() error                 { return nil }
func (s sealedSlots) Sealed(slot, _ string) (string, error) {
	if line, ok := s.sealed[slot]; ok {
		return line, nil
	}
	return "", errors.New("it has no signed manifest")
}

// policyKey makes a PCR policy key and returns its public half.
func policyKey(t *testing.T) []byte {
	t.Helper()
	private := filepath.Join(t.TempDir(), "key")
	if out, err := exec.Command("openssl", "genrsa", "-out", private, "2048").CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v: %s", err, out)
	}
	public, err := exec.Command("openssl", "rsa", "-in", private, "-pubout").Output()
	if err != nil {
		t.Fatalf("openssl: %v", err)
	}
	return public
}

// TestRollPolicyKey: a token under a previous key opens the next boot; status says so and
// what to do, enroll seals to the present one once no slot is left behind.
func TestRollPolicyKey(t *testing.T) {
	before, after := policyKey(t), policyKey(t)
	s := newSealed(t)
	s.report.BootPath = string(enrol.UKISecureBoot)
	s.config.State.TPM2 = config.TPM2{Policy: config.PolicySignedPCR11And7, PublicKey: "pcr.pub"}
	image := func(present []byte, previous ...[]byte) {
		t.Helper()
		err := errors.Join(os.WriteFile(s.env.PCRKey, present, 0o644), os.MkdirAll(s.env.PCRKeys, 0o755))
		s.config.State.TPM2.PreviousKeys = nil
		for _, text := range previous {
			s.config.State.TPM2.PreviousKeys = []string{"pcr-previous.pub"}
			err = errors.Join(err, os.WriteFile(filepath.Join(s.env.PCRKeys, "pcr-previous.pub"), text, 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	tpmToken := func(d volume.Description) volume.Token {
		t.Helper()
		for _, one := range d.Tokens {
			if one.Key != "" {
				return one
			}
		}
		t.Fatalf("no token under a policy key: %+v", d.Tokens)
		return volume.Token{}
	}
	given := s.file(string(s.recovery))
	enroll := []string{"state", "enroll", "--recovery-key-file", given}
	image(before)
	s.ok(enroll...)

	image(after)
	if d := s.status(); d.NextBoot == "by-itself" || tpmToken(d).PreviousKey || !strings.Contains(tpmToken(d).Why, "none that it lists") {
		t.Errorf("control, the previous key is not listed: %+v", d)
	}
	image(after, before)
	d := s.status()
	if token := tpmToken(d); d.NextBoot != "by-itself" || !token.PreviousKey || token.Key != fingerprint(before) || !strings.Contains(strings.Join(d.ToDo, "\n"), "state enroll seals to that") {
		t.Errorf("under the previous key: %+v", d)
	}

	other := sealedSlots{list: []slots.Slot{{Name: "a", Priority: 14, Successful: true}, {Name: s.report.Slot.Name, Priority: 15, Successful: true}}}
	s.env.Open = func(Where) (Machine, error) { return other, nil }
	for _, tt := range []struct{ name, line, why string }{
		{"does_not_have_it", "signed-pcr11+7 " + fingerprint(before), "slot a does not have the present PCR policy key"},
		{"nobody_knows", "", "it has no signed manifest"},
		{"literal_pcrs", "pcrs 7", "slot a does not have"},
	} {
		other.sealed = map[string]string{"a": tt.line}
		if tt.line == "" {
			other.sealed = nil
		}
		if code, _, errs := s.run(enroll...); code != exitRefused || !strings.Contains(errs, tt.why) || !strings.Contains(errs, "--burn") {
			t.Errorf("%s: exit status %d, %q, want %q", tt.name, code, errs, tt.why)
		}
	}
	if !tpmToken(s.status()).PreviousKey {
		t.Error("a refusal has changed the token")
	}
	other.sealed = map[string]string{"a": "signed-pcr11+7 " + fingerprint(after) + " " + fingerprint(before)}
	s.report.TPM.RecordKeys = []string{"pcr-previous.pub"}
	if out := s.ok(enroll...); !strings.Contains(out, "move to the present PCR policy key at the next boot") {
		t.Errorf("enroll does not say what is left to do: %q", out)
	}
	d = s.status()
	if token := tpmToken(d); d.NextBoot != "by-itself" || token.PreviousKey || token.Key != fingerprint(after) || !strings.Contains(strings.Join(d.ToDo, "\n"), "restart before you install") {
		t.Errorf("enrolled: %+v", d)
	}
	s.report.TPM.RecordKeys = nil
	image(after)
	if d := s.status(); d.NextBoot != "by-itself" || len(d.ToDo) != 0 {
		t.Errorf("with the new key alone: %+v", d)
	}

	// Who gives the other slot up says so.
	s.report.State.Unlocked, s.report.State.Token = "recovery-key", -1
	image(before)
	s.ok(enroll...)
	image(after, before)
	other.sealed = nil
	s.ok(append(enroll, "--burn")...)
	if tpmToken(s.status()).PreviousKey {
		t.Error("--burn has not sealed to the present key")
	}
}

// The record of a machine's volume is found under a previous key, as PID 1 finds it.
func TestIdentityUnderPreviousKey(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	before, after := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), policyKey(t)
	chip := tpm.New(tpmtest.Start(t))
	for _, e := range []tpm.Event{
		{PCR: 7, Data: []byte("secure boot")}, {PCR: 11, Data: []byte(".linux\x00")}, {PCR: 11, Data: []byte("kernel")}, {PCR: 11, Data: []byte(pcrsig.PhaseEnterInitrd)},
	} {
		if err := chip.Measure(t.Context(), e, nil); err != nil {
			t.Fatal(err)
		}
	}
	sigs, err := pcrsig.SignPCR11(key, pcrsig.Banks(), []pcrsig.Section{{Name: ".linux", Data: []byte("kernel")}}, []string{pcrsig.PhaseEnterInitrd})
	if err != nil {
		t.Fatal(err)
	}
	policy, id := tpm.Policy{SignedPCRs: []int{11}, PublicKey: before, PCRs: []int{7}}, bytes.Repeat([]byte{5}, 32)
	if err := chip.WriteIdentity(t.Context(), policy, sigs, id); err != nil {
		t.Fatal(err)
	}
	policy.PublicKey = after
	if got, err := (volume.Look{TPM: chip, PreviousKeys: [][]byte{policyKey(t), before}}).Identity(t.Context(), policy); err != nil || !bytes.Equal(got, id) {
		t.Errorf("Identity = %x, %v, want %x", got, err, id)
	}
	if got, err := (volume.Look{TPM: chip}).Identity(t.Context(), policy); !errors.Is(err, tpm.ErrUnpinned) {
		t.Errorf("control, no key is listed: Identity = %x, %v", got, err)
	}
}
