package tpm_test

import (
	"encoding/base64"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sealroot/state/tpm"
)

// sample is a well formed token as systemd-cryptenroll writes it; the blob only
// has the right shape.
func sample() tpm.Token {
	return tpm.Token{
		Keyslots: []int{0}, Blob: []byte{0, 1, 'p', 0, 1, 'q'}, PCRs: []int{7, 15}, Bank: "sha256", Primary: "ecc",
		PubPCRs: []int{11}, PubKey: []byte("pem"), SRK: []byte("srk"), Shards: 1,
	}
}

func sampleText(t testing.TB) string {
	t.Helper()
	data, err := sample().Encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// The bytes are those that systemd-cryptenroll 255 writes: order, spelling, forms.
func TestTokenEncode(t *testing.T) {
	want := `{"type":"systemd-tpm2","keyslots":["0"],"tpm2-blob":"AAFwAAFx","tpm2-pcrs":[7,15],"tpm2-pcr-bank":"sha256",` +
		`"tpm2-primary-alg":"ecc","tpm2-policy-hash":"` + strings.Repeat("0", 64) + `","tpm2-pin":false,"tpm2_pcrlock":false,` +
		`"tpm2_pubkey_pcrs":[11],"tpm2_pubkey":"cGVt","tpm2_srk":"c3Jr"}`
	if got := sampleText(t); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	got, err := tpm.ParseToken([]byte(want))
	if err != nil || !reflect.DeepEqual(got, sample()) {
		t.Errorf("ParseToken: got %+v, %v, want %+v", got, err, sample())
	}
}

func TestParseToken(t *testing.T) {
	zeros := strings.Repeat("0", 64)
	for _, tc := range []struct {
		name, old, new string
		want           error  // of ParseToken
		usable         string // what Usable says; "" is nil
	}{
		{name: "arrays_of_one", old: `"tpm2-blob":"AAFwAAFx"`, new: `"tpm2-blob":["AAFwAAFx"]`},
		{name: "policy_array_of_one", old: `"` + zeros + `"`, new: `["` + zeros + `"]`},
		{name: "two_shards", old: `"tpm2-blob":"AAFwAAFx"`, new: `"tpm2-blob":["AAFwAAFx","AAFwAAFx"]`, want: tpm.ErrToken},
		{name: "pcrlock", old: `"tpm2_pcrlock":false`, new: `"tpm2_pcrlock":true`, usable: "pcrlock"},
		{name: "pcrlock_nv", old: `"tpm2_pcrlock":false`, new: `"tpm2_pcrlock_nv":"AAAA"`, usable: "pcrlock"},
		{name: "sealed_offline", old: "AAFwAAFx", new: "AAFwAAFxAAFz", usable: "offline"},
		{name: "no_bank", old: `"tpm2-pcr-bank":"sha256",`, usable: "bank"},
		{name: "other_type", old: "systemd-tpm2", new: "systemd-recovery", want: tpm.ErrToken},
		{name: "key_case", old: `"tpm2-blob"`, new: `"TPM2-blob"`, want: tpm.ErrToken},
		{name: "key_twice", old: `"tpm2-pin":false`, new: `"tpm2-pin":false,"tpm2-pin":true`, want: tpm.ErrToken},
		{name: "no_pcrs", old: `"tpm2-pcrs":[7,15],`, want: tpm.ErrToken},
		{name: "null_pcrs", old: `[7,15]`, new: `null`, want: tpm.ErrToken},
		{name: "pcr_range", old: `[7,15]`, new: `[7,24]`, want: tpm.ErrToken},
		{name: "pcr_negative", old: `[7,15]`, new: `[-1]`, want: tpm.ErrToken},
		{name: "pcr_twice", old: `[7,15]`, new: `[7,7]`, want: tpm.ErrToken},
		{name: "unknown_bank", old: `"sha256"`, new: `"sm3_256"`, want: tpm.ErrToken},
		{name: "unknown_primary", old: `"ecc"`, new: `"dsa"`, want: tpm.ErrToken},
		{name: "keyslot_form", old: `["0"]`, new: `["00"]`, want: tpm.ErrToken},
		{name: "keyslot_range", old: `["0"]`, new: `["32"]`, want: tpm.ErrToken},
		{name: "keyslot_number", old: `["0"]`, new: `[0]`, want: tpm.ErrToken},
		{name: "short_policy", old: zeros, new: zeros[2:], want: tpm.ErrToken},
		{name: "blob_cut", old: "AAFwAAFx", new: "AAFwAAI=", want: tpm.ErrToken},
		{name: "blob_empty_array", old: `"AAFwAAFx"`, new: `[]`, want: tpm.ErrToken},
		{name: "blob_trailing", old: "AAFwAAFx", new: "AAFwAAFxAAA=", want: nil, usable: "offline"},
		{name: "key_without_pcrs", old: `"tpm2_pubkey_pcrs":[11],`, want: tpm.ErrToken},
		{name: "pcrs_without_key", old: `"tpm2_pubkey":"cGVt",`, want: tpm.ErrToken},
		{name: "trailing", old: `"c3Jr"}`, new: `"c3Jr"}{}`, want: tpm.ErrToken},
	} {
		t.Run(tc.name, func(t *testing.T) {
			text := sampleText(t)
			if !strings.Contains(text, tc.old) {
				t.Fatalf("case is wrong: no %q in %s", tc.old, text)
			}
			got, err := tpm.ParseToken([]byte(strings.Replace(text, tc.old, tc.new, 1)))
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if err != nil {
				if !reflect.DeepEqual(got, tpm.Token{}) {
					t.Errorf("got a token beside error %v", err)
				}
				return
			}
			err = got.Usable()
			if (err == nil) != (tc.usable == "") || err != nil && (!errors.Is(err, tpm.ErrToken) || !strings.Contains(err.Error(), tc.usable)) {
				t.Errorf("Usable: got %v, want it to name %q", err, tc.usable)
			}
		})
	}
}

func TestForeignTokenIsNotRewritten(t *testing.T) {
	token, err := tpm.ParseToken([]byte(strings.Replace(sampleText(t), "{", `{"tpm3":1,`, 1)))
	if err != nil || !slices.Equal(token.Unknown, []string{"tpm3"}) {
		t.Fatalf("got %v, %v, want the key as unknown", token.Unknown, err)
	}
	if data, err := token.Encode(); !errors.Is(err, tpm.ErrToken) || data != nil {
		t.Errorf("Encode: got %s, %v, want ErrToken", data, err)
	}
}

func TestCapped(t *testing.T) {
	for _, tc := range []struct {
		name         string
		pcrs, signed []int
		want         bool
	}{
		{"pcr_7", []int{7}, nil, false},
		{"nothing", nil, nil, false},
		{"signed_11", []int{7}, []int{11}, true},
		{"literal_11", []int{11}, nil, true},
		{"literal_15", []int{7, 15}, nil, true},
		{"signed_15", nil, []int{15}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := (tpm.Token{PCRs: tc.pcrs, PubPCRs: tc.signed}).Capped(); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func FuzzParseToken(f *testing.F) {
	text := sampleText(f)
	f.Add([]byte(text))
	f.Add([]byte(strings.Replace(text, `"AAFwAAFx"`, `["AAFwAAFx"]`, 1)))
	f.Add([]byte(strings.Replace(text, "AAFwAAFx", base64.StdEncoding.EncodeToString([]byte{0xff, 0xff}), 1)))
	f.Add([]byte(`{"type":"systemd-tpm2"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := tpm.ParseToken(data)
		if err != nil {
			if !reflect.DeepEqual(got, tpm.Token{}) || !errors.Is(err, tpm.ErrToken) {
				t.Fatalf("got %+v beside error %v", got, err)
			}
			return
		}
		if got.Usable() != nil || got.Unknown != nil {
			return
		}
		again, err := got.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if reparsed, err := tpm.ParseToken(again); err != nil || !slices.Equal(reparsed.Blob, got.Blob) || reparsed.Policy != got.Policy {
			t.Fatalf("ParseToken of Encode: got %+v, %v, want %+v", reparsed, err, got)
		}
	})
}
