package tpm

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"sealroot/state/tpm/internal/jsonobj"
	"sealroot/state/tpm/pcrsig"
)

// TokenType is the type of the LUKS2 tokens of this package.
const TokenType = "systemd-tpm2"

// Token is a LUKS2 token of type systemd-tpm2: a sealed secret and the policy it
// is sealed under. It lies on an untrusted disk.
type Token struct {
	Keyslots []int    // LUKS2 keyslots that the secret opens
	Blob     []byte   // TPM2B_PRIVATE ‖ TPM2B_PUBLIC of the sealed object
	PCRs     []int    // PCRs bound to fixed values, ascending
	Bank     Bank     // bank of all PCRs here
	Primary  string   // algorithm of the primary key: "ecc" or "rsa"
	Policy   [32]byte // policy digest
	PIN      bool     // the object has an authorization value
	PubKey   []byte   // PEM of the key that signs PCR policies; nil: none
	PubPCRs  []int    // PCRs whose values are signed by PubKey, ascending
	Salt     []byte   // PIN salt (systemd 255 and later); nil: none
	SRK      []byte   // reference to the SRK, see SRK.Reference; nil: legacy primary
	PCRLock  bool     // policy of systemd-pcrlock: cannot be used here
	Shards   int      // sealed objects the secret is split into; more than 1 cannot be used here
	Imported bool     // sealed offline to the SRK's public key: cannot be used here
	Unknown  []string // keys that this version does not know: a foreign token, never rewritten
}

// Capped reports whether the token's policy includes a PCR that init extends
// before hand-over: 11, signed or fixed, or 15 fixed. Only such a token may be
// used automatically; any other can be unsealed again by whatever runs later.
func (t Token) Capped() bool {
	return slices.Contains(t.PubPCRs, 11) || slices.Contains(t.PCRs, 11) || slices.Contains(t.PCRs, 15)
}

// AllPCRs returns every PCR of the policy, signed and fixed, ascending.
func (t Token) AllPCRs() []int {
	return slices.Compact(slices.Sorted(slices.Values(slices.Concat(t.PubPCRs, t.PCRs))))
}

// Usable returns nil, or an ErrToken that says which unsupported feature the
// token needs.
func (t Token) Usable() error {
	switch {
	case t.PCRLock:
		return fmt.Errorf("%w: it needs a systemd-pcrlock policy, which is not supported", ErrToken)
	case t.Shards > 1:
		return fmt.Errorf("%w: its secret is split into %d shards, which is not supported", ErrToken, t.Shards)
	case t.Imported:
		return fmt.Errorf("%w: it was sealed offline, which is not supported", ErrToken)
	case t.Bank == "":
		return fmt.Errorf("%w: it does not name its PCR bank", ErrToken)
	}
	return nil
}

// tokenJSON has the members in the order in which systemd writes them
// (tpm2_make_luks2_json), and its mixed spelling of keys.
type tokenJSON struct {
	Type     string   `json:"type"`
	Keyslots []string `json:"keyslots"`
	Blob     []byte   `json:"tpm2-blob"`
	PCRs     []int    `json:"tpm2-pcrs"`
	Bank     string   `json:"tpm2-pcr-bank,omitempty"`
	Primary  string   `json:"tpm2-primary-alg"`
	Policy   string   `json:"tpm2-policy-hash"`
	PIN      bool     `json:"tpm2-pin"`
	PCRLock  bool     `json:"tpm2_pcrlock"`
	PubPCRs  []int    `json:"tpm2_pubkey_pcrs,omitempty"`
	PubKey   []byte   `json:"tpm2_pubkey,omitempty"`
	Salt     []byte   `json:"tpm2_salt,omitempty"`
	SRK      []byte   `json:"tpm2_srk,omitempty"`
}

// Encode writes the token as systemd-cryptenroll does. Tokens of kinds that
// cannot be used here, or with unknown keys, are refused with ErrToken.
func (t Token) Encode() ([]byte, error) {
	if err := t.Usable(); err != nil {
		return nil, err
	}
	if len(t.Unknown) > 0 {
		return nil, fmt.Errorf("%w: it is foreign (key %q)", ErrToken, t.Unknown[0])
	}
	out := tokenJSON{
		Type: TokenType, Keyslots: []string{}, Blob: t.Blob, PCRs: append([]int{}, t.PCRs...),
		Bank: string(t.Bank), Primary: t.Primary, Policy: hex.EncodeToString(t.Policy[:]), PIN: t.PIN,
		PubPCRs: t.PubPCRs, PubKey: t.PubKey, Salt: t.Salt, SRK: t.SRK,
	}
	for _, n := range t.Keyslots {
		out.Keyslots = append(out.Keyslots, strconv.Itoa(n))
	}
	data, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("cannot encode systemd-tpm2 token: %w", err)
	}
	return data, nil
}

// Bounds of a token; real ones have about 1 KiB.
const (
	maxToken    = 32 << 10
	maxBlob     = 4 << 10
	maxKeyslots = 32 // LUKS2_KEYSLOTS_MAX of cryptsetup
	maxSalt     = 64
	maxSRK      = 2 << 10
)

// ParseToken reads the JSON of one LUKS2 token. Keys are compared byte for byte,
// a key that occurs twice is refused, unknown keys are reported in Unknown.
// Errors are ErrToken. A token that is well formed but needs what this package
// does not have is returned without error: see Usable.
func ParseToken(data []byte) (Token, error) {
	if len(data) > maxToken {
		return Token{}, fmt.Errorf("%w: %d bytes", ErrToken, len(data))
	}
	members, err := jsonobj.Parse(data)
	if err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrToken, err)
	}
	p := tokenParser{members: members, known: make(map[string]bool)}
	t := p.parse()
	if p.err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrToken, p.err)
	}
	for key := range members {
		if !p.known[key] {
			t.Unknown = append(t.Unknown, key)
		}
	}
	slices.Sort(t.Unknown)
	return t, nil
}

