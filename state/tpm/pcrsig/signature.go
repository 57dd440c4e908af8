package pcrsig

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"sealroot/publickey"
	"sealroot/state/tpm/internal/jsonobj"
)

// ErrFormat is returned for bytes that are not a valid tpm2-pcr-signature.json.
var ErrFormat = errors.New("invalid PCR signature file")

// ErrKey is returned for a policy key that cannot be used: not PEM, not a public
// key, not RSA (systemd takes RSA policy keys only), or of an odd size.
var ErrKey = errors.New("invalid PCR policy key")

// Bounds of a signature file. A UKI has a few entries for each of four banks.
const (
	maxFile    = 256 << 10
	maxEntries = 256
	maxSig     = 1024
)

// Entry is one signed PCR policy.
type Entry struct {
	PCRs        []int    // PCRs of the policy, ascending
	Fingerprint [32]byte // SHA-256 of the PKCS#1 DER form of the public key ("pkfp")
	Policy      [32]byte // policy digest of PolicyPCR, beginning at zero ("pol")
	Signature   []byte   // RSASSA-PKCS1-v1_5 with SHA-256 over Policy ("sig")
}

// File is the content of a tpm2-pcr-signature.json: entries of each bank.
type File map[Bank][]Entry

// entryJSON is an Entry as systemd writes it; []byte is base64.
type entryJSON struct {
	PCRs []int  `json:"pcrs"`
	PKFP string `json:"pkfp"`
	Pol  string `json:"pol"`
	Sig  []byte `json:"sig"`
}

// Parse reads a tpm2-pcr-signature.json. NUL bytes at the end (section padding)
// are ignored. Banks of unknown algorithms and unknown keys of entries are left
// out. Nothing is verified here: the TPM does that. Errors are ErrFormat.
func Parse(data []byte) (File, error) {
	data = bytes.TrimRight(data, "\x00")
	if len(data) > maxFile {
		return nil, fmt.Errorf("%w: %d bytes", ErrFormat, len(data))
	}
	banks, err := jsonobj.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	f := make(File)
	total := 0
	for name, raw := range banks {
		if _, err := Bank(name).Hash(); err != nil {
			continue
		}
		var list []json.RawMessage
		if err := json.Unmarshal(raw, &list); err != nil {
			return nil, fmt.Errorf("%w: bank %s: %w", ErrFormat, name, err)
		}
		if total += len(list); total > maxEntries {
			return nil, fmt.Errorf("%w: more than %d entries", ErrFormat, maxEntries)
		}
		for _, item := range list {
			e, err := parseEntry(item)
			if err != nil {
				return nil, fmt.Errorf("%w: bank %s: %w", ErrFormat, name, err)
			}
			f[Bank(name)] = append(f[Bank(name)], e)
		}
	}
	return f, nil
}

func parseEntry(data []byte) (Entry, error) {
	members, err := jsonobj.Parse(data)
	if err != nil {
		return Entry{}, err
	}
	var e Entry
	var pkfp, pol string
	for _, m := range []struct {
		key string
		to  any
	}{{"pcrs", &e.PCRs}, {"pkfp", &pkfp}, {"pol", &pol}, {"sig", &e.Signature}} {
		raw, ok := members[m.key]
		if !ok {
			return Entry{}, fmt.Errorf("key %q is missing", m.key)
		}
		if err := json.Unmarshal(raw, m.to); err != nil {
			return Entry{}, fmt.Errorf("key %q: %w", m.key, err)
		}
	}
	slices.Sort(e.PCRs)
	if _, err := Selection(SHA256, e.PCRs); err != nil {
		return Entry{}, err
	}
	if err := hex32(&e.Fingerprint, pkfp); err != nil {
		return Entry{}, fmt.Errorf("key \"pkfp\": %w", err)
	}
	if err := hex32(&e.Policy, pol); err != nil {
		return Entry{}, fmt.Errorf("key \"pol\": %w", err)
	}
	if len(e.Signature) == 0 || len(e.Signature) > maxSig {
		return Entry{}, fmt.Errorf("key \"sig\": %d bytes", len(e.Signature))
	}
	return e, nil
}

func hex32(to *[32]byte, text string) error {
	b, err := hex.DecodeString(text)
	if err != nil {
		return err
	}
	if len(b) != len(to) {
		return fmt.Errorf("%d bytes in place of %d", len(b), len(to))
	}
	copy(to[:], b)
	return nil
}

// Encode writes f as systemd-measure does, in one line, banks by name.
func (f File) Encode() ([]byte, error) {
	out := make(map[Bank][]entryJSON, len(f))
	for bank, entries := range f {
		for _, e := range entries {
			out[bank] = append(out[bank], entryJSON{
				PCRs: e.PCRs,
				PKFP: hex.EncodeToString(e.Fingerprint[:]),
				Pol:  hex.EncodeToString(e.Policy[:]),
				Sig:  e.Signature,
			})
		}
	}
	data, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("cannot encode PCR signature file: %w", err)
	}
	return append(data, '\n'), nil
}

