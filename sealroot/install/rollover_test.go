package install

import (
	"testing"

	"sealroot/verity/signature"
	"sealroot/verity/signature/sign"
	"sealroot/verity/signature/signaturetest"
)

// The order in which an image key is exchanged (docs/image-builders.md): an
// update signed by the new key is taken once the running version trusts both,
// and not before; one signed by the old key is not taken any more afterwards.
func TestKeyRollOver(t *testing.T) {
	f := newFixture(t)
	replacement := signaturetest.New(t)
	signedAnew := f.new.clone()
	sig, err := sign.RootHash(signedAnew.manifest.RootHash, replacement.Cert, replacement.Key)
	if err != nil {
		t.Fatal(err)
	}
	signedAnew.files["verity-sig"] = sig
	signedAnew.seal(t, replacement)
	for _, tc := range []struct {
		name    string
		trusted []signaturetest.Signer
		set     testSet
		ok      bool
	}{
		{"old_key_before", []signaturetest.Signer{f.keys}, f.new, true},
		{"new_key_too_early", []signaturetest.Signer{f.keys}, signedAnew, false},
		{"old_key_during", []signaturetest.Signer{f.keys, replacement}, f.new, true},
		{"new_key_during", []signaturetest.Signer{f.keys, replacement}, signedAnew, true},
		{"new_key_after", []signaturetest.Signer{replacement}, signedAnew, true},
		{"old_key_after", []signaturetest.Signer{replacement}, f.new, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := f.world(starts()[2])
			m := w.machine(f.keys)
			m.Certs = []*signature.Certificate{}
			for _, k := range tc.trusted {
				m.Certs = append(m.Certs, k.Parsed)
			}
			_, err := m.Install(t.Context(), tc.set.source(t), f.running(), Options{Tries: 3})
			if (err == nil) != tc.ok {
				t.Errorf("Install = %v, want ok %v", err, tc.ok)
			}
			if !tc.ok && w.writes > 0 {
				t.Errorf("it wrote %v", w.trace)
			}
		})
	}
}