// tokenParser keeps the first error, so that parse reads as a list of keys.
type tokenParser struct {
	members map[string]json.RawMessage
	known   map[string]bool
	err     error
}

func (p *tokenParser) fail(key, format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("key %q: %w", key, fmt.Errorf(format, args...))
	}
}

// value decodes the member key into to and reports whether it is there.
func (p *tokenParser) value(key string, need bool, to any) bool {
	p.known[key] = true
	raw, ok := p.members[key]
	if !ok {
		if need {
			p.fail(key, "is missing")
		}
		return false
	}
	if string(raw) == "null" {
		p.fail(key, "is null")
		return false
	}
	if err := json.Unmarshal(raw, to); err != nil {
		p.fail(key, "%w", err)
		return false
	}
	return true
}

func (p *tokenParser) parse() Token {
	t := Token{Primary: "ecc"} // tokens of systemd 248 named none and meant this
	var kind string
	if p.value("type", true, &kind); kind != TokenType {
		p.fail("type", "is not %q", TokenType)
	}
	t.Keyslots = p.keyslots()
	t.PCRs = p.pcrs("tpm2-pcrs", true)
	t.PubPCRs = p.pcrs("tpm2_pubkey_pcrs", false)
	t.Bank = p.bank()
	if p.value("tpm2-primary-alg", false, &t.Primary) && t.Primary != "ecc" && t.Primary != "rsa" {
		p.fail("tpm2-primary-alg", "is %q", t.Primary)
	}
	p.value("tpm2-pin", false, &t.PIN)
	p.value("tpm2_pcrlock", false, &t.PCRLock)
	t.PubKey = p.bytes("tpm2_pubkey", maxBlob)
	t.Salt = p.bytes("tpm2_salt", maxSalt)
	t.SRK = p.bytes("tpm2_srk", maxSRK)
	if p.bytes("tpm2_pcrlock_nv", maxSRK) != nil {
		t.PCRLock = true
	}
	p.sealed(&t)
	if (len(t.PubPCRs) > 0) != (t.PubKey != nil) {
		p.fail("tpm2_pubkey", "public key and its PCRs do not come together")
	}
	return t
}

// sealed reads blob and policy hash: strings, or arrays with one element for
// each shard (systemd 257 and later).
func (p *tokenParser) sealed(t *Token) {
	blobs := oneOrMore[[]byte](p, "tpm2-blob")
	hashes := oneOrMore[string](p, "tpm2-policy-hash")
	if p.err != nil {
		return
	}
	if len(blobs) != len(hashes) || len(blobs) > 4 {
		p.fail("tpm2-blob", "%d blobs for %d policy hashes", len(blobs), len(hashes))
		return
	}
	t.Shards = len(blobs)
	t.Blob = blobs[0]
	if len(t.Blob) > maxBlob {
		p.fail("tpm2-blob", "has %d bytes", len(t.Blob))
		return
	}
	hash, err := hex.DecodeString(hashes[0])
	if err != nil || len(hash) != len(t.Policy) {
		p.fail("tpm2-policy-hash", "is not the hex form of %d bytes", len(t.Policy))
		return
	}
	copy(t.Policy[:], hash)
	parts, err := splitBlob(t.Blob)
	if err != nil {
		p.fail("tpm2-blob", "%w", err)
		return
	}
	t.Imported = parts.seed != nil
}

func oneOrMore[T any](p *tokenParser, key string) []T {
	if raw := p.members[key]; len(raw) > 0 && raw[0] == '[' {
		var list []T
		if p.value(key, true, &list) && len(list) == 0 {
			p.fail(key, "is empty")
		}
		return list
	}
	var one T
	p.value(key, true, &one)
	return []T{one}
}

func (p *tokenParser) keyslots() []int {
	var names []string
	p.value("keyslots", true, &names)
	if len(names) > maxKeyslots {
		p.fail("keyslots", "has %d entries", len(names))
		return nil
	}
	var list []int
	for _, name := range names {
		n, err := strconv.Atoi(name)
		if err != nil || n < 0 || n >= maxKeyslots || strconv.Itoa(n) != name || slices.Contains(list, n) {
			p.fail("keyslots", "%q is not a keyslot or is there twice", name)
			return nil
		}
		list = append(list, n)
	}
	return list
}

func (p *tokenParser) pcrs(key string, need bool) []int {
	var list []int
	p.value(key, need, &list)
	slices.Sort(list)
	if _, err := pcrsig.Selection(pcrsig.SHA256, list); err != nil {
		p.fail(key, "%w", err)
		return nil
	}
	return list
}

func (p *tokenParser) bank() Bank {
	var name string
	if !p.value("tpm2-pcr-bank", false, &name) {
		return ""
	}
	if _, err := Bank(name).Hash(); err != nil {
		p.fail("tpm2-pcr-bank", "%w", err)
		return ""
	}
	return Bank(name)
}

func (p *tokenParser) bytes(key string, limit int) []byte {
	var b []byte
	if !p.value(key, false, &b) {
		return nil
	}
	if len(b) == 0 || len(b) > limit {
		p.fail(key, "has %d bytes", len(b))
		return nil
	}
	return b
}
