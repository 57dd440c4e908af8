package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"sealroot/state/tpm/pcrsig"
)

// testSession is a session after StartAuthSession, with keys that a test knows.
func testSession() *session {
	return &session{
		handle: 0x02000000, key: bytes.Repeat([]byte{1}, 32), auth: []byte("pin"),
		caller: bytes.Repeat([]byte{2}, nonceSize), tpm: bytes.Repeat([]byte{3}, nonceSize),
		attrs: sessionContinue | sessionEncrypt,
	}
}

// answer is the response of a TPM that shares the keys of s: one parameter, data,
// encrypted as the session asks.
func answer(t testing.TB, s *session, code tpm2.TPMCC, data []byte) []byte {
	t.Helper()
	nonce := bytes.Repeat([]byte{4}, nonceSize)
	params := appendSized(nil, data)
	if err := s.cipher(params[2:], nonce, s.caller, true); err != nil {
		t.Fatal(err)
	}
	sum, err := pcrsig.SHA256.Digest(append(binary.BigEndian.AppendUint32(make([]byte, 4), uint32(code)), params...))
	if err != nil {
		t.Fatal(err)
	}
	area := append(appendSized(nil, nonce), s.attrs)
	area = appendSized(area, s.mac(sum, nonce, s.caller, s.attrs))
	body := binary.BigEndian.AppendUint32(nil, uint32(len(params)))
	return withHeader(tpm2.TPMSTSessions, 0, append(append(body, params...), area...))
}

func withHeader(tag tpm2.TPMST, rc tpm2.TPMRC, body []byte) []byte {
	out := binary.BigEndian.AppendUint16(nil, uint16(tag))
	out = binary.BigEndian.AppendUint32(out, uint32(headerSize+len(body)))
	return append(binary.BigEndian.AppendUint32(out, uint32(rc)), body...)
}

func TestDecode(t *testing.T) {
	plain := command{code: tpm2.TPMCCGetRandom}
	makes := command{code: tpm2.TPMCCLoadExternal, makes: true}
	password := command{code: tpm2.TPMCCNVRead, auth: emptyPassword()}
	passwordBody := []byte{0, 0, 0, 3, 0, 1, 'x', 0, 0, sessionContinue, 0, 0}
	for _, tc := range []struct {
		name string
		c    command
		rsp  []byte
		want error // nil: fine
	}{
		{"plain", plain, withHeader(tpm2.TPMSTNoSessions, 0, []byte{0, 1, 'x'}), nil},
		{"with_handle", makes, withHeader(tpm2.TPMSTNoSessions, 0, []byte{0x80, 0, 0, 1, 0, 1, 'x'}), nil},
		{"password", password, withHeader(tpm2.TPMSTSessions, 0, passwordBody), nil},
		{"nothing", plain, nil, errResponse},
		{"half_a_header", plain, []byte{0x80, 1, 0, 0, 0}, errResponse},
		{"size_too_large", plain, []byte{0x80, 1, 0, 0, 0, 11, 0, 0, 0, 0}, errResponse},
		{"size_too_small", plain, []byte{0x80, 1, 0, 0, 0, 9, 0, 0, 0, 0}, errResponse},
		{"surplus", plain, append(withHeader(tpm2.TPMSTNoSessions, 0, nil), 0), errResponse},
		{"tag_of_sessions", plain, withHeader(tpm2.TPMSTSessions, 0, []byte{0, 1, 'x'}), errResponse},
		{"tag_of_no_sessions", password, withHeader(tpm2.TPMSTNoSessions, 0, passwordBody), errResponse},
		{"tpm_1.2", plain, withHeader(tpm2.TPMSTRspCommand, 30, nil), ErrNoTPM},
		{"half_a_handle", makes, withHeader(tpm2.TPMSTNoSessions, 0, []byte{0x80, 0}), errResponse},
		{"no_parameters_size", password, withHeader(tpm2.TPMSTSessions, 0, nil), errResponse},
		{"parameters_too_long", password, withHeader(tpm2.TPMSTSessions, 0, []byte{0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0, 0}), errResponse},
		{"no_authorization", password, withHeader(tpm2.TPMSTSessions, 0, passwordBody[:7]), errResponse},
		{"surplus_authorization", password, withHeader(tpm2.TPMSTSessions, 0, append(bytes.Clone(passwordBody), 0)), errResponse},
		{"password_with_hmac", password, withHeader(tpm2.TPMSTSessions, 0, []byte{0, 0, 0, 0, 0, 0, 1, 0, 1, 'x'}), errResponseHMAC},
		{"password_with_attributes", password, withHeader(tpm2.TPMSTSessions, 0, []byte{0, 0, 0, 0, 0, 0, 0x41, 0, 0}), errResponseHMAC},
		{"response_code", plain, withHeader(tpm2.TPMSTNoSessions, 0x18b, nil), tpm2.TPMRCHandle},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := tc.c.decode(tc.rsp)
			if !errors.Is(err, tc.want) || err != nil && !reflect.DeepEqual(got, response{}) {
				t.Fatalf("got %+v, %v, want %v", got, err, tc.want)
			}
			if tc.want != nil {
				return
			}
			if x := got.sized(); string(x) != "x" || got.end() != nil || (got.handle == 0x80000001) != tc.c.makes {
				t.Errorf("parameter %q, handle %#x, %v", x, uint32(got.handle), got.end())
			}
		})
	}
}

