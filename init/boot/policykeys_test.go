package boot

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/state"
	"sealroot/state/luks2"
	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/tpmtest"
)

// policyKey is a key of the PCR policy, as a builder has it.
type policyKey struct {
	key *rsa.PrivateKey
	pem []byte
}

func newPolicyKey(t *testing.T) policyKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return policyKey{key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})}
}

// signedImage is an image under a signed policy.
type signedImage struct {
	present policyKey
	listed  []policyKey // previous_public_keys
	also    []policyKey // sign PCR 11 beside the present one
	trial   bool
}

// rolled is an image whose previous keys are listed and sign it.
func rolled(present policyKey, previous ...policyKey) signedImage {
	return signedImage{present: present, listed: previous, also: previous}
}

// rolling is a machine whose policy key is rolled over.
type rolling struct {
	t   *testing.T
	m   *tpmtest.Machine
	h   *luks2.Header
	key []byte
	id  []byte
}

// newRolling is one whose first boot was that of an image.
func newRolling(t *testing.T, first signedImage) *rolling {
	t.Helper()
	r := &rolling{t: t, m: tpmtest.Start(t)}
	h, key, _ := volume(t)
	r.key, r.id = key, luks2.VolumeKeyID(key, state.DeviceName, h.UUID())
	h, err := h.RemoveKeyslot(tpmKeyslot)
	if err != nil {
		t.Fatal(err)
	}
	b := r.start(first)
	if r.h, err = b.enrollTPM(t.Context(), h, key); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{b.makePin(t.Context(), r.id), b.makeFloor(t.Context(), r.id), b.settleFloor(t.Context(), 2, r.id)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// start is a boot up to its state.
func (r *rolling) start(im signedImage) *boot {
	r.t.Helper()
	r.m.Reset()
	chip := tpm.New(r.m)
	for _, e := range []tpm.Event{
		{PCR: 7, Data: []byte("secure boot")}, {PCR: 11, Data: []byte(".linux\x00")}, {PCR: 11, Data: []byte("kernel")},
	} {
		if err := chip.Measure(r.t.Context(), e, nil); err != nil {
			r.t.Fatal(err)
		}
	}
	b := measuring(r.t, r.m, config.UnlockTPM2)
	b.fw = firmware{EFI: true, Stub: true, SecureBoot: true}
	b.sys.Rand, b.sys.Initramfs = rand.Reader, r.t.TempDir()
	b.report.Slot.Trial = im.trial
	b.cfg.Boot.Loader = config.LoaderUKI
	b.cfg.State.TPM2 = config.TPM2{Policy: config.PolicySignedPCR11And7}
	files := map[string][]byte{config.PublicKeyPath: im.present.pem}
	for i, s := range im.listed {
		name := fmt.Sprintf("pcr-%d.pub", i)
		b.cfg.State.TPM2.PreviousKeys = append(b.cfg.State.TPM2.PreviousKeys, name)
		files[filepath.Join(config.PreviousKeysDir, name)] = s.pem
	}
	all := pcrsig.File{}
	for _, s := range append([]policyKey{im.present}, im.also...) {
		f, err := pcrsig.SignPCR11(s.key, pcrsig.Banks(), []pcrsig.Section{{Name: ".linux", Data: []byte("kernel")}}, []string{pcrsig.PhaseEnterInitrd})
		if err != nil {
			r.t.Fatal(err)
		}
		all.Add(f)
	}
	text, err := all.Encode()
	if err != nil {
		r.t.Fatal(err)
	}
	files[stubSignatures] = text
	for name, text := range files {
		path := filepath.Join(b.sys.Initramfs, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			r.t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := b.openTPM(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	b.readFloor(r.t.Context())
	return b
}

// boot is a boot through its state. It returns why the TPM did not open the volume, and
// else which previous keys the records of the TPM need.
func (r *rolling) boot(im signedImage) (refused string, needs []string) {
	r.t.Helper()
	b := r.start(im)
	key := b.unlockByTPM(r.t.Context(), r.h)
	if key == nil {
		return strings.Join(b.report.State.Attempts, "\n"), nil
	}
	clear(key)
	b.keepPin(r.t.Context(), r.id)
	if err := b.settleFloor(r.t.Context(), 0, r.id); err != nil {
		r.t.Fatal(err)
	}
	b.recordKeys()
	if f := b.report.Floor; !f.Known || f.Value != 2 || b.report.State.Pinned != report.PinnedYes || len(b.report.Warnings) > 0 {
		r.t.Errorf("floor %+v, pinned %q, warnings %q", f, b.report.State.Pinned, b.report.Warnings)
	}
	return "", b.report.TPM.RecordKeys
}

// enroll is what `sealroot state enroll` does under an image.
func (r *rolling) enroll(im signedImage) {
	r.t.Helper()
	b := r.start(im)
	policy, err := b.sealablePolicy(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	token, pass, err := b.sealNew(r.t.Context(), policy, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	r.h, _, _, err = r.h.Enroll(luks2.Enrolment{
		VolumeKey: r.key, Passphrase: pass, KDF: luks2.RandomSecretKDF(), Rand: rand.Reader,
		Token: func(keyslot int) ([]byte, error) {
			token.Keyslots = []int{keyslot}
			return token.Encode()
		},
		RetireTokens: deadTokens(r.h, -1),
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

const (
	noSignature = "no signature by the policy key of the token"
	lostFloor   = "the rollback floor is not known"
)

// The documented order of rolling over the key: no boot asks anybody, and at its end
// the previous key is of no use.
func TestRollingThePolicyKey(t *testing.T) {
	before, after := newPolicyKey(t), newPolicyKey(t)
	old, both, onlyNew := rolled(before), rolled(after, before), rolled(after)
	onTrial := both
	onTrial.trial = true
	r := newRolling(t, old)
	expect := func(step string, im signedImage, why string, needs ...string) {
		t.Helper()
		refused, got := r.boot(im)
		if why == "" && refused != "" || !strings.Contains(refused, why) || !slices.Equal(got, needs) {
			t.Fatalf("%s: refused %q, want %q; the records need %q, want %q", step, refused, why, got, needs)
		}
	}
	expect("the image of before", old, "")
	expect("an image that signs with both, on trial", onTrial, "", "pcr-0.pub")
	expect("committed", both, "", "pcr-0.pub")
	expect("what it falls back to", old, "")
	expect("a token needs its key", onlyNew, lostFloor)
	r.enroll(both)
	expect("enrolled, the records have not followed", onlyNew, lostFloor)
	expect("on trial they stay", onTrial, "", "pcr-0.pub")
	expect("they follow the token", both, "")
	expect("and stay", both, "")
	expect("the new key alone", onlyNew, "")
	expect("the old key alone", old, lostFloor)
}

// Without a floor it is the token that an image without its key refuses, and says why.
func TestTokenUnderAnotherPolicyKey(t *testing.T) {
	before, after := newPolicyKey(t), newPolicyKey(t)
	r := newRolling(t, rolled(before))
	for _, tt := range []struct {
		name string
		im   signedImage
		why  string
	}{
		{"control", rolled(after, before), ""},
		{"new_key_only", rolled(after), noSignature},
		// Its signatures open the token: who wrote the records is for the list to say.
		{"signs_and_is_not_listed", signedImage{present: after, also: []policyKey{before}}, errNotPinned.Error()},
		{"listed_and_does_not_sign", signedImage{present: after, listed: []policyKey{before}}, noSignature},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &rolling{t: t, m: r.m, h: r.h, key: r.key, id: r.id}
			b := r.start(tt.im)
			b.cfg.Trust.RollbackFloor = false
			key := b.unlockByTPM(t.Context(), r.h)
			if why := strings.Join(b.report.State.Attempts, "\n"); (key != nil) != (tt.why == "") || !strings.Contains(why, tt.why) {
				t.Errorf("opens: %v, %q, want %q", key != nil, why, tt.why)
			}
		})
	}
}

// Records under a key that is not listed never count, whoever wrote them.
func TestRecordsUnderAKeyThatIsNotListed(t *testing.T) {
	before, after, stranger := newPolicyKey(t), newPolicyKey(t), newPolicyKey(t)
	r := newRolling(t, rolled(before))
	r.enroll(rolled(after, before))
	if why, _ := r.boot(rolled(after, stranger)); !strings.Contains(why, lostFloor) {
		t.Errorf("a floor under a key that is not listed: %q, want %q", why, lostFloor)
	}
	if why, _ := r.boot(rolled(after, stranger, before)); why != "" {
		t.Errorf("control, it is listed: %q", why)
	}
}
