package signature_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"sealroot/verity/signature"
)

func TestParse(t *testing.T) {
	hash := strings.Repeat("0a", 32)
	const sig = "AQID"
	good := fmt.Sprintf(`{"rootHash":%q,"certificateFingerprint":%q,"signature":%q}`, hash, hash, sig)
	long := strings.Repeat("0b", 64)
	for _, test := range []struct {
		name, text string
		want       error
	}{
		{"plain", good, nil},
		{"nul_padded", good + strings.Repeat("\x00", 5000), nil},
		{"newline_and_nul", good + "\n\x00\x00", nil},
		{"unknown_key", `{"x":{"signature":[1,{"rootHash":2}]},` + good[1:], nil},
		{"no_fingerprint", fmt.Sprintf(`{"rootHash":%q,"signature":%q}`, hash, sig), nil},
		{"sha512", fmt.Sprintf(`{"rootHash":%q,"signature":%q}`, long, sig), nil},
		{"empty", "", signature.ErrFormat},
		{"only_nul", strings.Repeat("\x00", 16384), signature.ErrFormat},
		{"too_long", good + strings.Repeat(" ", signature.MaxSize), signature.ErrFormat},
		{"list", "[" + good + "]", signature.ErrFormat},
		{"cut", good[:len(good)-1], signature.ErrFormat},
		{"second_object", good + good, signature.ErrFormat},
		{"text_behind_nul", good + "\x00x", signature.ErrFormat},
		{"root_hash_twice", `{"rootHash":"` + hash + `",` + good[1:], signature.ErrFormat},
		{"unknown_key_twice", `{"x":1,"x":2,` + good[1:], signature.ErrFormat},
		{"other_case_beside_ours", `{"ROOTHASH":"` + hash + `",` + good[1:], signature.ErrFormat},
		{"only_other_case", strings.Replace(good, "rootHash", "roothash", 1), signature.ErrFormat},
		{"no_root_hash", `{"signature":"AQID"}`, signature.ErrFormat},
		{"no_signature", `{"rootHash":"` + hash + `"}`, signature.ErrFormat},
		{"root_hash_null", strings.Replace(good, `"`+hash+`"`, "null", 1), signature.ErrFormat},
		{"root_hash_upper_case", strings.Replace(good, hash, strings.ToUpper(hash), 1), signature.ErrFormat},
		{"root_hash_short", strings.Replace(good, hash, hash[2:], 1), signature.ErrFormat},
		{"root_hash_odd", strings.Replace(good, hash, hash[1:], 1), signature.ErrFormat},
		{"root_hash_with_space", strings.Replace(good, hash, " "+hash[1:], 1), signature.ErrFormat},
		{"fingerprint_short", `{"certificateFingerprint":"00","rootHash":"` + hash + `","signature":"AQID"}`, signature.ErrFormat},
		{"signature_not_base64", strings.Replace(good, sig, "A*ID", 1), signature.ErrFormat},
		{"signature_loose_base64", strings.Replace(good, sig, "AQJ=", 1), signature.ErrFormat},
		{"signature_empty", strings.Replace(good, sig, "", 1), signature.ErrFormat},
		{"deep", strings.Repeat(`{"a":`, 10000), signature.ErrFormat},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := signature.Parse([]byte(test.text))
			if !errors.Is(err, test.want) {
				t.Fatalf("Parse = %v; want %v", err, test.want)
			}
			if err != nil && (s.RootHash != nil || s.CertificateFingerprint != nil || s.PKCS7 != nil) {
				t.Errorf("error with result %+v", s)
			}
			if err == nil && (!strings.Contains(test.text, hex.EncodeToString(s.RootHash)) ||
				base64.StdEncoding.EncodeToString(s.PKCS7) != sig) {
				t.Errorf("Parse = %+v; want what stands in %s", s, test.text)
			}
			read, readErr := signature.Read(strings.NewReader(test.text))
			if len(test.text) <= signature.MaxSize && (!errors.Is(readErr, test.want) || !bytes.Equal(read.PKCS7, s.PKCS7)) {
				t.Errorf("Read = %+v, %v; want what signature.Parse gives", read, readErr)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	hash := strings.Repeat("0a", 32)
	f.Add([]byte(`{"rootHash":"` + hash + `","certificateFingerprint":"` + hash + `","signature":"AQID"}` + "\x00\x00"))
	f.Add([]byte(`{"rootHash":"` + hash + `","signature":"AQID","other":[{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := signature.Parse(data)
		if err == nil {
			if n := len(s.RootHash); n != 32 && n != 64 || len(s.PKCS7) == 0 {
				t.Fatalf("accepted %+v", s)
			}
		} else if s.RootHash != nil || s.CertificateFingerprint != nil || s.PKCS7 != nil {
			t.Fatalf("error %v with result %+v", err, s)
		}
	})
}