// In a response that a session vouches for no byte can be another one, and a
// parameter that the TPM has encrypted comes in clear.
func TestDecodeAuthenticates(t *testing.T) {
	secret := []byte("the sealed secret")
	c := func() command { return command{code: tpm2.TPMCCUnseal, auth: testSession()} }
	good := answer(t, testSession(), tpm2.TPMCCUnseal, secret)
	if bytes.Contains(good, secret) {
		t.Fatal("the test's own response is in clear")
	}
	rsp, err := c().decode(bytes.Clone(good))
	if got := rsp.sized(); err != nil || rsp.end() != nil || !bytes.Equal(got, secret) {
		t.Fatalf("got %q, %v, %v", got, err, rsp.end())
	}
	for i := range good {
		for _, flip := range []byte{1, 0x80} {
			bad := bytes.Clone(good)
			bad[i] ^= flip
			if got, err := c().decode(bad); err == nil || !reflect.DeepEqual(got, response{}) {
				t.Errorf("byte %d changed by %#x: got %+v, %v, want an error", i, flip, got, err)
			}
		}
	}
	for _, other := range []command{
		{code: tpm2.TPMCCCreate, auth: testSession()},                                                     // the answer to another command
		{code: tpm2.TPMCCUnseal, auth: func() *session { s := testSession(); s.caller[0]++; return s }()}, // replayed
		{code: tpm2.TPMCCUnseal, auth: func() *session { s := testSession(); s.auth = []byte("pim"); return s }()},
	} {
		if _, err := other.decode(bytes.Clone(good)); !errors.Is(err, errResponseHMAC) {
			t.Errorf("%#x: got %v, want %v", uint32(other.code), err, errResponseHMAC)
		}
	}
}

// A command that is to be encrypted holds its first parameter only encrypted, in
// the caller's own buffer too, and the TPM can decrypt it.
func TestEncodeEncrypts(t *testing.T) {
	secret := []byte("the sealed secret")
	params := createParams([]byte("1234"), secret, eccPrimary(true))
	c := command{code: tpm2.TPMCCCreate, handles: []tpm2.NamedHandle{byHandle(SRKHandle)}, auth: testSession().encrypts(true, false), params: params}
	out, err := c.encode()
	if err != nil || bytes.Contains(out, secret) || bytes.Contains(params, secret) {
		t.Fatalf("%v; the command: %x", err, out)
	}
	if int(binary.BigEndian.Uint32(out[2:])) != len(out) || !bytes.HasSuffix(out, params) {
		t.Errorf("size %x, length %d", out[2:6], len(out))
	}
	r := reader{rest: params}
	first := r.sized()
	if err := c.auth.cipher(first, c.auth.caller, c.auth.tpm, false); err != nil || !bytes.Contains(first, secret) {
		t.Errorf("decrypted: %q, %v", first, err)
	}
	c.params = createParams(nil, secret, eccPrimary(true))
	c.auth = testSession().encrypts(false, false)
	if out, err := c.encode(); err != nil || !bytes.Contains(out, secret) {
		t.Errorf("control: a session that does not encrypt hides the secret, %v", err)
	}
}

