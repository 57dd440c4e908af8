package tpm_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/tpmtest"
)

func TestOpenWithoutTPM(t *testing.T) {
	if chip, err := tpm.Open(t.Context(), t.TempDir()); !errors.Is(err, tpm.ErrNoTPM) || chip != nil {
		t.Errorf("empty /dev: got %v, want ErrNoTPM", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tpmrm0"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if chip, err := tpm.Open(t.Context(), dir); !errors.Is(err, tpm.ErrNoTPM) || chip != nil {
		t.Errorf("regular file: got %v, want ErrNoTPM", err)
	}
}

// moody is a TPM that answers each command first with a code: times < 0 for ever.
type moody struct {
	*tpmtest.Machine
	rc    tpm2.TPMRC
	times int
	count map[string]int
}

func (m *moody) Send(ctx context.Context, command []byte) ([]byte, error) {
	if n := m.count[string(command)]; m.times < 0 || n < m.times {
		m.count[string(command)]++
		rsp := []byte{0x80, 0x01, 0, 0, 0, 10}
		return binary.BigEndian.AppendUint32(rsp, uint32(m.rc)), nil
	}
	return m.Machine.Send(ctx, command)
}

func TestTransientCodes(t *testing.T) {
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting} {
		m := tpmtest.Start(t)
		chip := tpm.New(&moody{Machine: m, rc: rc, times: 1, count: make(map[string]int)})
		secret := newSecret(t)
		token := seal(t, chip, tpm.Policy{PCRs: []int{7}}, secret, nil)
		unseal(t, chip, token, nil, nil, secret, nil)

		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		begin := time.Now()
		stuck := tpm.New(&moody{Machine: m, rc: rc, times: -1, count: make(map[string]int)})
		if _, err := stuck.Unseal(ctx, token, nil, nil); !errors.Is(err, tpm.ErrBusy) {
			t.Errorf("%v for ever: got %v, want ErrBusy", rc, err)
		}
		if d := time.Since(begin); d > 30*time.Second {
			t.Errorf("%v for ever: took %v with a deadline of 0.1 s", rc, d)
		}
	}
}

func TestLockedOut(t *testing.T) {
	chip := tpm.New(&moody{Machine: tpmtest.Start(t), rc: tpm2.TPMRCLockout, times: -1, count: make(map[string]int)})
	if _, err := chip.ReadSRK(t.Context()); !errors.Is(err, tpm.ErrLockedOut) {
		t.Errorf("got %v, want ErrLockedOut", err)
	}
}

func TestGetRandom(t *testing.T) {
	chip := tpm.New(tpmtest.Start(t))
	a, err := chip.GetRandom(t.Context(), 100)
	if err != nil || len(a) != 100 {
		t.Fatalf("got %d bytes, %v", len(a), err)
	}
	b, err := chip.GetRandom(t.Context(), 100)
	if err != nil || bytes.Equal(a, b) {
		t.Errorf("the same bytes twice, %v", err)
	}
}

