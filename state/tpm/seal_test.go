package tpm_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/tpmtest"
)

// machine is a TPM whose firmware has measured something into PCR 7, and whose
// stub has measured a UKI into PCR 11.
func machine(t *testing.T) (*tpmtest.Machine, *tpm.TPM) {
	t.Helper()
	m := tpmtest.Start(t)
	chip := tpm.New(m)
	boot(t, chip)
	return m, chip
}

// boot measures what happens before the state is unlocked.
func boot(t *testing.T, chip *tpm.TPM) {
	t.Helper()
	for _, e := range []tpm.Event{
		{PCR: 4, Data: []byte("loader")}, {PCR: 7, Data: []byte("secure boot on")},
		{PCR: 11, Data: []byte(".linux\x00")}, {PCR: 11, Data: []byte("kernel")},
		{PCR: 11, Data: []byte(pcrsig.PhaseEnterInitrd)},
	} {
		if err := chip.Measure(t.Context(), e, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func newSecret(t *testing.T) []byte {
	t.Helper()
	secret := make([]byte, tpm.SecretSize)
	if _, err := rand.Read(secret); err != nil {
		t.Fatal(err)
	}
	return secret
}

// newKey returns a policy key and its PEM text.
func newKey(t *testing.T) (*rsa.PrivateKey, []byte) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// sign signs the PCR 11 of boot.
func sign(t *testing.T, key *rsa.PrivateKey) pcrsig.File {
	t.Helper()
	f, err := pcrsig.SignPCR11(key, pcrsig.Banks(), []pcrsig.Section{{Name: ".linux", Data: []byte("kernel")}},
		[]string{pcrsig.PhaseEnterInitrd})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func seal(t *testing.T, chip *tpm.TPM, p tpm.Policy, secret, pin []byte) tpm.Token {
	t.Helper()
	token, err := chip.Seal(t.Context(), p, bytes.Clone(secret), pin)
	if err != nil {
		t.Fatal(err)
	}
	// What is used is what can be read back from the disk.
	data, err := token.Encode()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := tpm.ParseToken(data)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// unseal checks the outcome: want nil is success with the secret.
func unseal(t *testing.T, chip *tpm.TPM, token tpm.Token, sigs pcrsig.File, pin, secret []byte, want error) {
	t.Helper()
	got, err := chip.Unseal(t.Context(), token, sigs, pin)
	if !errors.Is(err, want) {
		t.Fatalf("Unseal: got error %v, want %v", err, want)
	}
	switch {
	case want != nil && got != nil:
		t.Errorf("Unseal: got a secret beside error %v", err)
	case want == nil && !bytes.Equal(got, secret):
		t.Errorf("Unseal: got another secret")
	}
}

func TestUnseal(t *testing.T) {
	key, pub := newKey(t)
	wrongKey, _ := newKey(t)
	good, wrong := sign(t, key), sign(t, wrongKey)
	mixed := pcrsig.File{pcrsig.SHA256: bytesOf(t, good, wrong)}
	stale := signWord(t, key, "other")
	literal7 := tpm.Policy{PCRs: []int{7}}
	signed := tpm.Policy{PCRs: []int{7, 15}, SignedPCRs: []int{11}, PublicKey: pub}
	withPIN := tpm.Policy{PCRs: []int{7}, PIN: true}
	everything := signed
	everything.PIN = true
	sha384 := signed
	sha384.Bank = pcrsig.SHA384
	for _, tc := range []struct {
		name     string
		policy   tpm.Policy
		pin, try []byte
		sigs     pcrsig.File
		change   int // PCR extended between; -1: none
		want     error
		changed  string // what the error says about PCRs
	}{
		{name: "literal_pcr", policy: literal7, change: -1},
		{name: "literal_pcr_changed", policy: literal7, change: 7, want: tpm.ErrPCRsChanged, changed: "PCR 7 of bank sha256"},
		{name: "other_pcr_changed", policy: literal7, change: 8},
		{name: "no_pcr_at_all", policy: tpm.Policy{}, change: 7},
		{name: "signed_pcr", policy: signed, sigs: good, change: -1},
		{name: "signed_pcr_sha384", policy: sha384, sigs: good, change: -1},
		{name: "signed_pcr_changed", policy: signed, sigs: good, change: 11, want: tpm.ErrPCRsChanged, changed: "PCR 11 of bank sha256"},
		{name: "signed_and_literal_changed", policy: signed, sigs: good, change: 7, want: tpm.ErrPCRsChanged, changed: "one of the PCRs 7, 15"},
		{name: "signed_by_wrong_key", policy: signed, sigs: wrong, change: -1, want: tpm.ErrPolicy},
		{name: "signature_of_wrong_key_under_right_fingerprint", policy: signed, sigs: mixed, change: -1, want: tpm.ErrPolicy},
		{name: "signature_for_other_values", policy: signed, sigs: stale, change: -1, want: tpm.ErrPCRsChanged},
		{name: "no_signatures", policy: signed, change: -1, want: tpm.ErrPolicy},
		{name: "right_pin", policy: withPIN, pin: []byte("1234"), try: []byte("1234"), change: -1},
		{name: "wrong_pin", policy: withPIN, pin: []byte("1234"), try: []byte("1235"), change: -1, want: tpm.ErrPIN},
		{name: "no_pin", policy: withPIN, pin: []byte("1234"), change: -1, want: tpm.ErrPIN},
		{name: "right_pin_pcr_changed", policy: withPIN, pin: []byte("1234"), try: []byte("1234"), change: 7, want: tpm.ErrPCRsChanged},
		{name: "signed_literal_and_pin", policy: everything, sigs: good, pin: []byte("p"), try: []byte("p"), change: -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, chip := machine(t)
			secret := newSecret(t)
			token := seal(t, chip, tc.policy, secret, tc.pin)
			if tc.change >= 0 {
				if err := chip.Extend(t.Context(), tc.change, []byte("change")); err != nil {
					t.Fatal(err)
				}
			}
			unseal(t, chip, token, tc.sigs, tc.try, secret, tc.want)
			if _, err := chip.Unseal(t.Context(), token, tc.sigs, tc.try); tc.changed != "" && !strings.Contains(err.Error(), tc.changed) {
				t.Errorf("got error %q, want it to name %q", err, tc.changed)
			}
		})
	}
}

// signWord signs PCR 11 for another kernel.
func signWord(t *testing.T, key *rsa.PrivateKey, kernel string) pcrsig.File {
	t.Helper()
	f, err := pcrsig.SignPCR11(key, pcrsig.Banks(), []pcrsig.Section{{Name: ".linux", Data: []byte(kernel)}}, []string{pcrsig.PhaseEnterInitrd})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// bytesOf puts the signature of one file under the fingerprint of another.
func bytesOf(t *testing.T, names, signatures pcrsig.File) []pcrsig.Entry {
	t.Helper()
	e := names[pcrsig.SHA256][0]
	e.Signature = signatures[pcrsig.SHA256][0].Signature
	return []pcrsig.Entry{e}
}

// The authorization value of a PIN may hold zero bytes inside or at its end;
// go-tpm's own sessions cut it at the first.
func TestUnsealEveryPIN(t *testing.T) {
	_, chip := machine(t)
	secret := newSecret(t)
	for i := range 40 {
		pin := []byte{'p', byte('0' + i)}
		token := seal(t, chip, tpm.Policy{PCRs: []int{7}, PIN: true}, secret, pin)
		unseal(t, chip, token, nil, pin, secret, nil)
	}
}

func TestUnsealAfterCap(t *testing.T) {
	key, pub := newKey(t)
	for _, bank := range pcrsig.Banks() {
		for _, pcr := range []int{11, 15} {
			_, chip := machine(t)
			secret := newSecret(t)
			token := seal(t, chip, tpm.Policy{Bank: bank, PCRs: []int{7, 15}, SignedPCRs: []int{11}, PublicKey: pub}, secret, nil)
			unseal(t, chip, token, sign(t, key), nil, secret, nil)
			for range 2 {
				if done, err := chip.Cap(t.Context(), nil, pcr); err != nil || len(done.PCRs) != 1 || len(done.Banks) != 4 {
					t.Fatalf("Cap: got %+v, %v", done, err)
				}
				unseal(t, chip, token, sign(t, key), nil, secret, tpm.ErrPCRsChanged)
			}
		}
	}
}

func TestUnsealAfterPowerCycle(t *testing.T) {
	m, chip := machine(t)
	secret := newSecret(t)
	token := seal(t, chip, tpm.Policy{PCRs: []int{7}}, secret, nil)
	m.Reset()
	unseal(t, chip, token, nil, nil, secret, tpm.ErrPCRsChanged)
	boot(t, chip)
	unseal(t, chip, token, nil, nil, secret, nil)
}

// A power cut after the key was used counts as a failed try where it has a PIN, and
// only there.
func TestPowerCutAfterUnseal(t *testing.T) {
	for _, tc := range []struct {
		pin  []byte
		want string
	}{{nil, "TPM2_PT_LOCKOUT_COUNTER: 0x0\n"}, {[]byte("1234"), "TPM2_PT_LOCKOUT_COUNTER: 0x1\n"}} {
		m, chip := machine(t)
		secret := newSecret(t)
		token := seal(t, chip, tpm.Policy{PCRs: []int{7}, PIN: tc.pin != nil}, secret, tc.pin)
		unseal(t, chip, token, nil, tc.pin, secret, nil)
		m.Reset()
		if got := m.MustRun("", "tpm2_getcap", "properties-variable"); !strings.Contains(got, tc.want) {
			t.Errorf("PIN %q: want %q in %s", tc.pin, tc.want, got)
		}
	}
}

func TestUnsealByOtherTPM(t *testing.T) {
	_, chip := machine(t)
	secret := newSecret(t)
	token := seal(t, chip, tpm.Policy{PCRs: []int{7}}, secret, nil)
	_, other := machine(t)
	unseal(t, other, token, nil, nil, secret, tpm.ErrOtherTPM) // no SRK there yet
	srk, err := other.EnsureSRK(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unseal(t, other, token, nil, nil, secret, tpm.ErrOtherTPM) // another SRK
	token.SRK = srk.Reference()
	unseal(t, other, token, nil, nil, secret, tpm.ErrOtherTPM) // the blob is still not ours
	token.SRK = nil
	unseal(t, other, token, nil, nil, secret, tpm.ErrOtherTPM) // nor under a legacy primary
}

// Each attribute that a sealed object must not have, and another policy, is refused by us
// before the TPM is asked.
func TestUnsealRefusesAttributes(t *testing.T) {
	_, chip := machine(t)
	secret := newSecret(t)
	token := seal(t, chip, tpm.Policy{PCRs: []int{7}}, secret, nil)
	private := int(token.Blob[0])<<8 | int(token.Blob[1])
	attrs := 2 + private + 2 + 4 // past the lengths, type and nameAlg
	for bit := range 32 {
		blob := bytes.Clone(token.Blob)
		blob[attrs+3-bit/8] ^= 1 << (bit % 8)
		changed := token
		changed.Blob = blob
		want := tpm.ErrToken
		if bit == 10 {
			want = tpm.ErrOtherTPM // noDA is allowed; the Name no longer fits
		}
		unseal(t, chip, changed, nil, nil, secret, want)
	}
	changed := token
	changed.Policy[0] ^= 1
	unseal(t, chip, changed, nil, nil, secret, tpm.ErrToken)
	unseal(t, chip, token, nil, nil, secret, nil)
}

// tpm2-tools unseal our blob under the same policy, not with an empty password,
// and read the SRK with the Name that we say.
func TestToolsUnseal(t *testing.T) {
	m, chip := machine(t)
	secret := newSecret(t)
	token := seal(t, chip, tpm.Policy{PCRs: []int{7}}, secret, nil)
	dir := t.TempDir()
	cut := 2 + int(token.Blob[0])<<8 + int(token.Blob[1])
	for name, data := range map[string][]byte{"priv": token.Blob[:cut], "pub": token.Blob[cut:]} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m.MustRun(dir, "tpm2_load", "-C", "0x81000001", "-u", "pub", "-r", "priv", "-c", "obj")
	flush := func() { m.MustRun(dir, "tpm2_flushcontext", "-t") }
	flush()
	if out, err := m.Run(dir, "tpm2_unseal", "-c", "obj"); err == nil || !strings.Contains(out, "0x12F") {
		t.Errorf("unseal with an empty password: got %v, want TPM_RC_AUTH_UNAVAILABLE; output %s", err, out)
	}
	flush()
	m.MustRun(dir, "tpm2_unseal", "-c", "obj", "-p", "pcr:sha256:7", "-o", "secret")
	flush()
	if got, err := os.ReadFile(filepath.Join(dir, "secret")); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("tpm2_unseal: got another secret, error %v", err)
	}
	m.MustRun(dir, "tpm2_readpublic", "-c", "0x81000001", "-n", "name")
	srk, err := chip.ReadSRK(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if name, err := os.ReadFile(filepath.Join(dir, "name")); err != nil || !bytes.Equal(name, srk.Name) {
		t.Errorf("Name of the SRK: got %x, tpm2_readpublic says %x, %v", srk.Name, name, err)
	}
}

// What must stay secret never passes the bus in clear, in no form: the secret, the
// PIN, and the authorization value made of it, in sealing and unsealing. The
// control shows that the same search finds them where sessions do not encrypt.
func TestBusTrace(t *testing.T) {
	m, chip := machine(t)
	secret, pin := newSecret(t), []byte("my secret PIN")
	token := seal(t, chip, tpm.Policy{PCRs: []int{7}, PIN: true}, secret, pin)
	unseal(t, chip, token, nil, pin, secret, nil)
	unseal(t, chip, token, nil, []byte("my wrong PIN"), nil, tpm.ErrPIN)
	auth, err := tpm.AuthValue(token, pin)
	if err != nil {
		t.Fatal(err)
	}
	hidden := map[string][]byte{
		"secret": secret, "passphrase": tpm.Passphrase(secret), "PIN": pin, "wrong PIN": []byte("my wrong PIN"), "authorization value": auth,
	}
	for name, bytes := range hidden {
		if n := traceHits(m, bytes); n != 0 {
			t.Errorf("%s: passed the bus in clear %d times", name, n)
		}
	}
	for name, inClear := range map[string]func() error{
		"Create": func() error { return tpm.CreateInClear(t.Context(), chip, token, secret, auth) },
		"Unseal": func() error { return tpm.UnsealInClear(t.Context(), chip, token, auth) },
	} {
		before := traceHits(m, secret)
		if err := inClear(); err != nil {
			t.Fatal(err)
		}
		if traceHits(m, secret) == before {
			t.Errorf("control: %s without encryption does not show the secret", name)
		}
	}
	if traceHits(m, auth) == 0 {
		t.Error("control: Create without encryption does not show the authorization value")
	}
}

func traceHits(m *tpmtest.Machine, secret []byte) int {
	n := 0
	for _, packet := range m.Trace() {
		if bytes.Contains(packet, secret) {
			n++
		}
	}
	return n
}

func TestHandlesDoNotLeak(t *testing.T) {
	m, chip := machine(t)
	key, pub := newKey(t)
	sigs := sign(t, key)
	secret := newSecret(t)
	token := seal(t, chip, tpm.Policy{PCRs: []int{7}, SignedPCRs: []int{11}, PublicKey: pub}, secret, nil)
	for range 200 {
		unseal(t, chip, token, sigs, nil, secret, nil)
	}
	if err := chip.Extend(t.Context(), 7, []byte("change")); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		unseal(t, chip, token, sigs, nil, secret, tpm.ErrPCRsChanged)
	}
	for _, kind := range []string{"handles-transient", "handles-loaded-session"} {
		if out := m.MustRun("", "tpm2_getcap", kind); strings.TrimSpace(out) != "" {
			t.Errorf("%s after 210 unseals: got %q, want none", kind, out)
		}
	}
}

// Tokens of our earlier versions, whose policy key had exponent 0, still open.
func TestUnsealUnderShortPolicyKey(t *testing.T) {
	_, chip := machine(t)
	key, pub := newKey(t)
	policy := tpm.Policy{SignedPCRs: []int{11}, PublicKey: pub, PCRs: []int{7}, Bank: pcrsig.SHA256}
	secret := newSecret(t)
	token, err := chip.SealShort(t.Context(), policy, secret)
	if err != nil {
		t.Fatal(err)
	}
	unseal(t, chip, token, sign(t, key), nil, secret, nil)
	values, err := chip.ReadPCRs(t.Context(), pcrsig.SHA256, []int{7})
	if err != nil {
		t.Fatal(err)
	}
	if d, err := policy.Digest(values); err != nil || d == token.Policy {
		t.Errorf("control: its policy %x is that of tokens of now, %x, %v", token.Policy, d, err)
	}
	if fits, err := policy.Fits(token.Policy, values); !fits || err != nil {
		t.Errorf("its policy does not fit its PCRs: %v", err)
	}
	values[7] = bytes.Repeat([]byte{7}, 32)
	if fits, err := policy.Fits(token.Policy, values); fits || err != nil {
		t.Errorf("its policy fits other PCRs, %v", err)
	}
}

// A volume enrolled by systemd-cryptenroll opens with the secret that we unseal, and
// has the policy that we write.
func TestCryptenroll(t *testing.T) {
	key, pub := newKey(t)
	for _, tc := range []struct {
		name string
		args []string
		pin  []byte
	}{
		{"literal", []string{"--tpm2-pcrs=7"}, nil},
		{"literal_and_pin", []string{"--tpm2-pcrs=7", "--tpm2-with-pin=yes"}, []byte(tpmtest.NewPIN)},
		{"signed_and_literal", []string{"--tpm2-pcrs=7", "--tpm2-public-key=pub.pem", "--tpm2-public-key-pcrs=11"}, nil},
		{"signed_literal_and_pin", []string{"--tpm2-pcrs=7", "--tpm2-with-pin=yes", "--tpm2-public-key=pub.pem", "--tpm2-public-key-pcrs=11"}, []byte(tpmtest.NewPIN)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, chip := machine(t)
			dir := t.TempDir()
			for name, data := range map[string][]byte{"pub.pem": pub, "pw": []byte("pw"), "img": make([]byte, 20<<20)} {
				if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			m.MustRun(dir, "cryptsetup", "luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "img", "pw")
			args := append([]string{"--tpm2-device=" + m.TCTI()}, tc.args...)
			m.MustRun(dir, "systemd-cryptenroll", append(args, "img")...)
			token, err := tpm.ParseToken([]byte(m.MustRun(dir, "cryptsetup", "token", "export", "--token-id", "0", "img")))
			if err != nil {
				t.Fatal(err)
			}
			secret, err := chip.Unseal(t.Context(), token, sign(t, key), tc.pin)
			if err != nil {
				t.Fatal(err)
			}
			policy := tpm.Policy{SignedPCRs: token.PubPCRs, PublicKey: token.PubKey, PCRs: token.PCRs, Bank: token.Bank, PIN: token.PIN}
			values, err := chip.ReadPCRs(t.Context(), token.Bank, token.PCRs)
			if err != nil {
				t.Fatal(err)
			}
			if ours, err := policy.Digest(values); err != nil || ours != token.Policy {
				t.Errorf("its policy is %x, ours %x, %v", token.Policy, ours, err)
			}
			if err := os.WriteFile(filepath.Join(dir, "key"), tpm.Passphrase(secret), 0o600); err != nil {
				t.Fatal(err)
			}
			m.MustRun(dir, "cryptsetup", "open", "--test-passphrase", "--key-file", "key", "--key-slot", "1", "img")
		})
	}
}

func TestSealRefuses(t *testing.T) {
	_, chip := machine(t)
	_, pub := newKey(t)
	for _, tc := range []struct {
		name   string
		policy tpm.Policy
		pin    string
		want   error
	}{
		{"signed_pcr_alone", tpm.Policy{SignedPCRs: []int{11}, PublicKey: pub}, "", tpm.ErrPolicy},
		{"signed_pcr_and_pcr_15", tpm.Policy{SignedPCRs: []int{11}, PublicKey: pub, PCRs: []int{15}}, "", tpm.ErrPolicy},
		{"key_without_pcrs", tpm.Policy{PCRs: []int{7}, PublicKey: pub}, "", tpm.ErrPolicy},
		{"pcrs_without_key", tpm.Policy{PCRs: []int{7}, SignedPCRs: []int{11}}, "", tpm.ErrPolicy},
		{"pcr_24", tpm.Policy{PCRs: []int{24}}, "", tpm.ErrPolicy},
		{"pin_missing", tpm.Policy{PCRs: []int{7}, PIN: true}, "", tpm.ErrPIN},
		{"pin_unasked", tpm.Policy{PCRs: []int{7}}, "1", tpm.ErrPIN},
		{"unknown_bank", tpm.Policy{PCRs: []int{7}, Bank: "sm3_256"}, "", tpm.ErrBank},
		{"ecc_key", tpm.Policy{PCRs: []int{7}, SignedPCRs: []int{11}, PublicKey: []byte(eccKey)}, "", tpm.ErrPolicy},
	} {
		t.Run(tc.name, func(t *testing.T) {
			token, err := chip.Seal(t.Context(), tc.policy, newSecret(t), []byte(tc.pin))
			if !errors.Is(err, tc.want) || token.Blob != nil {
				t.Errorf("Seal: got %v, want %v", err, tc.want)
			}
		})
	}
}

const eccKey = `-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt
6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==
-----END PUBLIC KEY-----
`

// Sealing to values of a later boot: not to be unsealed now, but then.
func TestSealToLaterValues(t *testing.T) {
	m, chip := machine(t)
	secret := newSecret(t)
	if err := chip.Extend(t.Context(), 15, []byte("volume key")); err != nil {
		t.Fatal(err)
	}
	token := seal(t, chip, tpm.Policy{PCRs: []int{7, 15}, Values: tpm.Values{15: nil}}, secret, nil)
	unseal(t, chip, token, nil, nil, secret, tpm.ErrPCRsChanged)
	m.Reset()
	boot(t, chip)
	unseal(t, chip, token, nil, nil, secret, nil)
}

func TestDeadline(t *testing.T) {
	_, chip := machine(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := chip.Seal(ctx, tpm.Policy{PCRs: []int{7}}, newSecret(t), nil); err == nil {
		t.Errorf("Seal after the end of its context: got no error")
	}
}