// fuzzed answers every command with the next piece of some bytes.
type fuzzed struct {
	data  []byte
	limit int
}

func (f *fuzzed) Send(context.Context, []byte) ([]byte, error) {
	f.limit--
	if f.limit < 0 || len(f.data) == 0 {
		return nil, fmt.Errorf("%w: the end", ErrNoTPM)
	}
	n := min(1+int(f.data[0]), len(f.data))
	rsp := f.data[1:n:n]
	f.data = f.data[n:]
	return rsp, nil
}

func (*fuzzed) Close() error { return nil }

// What the TPM, or someone on its bus, answers: no panic, no end that is none, and
// beside an error no value.
func FuzzResponses(f *testing.F) {
	piece := func(rsp []byte) []byte { return append([]byte{byte(len(rsp))}, rsp...) }
	banks := withHeader(tpm2.TPMSTNoSessions, 0, []byte{0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0xb, 3, 0xff, 0xff, 0xff})
	f.Add(piece(banks))
	values := append([]byte{0, 0, 0, 1, 0, 0, 0, 1, 0, 0xb, 3, 0x80, 0, 0, 0, 0, 0, 1, 0, 32}, make([]byte, 32)...)
	f.Add(piece(withHeader(tpm2.TPMSTNoSessions, 0, values)))
	f.Add(piece(withHeader(tpm2.TPMSTNoSessions, 0, []byte{0, 5, 1, 2, 3, 4, 5})))
	srk := sampleSRK(f)
	public := appendSized(appendSized(appendSized(nil, tpm2.Marshal(srk.public)), srk.Name), srk.Name)
	f.Add(piece(withHeader(tpm2.TPMSTNoSessions, 0, public)))
	index := appendSized(appendSized(nil, tpm2.Marshal(markPublic())), nvName(markPublic()))
	f.Add(piece(withHeader(tpm2.TPMSTNoSessions, 0, index)))
	f.Add(piece(withHeader(tpm2.TPMSTNoSessions, 0x18b, nil)))
	f.Fuzz(func(t *testing.T, data []byte) {
		chip := func() *TPM {
			return &TPM{t: &fuzzed{data: data, limit: 100}, sleep: func(context.Context, time.Duration) error { return context.Canceled }}
		}
		ctx := t.Context()
		if banks, err := chip().ActiveBanks(ctx); err != nil && banks != nil {
			t.Errorf("ActiveBanks: %v beside %v", banks, err)
		}
		if v, err := chip().ReadPCRs(ctx, pcrsig.SHA256, []int{7, 11}); err != nil && v != nil {
			t.Errorf("ReadPCRs: %v beside %v", v, err)
		}
		if b, err := chip().GetRandom(ctx, 40); err != nil && b != nil {
			t.Errorf("GetRandom: %x beside %v", b, err)
		}
		if srk, err := chip().EnsureSRK(ctx); err != nil && !reflect.DeepEqual(srk, SRK{}) {
			t.Errorf("EnsureSRK: %+v beside %v", srk, err)
		}
		if m, set, err := chip().ReadMark(ctx); err != nil && (set || m != Mark{}) {
			t.Errorf("ReadMark: %+v, %v beside %v", m, set, err)
		}
		if _, err := chip().Cap(ctx, nil, 11); err == nil && len(data) == 0 {
			t.Error("Cap: no TPM, no error")
		}
		token, err := chip().Seal(ctx, Policy{PCRs: []int{7}, Bank: pcrsig.SHA256}, make([]byte, SecretSize), nil)
		if err == nil || !reflect.DeepEqual(token, Token{}) {
			t.Errorf("Seal without the keys of a TPM: %+v, %v", token, err)
		}
		// The session commands, with keys that the answering side does not have.
		for _, c := range []command{
			{code: tpm2.TPMCCUnseal, auth: testSession()},
			{code: tpm2.TPMCCLoad, auth: testSession(), makes: true},
		} {
			if got, err := chip().bind(ctx).run(c); err == nil || !reflect.DeepEqual(got, response{}) {
				t.Errorf("command %#x: accepted %+v, %v", uint32(c.code), got, err)
			}
		}
	})
}