// The SRK is the one that tpm2_createprimary makes from the TCG's template with
// the attributes of systemd, and a second call finds it.
func TestSRK(t *testing.T) {
	m := tpmtest.Start(t)
	chip := tpm.New(m)
	if _, err := chip.ReadSRK(t.Context()); !errors.Is(err, tpm.ErrOtherTPM) {
		t.Errorf("without SRK: got %v, want ErrOtherTPM", err)
	}
	first, err := chip.EnsureSRK(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second, err := chip.EnsureSRK(t.Context())
	if err != nil || !bytes.Equal(first.Name, second.Name) || first.Algorithm != "ecc" {
		t.Errorf("second call: got %x, %v, want %x", second.Name, err, first.Name)
	}
	if len(first.Reference()) != 136 { // state.md §8
		t.Errorf("reference: got %d bytes, want 136", len(first.Reference()))
	}
	dir := t.TempDir()
	m.MustRun(dir, "tpm2_createprimary", "-C", "o", "-G", "ecc256:null:aes128cfb", "-c", "ctx",
		"-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt")
	m.MustRun(dir, "tpm2_readpublic", "-c", "ctx", "-n", "name")
	if name, err := os.ReadFile(filepath.Join(dir, "name")); err != nil || !bytes.Equal(name, first.Name) {
		t.Errorf("Name: got %x, tpm2_createprimary makes %x, %v", first.Name, name, err)
	}
	m.MustRun(dir, "tpm2_flushcontext", "-t")
	m.MustRun(dir, "tpm2_readpublic", "-c", "0x81000001", "-t", "srk")
	if ref, err := os.ReadFile(filepath.Join(dir, "srk")); err != nil || !bytes.Equal(ref, first.Reference()) {
		t.Errorf("reference: got %x, tpm2-tss writes %x, %v", first.Reference(), ref, err)
	}
}

// An RSA SRK that someone else made is used as it is.
func TestRSASRK(t *testing.T) {
	m, chip := machine(t)
	dir := t.TempDir()
	m.MustRun(dir, "tpm2_createprimary", "-C", "o", "-G", "rsa2048:null:aes128cfb", "-c", "ctx",
		"-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt")
	m.MustRun(dir, "tpm2_evictcontrol", "-C", "o", "-c", "ctx", "0x81000001")
	m.MustRun(dir, "tpm2_flushcontext", "-t")
	secret := newSecret(t)
	token := seal(t, chip, tpm.Policy{PCRs: []int{7}}, secret, nil)
	if token.Primary != "rsa" {
		t.Errorf("primary: got %s, want rsa", token.Primary)
	}
	unseal(t, chip, token, nil, nil, secret, nil)
}

func TestUnsuitableSRK(t *testing.T) {
	m := tpmtest.Start(t)
	dir := t.TempDir()
	m.MustRun(dir, "tpm2_createprimary", "-C", "o", "-G", "ecc256:ecdsa-sha256", "-c", "ctx",
		"-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign")
	m.MustRun(dir, "tpm2_evictcontrol", "-C", "o", "-c", "ctx", "0x81000001")
	m.MustRun(dir, "tpm2_flushcontext", "-t")
	if srk, err := tpm.New(m).EnsureSRK(t.Context()); !errors.Is(err, tpm.ErrSRK) || srk.Name != nil {
		t.Errorf("a signing key at the SRK's handle: got %v, want ErrSRK", err)
	}
}

// proxy changes what the TPM answers to ReadPublic.
type proxy struct {
	*tpmtest.Machine
	change func(ctx context.Context, command, response []byte) ([]byte, error)
	sent   []tpm2.TPMCC
}

func (p *proxy) Send(ctx context.Context, command []byte) ([]byte, error) {
	code := tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))
	p.sent = append(p.sent, code)
	rsp, err := p.Machine.Send(ctx, command)
	if err == nil && code == tpm2.TPMCCReadPublic {
		return p.change(ctx, command, rsp)
	}
	return rsp, err
}

// Whoever puts another key in place of the SRK on the way (docs/security.md, The bus)
// is noticed before a session is started with it: ReadPublic is the last command.
func TestExchangedSRK(t *testing.T) {
	m, chip := machine(t)
	secret := newSecret(t)
	token := seal(t, chip, tpm.Policy{PCRs: []int{7}}, secret, nil)
	evil := tpmtest.Start(t)
	if _, err := tpm.New(evil).EnsureSRK(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func(ctx context.Context, command, response []byte) ([]byte, error)
		want   error // of Unseal; nil: it works
		seal   error
	}{
		{"control", func(_ context.Context, _, rsp []byte) ([]byte, error) { return rsp, nil }, nil, nil},
		// Its Name is right: only the token can tell, so a first Seal cannot.
		{"key_of_another_tpm", func(ctx context.Context, command, _ []byte) ([]byte, error) { return evil.Send(ctx, command) }, tpm.ErrOtherTPM, nil},
		{"public_area_rewritten", func(ctx context.Context, command, rsp []byte) ([]byte, error) {
			theirs, err := evil.Send(ctx, command)
			if err == nil {
				area, _ := sized(theirs[10:])
				copy(rsp[12:], area) // before the Name of ours
			}
			return rsp, err
		}, tpm.ErrSRK, tpm.ErrSRK},
		{"another_curve", func(_ context.Context, _, rsp []byte) ([]byte, error) {
			rsp[12+2+2+4+2+6+2+1]++ // past type, nameAlg, attributes, policy, symmetric, scheme
			return rsp, nil
		}, tpm.ErrSRK, tpm.ErrSRK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &proxy{Machine: m, change: tt.change}
			unseal(t, tpm.New(p), token, nil, nil, secret, tt.want)
			if tt.want != nil && len(p.sent) != 1 {
				t.Errorf("commands sent: got %#x, want only ReadPublic", p.sent)
			}
			if tt.seal == nil {
				return
			}
			p = &proxy{Machine: m, change: tt.change}
			if _, err := tpm.New(p).Seal(t.Context(), tpm.Policy{PCRs: []int{7}}, secret, nil); !errors.Is(err, tt.seal) || len(p.sent) != 1 {
				t.Errorf("Seal: %v after the commands %#x, want %v after ReadPublic", err, p.sent, tt.seal)
			}
		})
	}
}