// Find returns the signature for a policy made with a key, and whether there is
// one.
func (f File) Find(bank Bank, pcrs []int, key *rsa.PublicKey, policy [32]byte) ([]byte, bool) {
	want := slices.Sorted(slices.Values(pcrs))
	fp := Fingerprint(key)
	for _, e := range f[bank] {
		if e.Fingerprint == fp && e.Policy == policy && slices.Equal(e.PCRs, want) {
			return e.Signature, true
		}
	}
	return nil, false
}

// Has reports whether f holds any entry for a key and PCRs, whatever the values.
func (f File) Has(bank Bank, pcrs []int, key *rsa.PublicKey) bool {
	want := slices.Sorted(slices.Values(pcrs))
	fp := Fingerprint(key)
	return slices.ContainsFunc(f[bank], func(e Entry) bool {
		return e.Fingerprint == fp && slices.Equal(e.PCRs, want)
	})
}

// Sign signs the policy "pcrs of bank have these values" with an RSA key. The
// result is deterministic. Errors are ErrBank, ErrPCR, ErrKey and the signer's.
func Sign(key crypto.Signer, bank Bank, pcrs []int, values Values) (Entry, error) {
	pub, ok := key.Public().(*rsa.PublicKey)
	if !ok {
		return Entry{}, fmt.Errorf("%w: %T is not RSA", ErrKey, key.Public())
	}
	if err := checkKey(pub); err != nil {
		return Entry{}, err
	}
	pol, err := PolicyPCR([32]byte{}, bank, pcrs, values)
	if err != nil {
		return Entry{}, err
	}
	digest := sha256.Sum256(pol[:])
	// A nil source of randomness: PKCS#1 v1.5 needs none, equal images must get
	// equal signatures.
	sig, err := key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return Entry{}, fmt.Errorf("cannot sign PCR policy: %w", err)
	}
	return Entry{
		PCRs:        slices.Sorted(slices.Values(pcrs)),
		Fingerprint: Fingerprint(pub),
		Policy:      pol,
		Signature:   sig,
	}, nil
}

// SignPCR11 makes the file that goes into a UKI's .pcrsig: for each bank, the
// PCR 11 of the sections at each of the phase paths is signed. A phase path is
// the list of words measured until then; sealroot unlocks at
// []string{PhaseEnterInitrd}.
func SignPCR11(key crypto.Signer, banks []Bank, sections []Section, paths ...[]string) (File, error) {
	f := make(File, len(banks))
	for _, bank := range banks {
		for _, path := range paths {
			value, err := PCR11(bank, sections, path...)
			if err != nil {
				return nil, err
			}
			e, err := Sign(key, bank, []int{11}, Values{11: value})
			if err != nil {
				return nil, err
			}
			f[bank] = append(f[bank], e)
		}
	}
	return f, nil
}

// Add takes the entries of another file over, behind its own.
func (f File) Add(other File) {
	for bank, entries := range other {
		f[bank] = append(f[bank], entries...)
	}
}

// Fingerprint is SHA-256 of the PKCS#1 DER form of a public key, as systemd
// writes it in "pkfp".
func Fingerprint(key *rsa.PublicKey) [32]byte {
	return sha256.Sum256(publickey.PKCS1(key))
}

// ParsePublicKey reads a policy key: one PEM block "PUBLIC KEY" with an RSA key
// of 2048 to 4096 bits. Errors are ErrKey.
func ParsePublicKey(text []byte) (*rsa.PublicKey, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("%w: %d bytes", ErrKey, len(text))
	}
	block, _ := pem.Decode(bytes.TrimRight(text, "\x00"))
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("%w: no PEM block \"PUBLIC KEY\"", ErrKey)
	}
	pub, err := publickey.Parse(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	key, ok := pub.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: %T; only RSA keys can sign PCR policies", ErrKey, pub)
	}
	if err := checkKey(key); err != nil {
		return nil, err
	}
	return key, nil
}

// SameKey tells whether two policy keys (PEM) are the same one; false when either
// cannot be used.
func SameKey(a, b []byte) bool {
	ka, errA := ParsePublicKey(a)
	kb, errB := ParsePublicKey(b)
	return errA == nil && errB == nil && ka.E == kb.E && ka.N.Cmp(kb.N) == 0
}

func checkKey(key *rsa.PublicKey) error {
	bits := key.N.BitLen()
	if bits != 2048 && bits != 3072 && bits != 4096 {
		return fmt.Errorf("%w: RSA with %d bits", ErrKey, bits)
	}
	if key.E < 3 || key.E%2 == 0 {
		return fmt.Errorf("%w: RSA with exponent %d", ErrKey, key.E)
	}
	return nil
}