func TestMark(t *testing.T) {
	m := tpmtest.Start(t)
	chip := tpm.New(m)
	want := tpm.Mark{Volume: [16]byte{1, 2, 3, 15: 16}}
	expect := func(wantSet bool) {
		t.Helper()
		got, set, err := chip.ReadMark(t.Context())
		if err != nil || set != wantSet || set && got != want {
			t.Errorf("ReadMark: got %x, %v, %v, want set %v", got, set, err, wantSet)
		}
	}
	expect(false)
	for range 2 {
		if err := chip.WriteMark(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		expect(true)
	}
	m.Reset()
	expect(true)
	dir := t.TempDir()
	m.MustRun(dir, "tpm2_nvread", "0x01c05ea1", "-C", "o", "-o", "mark")
	if data, err := os.ReadFile(filepath.Join(dir, "mark")); err != nil || len(data) != 64 || !bytes.Contains(data, want.Volume[:]) {
		t.Errorf("tpm2_nvread: got %x, %v", data, err)
	}
	if err := chip.RemoveMark(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect(false)
	if err := chip.RemoveMark(t.Context()); err != nil {
		t.Errorf("RemoveMark twice: %v", err)
	}

	// Defined, not written, and of another size: no mark, and replaced.
	m.MustRun(dir, "tpm2_nvdefine", "0x01c05ea1", "-C", "o", "-s", "8", "-a", "ownerread|ownerwrite|authread|authwrite")
	expect(false)
	if err := os.WriteFile(filepath.Join(dir, "junk"), []byte("12345678"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.MustRun(dir, "tpm2_nvwrite", "0x01c05ea1", "-C", "o", "-i", "junk")
	if _, set, err := chip.ReadMark(t.Context()); !errors.Is(err, tpm.ErrMark) || set {
		t.Errorf("foreign content: got %v, %v, want ErrMark", set, err)
	}
	if err := chip.WriteMark(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	expect(true)
}

// Policy digests computed without a TPM: the one of state.md for PCR 7 at zero,
// and those of go-tpm's calculator.
func TestPolicyDigest(t *testing.T) {
	zero := make([]byte, 32)
	got, err := tpm.Policy{PCRs: []int{7}, Bank: "sha256"}.Digest(tpm.Values{7: zero})
	if err != nil || !strings.HasPrefix(hex.EncodeToString(got[:]), "8b5682d8") {
		t.Errorf("PCR 7 at zero: got %x, %v, want 8b5682d8…", got, err)
	}
	_, pub := newKey(t)
	full := tpm.Policy{PCRs: []int{7, 15}, SignedPCRs: []int{11}, PublicKey: pub, PIN: true, Bank: "sha256"}
	got, err = full.Digest(tpm.Values{7: bytes.Repeat([]byte{7}, 32), 15: zero})
	if err != nil {
		t.Fatal(err)
	}
	if want := calculated(t, pub); !bytes.Equal(got[:], want) {
		t.Errorf("all parts: got %x, go-tpm calculates %x", got, want)
	}
}

func calculated(t *testing.T, pub []byte) []byte {
	t.Helper()
	key, err := pcrsig.ParsePublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	area := tpm2.RSASRKTemplate // for its shape only
	area.ObjectAttributes = tpm2.TPMAObject{UserWithAuth: true, Decrypt: true, SignEncrypt: true}
	area.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048, Exponent: 65537})
	area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()})
	name, err := tpm2.ObjectName(&area)
	if err != nil {
		t.Fatal(err)
	}
	values, err := pcrsig.SHA256.Digest(append(bytes.Repeat([]byte{7}, 32), make([]byte, 32)...))
	if err != nil {
		t.Fatal(err)
	}
	calc, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []tpm2.PolicyCommand{
		tpm2.PolicyAuthorize{KeySign: *name},
		tpm2.PolicyPCR{
			PcrDigest: tpm2.TPM2BDigest{Buffer: values},
			Pcrs: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
				Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(7, 15),
			}}},
		},
		tpm2.PolicyAuthValue{},
	} {
		if err := cmd.Update(calc); err != nil {
			t.Fatal(err)
		}
	}
	return calc.Hash().Digest
}
