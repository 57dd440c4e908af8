package tpm

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"sealroot/state/tpm/pcrsig"
)

// SecretSize is the length of a sealed secret in bytes.
const SecretSize = 32

// Passphrase returns the keyslot passphrase that belongs to a sealed secret: its
// base64 form, as systemd-cryptenroll uses it. The caller wipes both.
func Passphrase(secret []byte) []byte {
	out := make([]byte, base64.StdEncoding.EncodedLen(len(secret)))
	base64.StdEncoding.Encode(out, secret)
	return out
}

// blobParts is what lies in tpm2-blob.
type blobParts struct {
	private, public []byte // without their lengths
	seed            []byte // of an object sealed offline; else nil
}

func splitBlob(blob []byte) (blobParts, error) {
	r := reader{rest: blob}
	parts := blobParts{private: r.sized(), public: r.sized()}
	if !r.bad && len(r.rest) > 0 {
		parts.seed = r.sized()
	}
	if r.bad || len(r.rest) > 0 || len(parts.private) == 0 || len(parts.public) == 0 {
		return blobParts{}, errors.New("is not a private and a public area")
	}
	return parts, nil
}

func joinBlob(private, public []byte) []byte {
	return appendSized(appendSized(nil, private), public)
}

// sealedAttributes is 0x12: fixedTPM, fixedParent. userWithAuth stays clear, or
// an empty password would unseal whatever the policy; noDA stays clear, as
// systemd does it, so that PINs cannot be tried without limit.
func sealedAttributes() tpm2.TPMAObject {
	return tpm2.TPMAObject{FixedTPM: true, FixedParent: true}
}

// checkSealed returns the public area of a sealed object if it is one of ours:
// a keyed hash, attributes 0x12 or 0x412 (with noDA), under the token's policy.
func checkSealed(area []byte, policy [32]byte) (tpm2.TPMTPublic, error) {
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](area)
	if err != nil {
		return tpm2.TPMTPublic{}, fmt.Errorf("%w: public area: %w", ErrToken, err)
	}
	if !bytes.Equal(tpm2.Marshal(*pub), area) {
		return tpm2.TPMTPublic{}, fmt.Errorf("%w: public area is followed by something", ErrToken)
	}
	attrs := pub.ObjectAttributes
	attrs.NoDA = false
	switch {
	case pub.Type != tpm2.TPMAlgKeyedHash || pub.NameAlg != tpm2.TPMAlgSHA256:
		return tpm2.TPMTPublic{}, fmt.Errorf("%w: it holds no sealed data", ErrToken)
	case attrs != sealedAttributes():
		return tpm2.TPMTPublic{}, fmt.Errorf("%w: sealed object has forbidden attributes", ErrToken)
	case !bytes.Equal(pub.AuthPolicy.Buffer, policy[:]):
		return tpm2.TPMTPublic{}, fmt.Errorf("%w: sealed object has another policy than the token says", ErrToken)
	}
	return *pub, nil
}

// Seal seals secret (SecretSize bytes) under policy and returns the token; its
// Keyslots are the caller's to set. pin is used when the policy asks for one.
// The SRK is created if missing. The secret travels encrypted.
// Errors: ErrPolicy, ErrPIN, ErrSRK, ErrBank.
func (t *TPM) Seal(ctx context.Context, policy Policy, secret, pin []byte) (Token, error) {
	return t.seal(ctx, policy, secret, pin, inFull)
}

func (t *TPM) seal(ctx context.Context, policy Policy, secret, pin []byte, form exponent) (Token, error) {
	if len(secret) != SecretSize {
		return Token{}, fmt.Errorf("cannot seal a secret of %d bytes", len(secret))
	}
	if err := policy.Check(); err != nil {
		return Token{}, err
	}
	if policy.PIN != (len(pin) > 0) {
		return Token{}, fmt.Errorf("%w: PIN and policy do not agree", ErrPIN)
	}
	srk, err := t.EnsureSRK(ctx)
	if err != nil {
		return Token{}, err
	}
	token, err := t.plan(ctx, policy, form)
	if err != nil {
		return Token{}, err
	}
	token.Primary, token.SRK = srk.Algorithm, srk.Reference()
	auth, err := newAuth(&token, pin)
	if err != nil {
		return Token{}, err
	}
	defer clear(auth)
	b := t.bind(ctx)
	err = b.retrying(false, func() error {
		s, err := b.startSession(tpm2.TPMSEHMAC, srk, nil)
		if err == nil {
			token.Blob, err = b.create(s, srk, token.Policy, secret, auth)
			err = errors.Join(err, s.end(b))
		}
		return err
	})
	if err != nil {
		return Token{}, err
	}
	return token, nil
}

// plan chooses the bank and computes the policy digest.
func (t *TPM) plan(ctx context.Context, policy Policy, form exponent) (Token, error) {
	if policy.Bank == "" {
		bank, err := t.bestBank(ctx)
		if err != nil {
			return Token{}, err
		}
		policy.Bank = bank
	}
	hash, err := policy.Bank.Hash()
	if err != nil {
		return Token{}, err
	}
	values := make(Values)
	var missing []int
	for _, pcr := range policy.PCRs {
		switch v, ok := policy.Values[pcr]; {
		case !ok:
			missing = append(missing, pcr)
		case v == nil:
			values[pcr] = make([]byte, hash.Size())
		default:
			values[pcr] = v
		}
	}
	if len(missing) > 0 {
		now, err := t.ReadPCRs(ctx, policy.Bank, missing)
		if err != nil {
			return Token{}, err
		}
		for pcr, v := range now {
			values[pcr] = v
		}
	}
	digest, err := policy.digest(values, form)
	if err != nil {
		return Token{}, err
	}
	return Token{
		PCRs: slices.Sorted(slices.Values(policy.PCRs)), PubPCRs: slices.Sorted(slices.Values(policy.SignedPCRs)),
		PubKey: policy.PublicKey, Bank: policy.Bank, Policy: digest, PIN: policy.PIN, Shards: 1,
	}, nil
}

// create makes the sealed object in a session that encrypts the sensitive area.
func (b bound) create(s *session, srk SRK, policy [32]byte, secret, auth []byte) ([]byte, error) {
	params := createParams(auth, secret, tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: sealedAttributes(), AuthPolicy: tpm2.TPM2BDigest{Buffer: policy[:]},
	})
	defer clear(params) // where they were not encrypted
	rsp, err := b.run(command{
		code: tpm2.TPMCCCreate, handles: []tpm2.NamedHandle{srk.named()}, auth: s.encrypts(true, true), params: params,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot seal secret: %w", classify(err))
	}
	private, area := rsp.sized(), rsp.sized()
	rsp.creation()
	if err := rsp.end(); err != nil {
		return nil, fmt.Errorf("cannot seal secret: %w", err)
	}
	if _, err := checkSealed(area, policy); err != nil {
		return nil, fmt.Errorf("cannot seal secret: %w", err)
	}
	return joinBlob(private, area), nil
}

// Unseal returns the secret of a token; the caller wipes it. sigs holds the PCR
// signatures of this image (nil if the token needs none), pin the PIN. Whether a
// token may be used without asking is the caller's to decide first: Capped.
// Errors: ErrToken, ErrOtherTPM, ErrPCRsChanged, ErrPolicy, ErrPIN, ErrLockedOut.
func (t *TPM) Unseal(ctx context.Context, token Token, sigs pcrsig.File, pin []byte) ([]byte, error) {
	if token.PIN && len(pin) == 0 {
		return nil, fmt.Errorf("%w: it needs one", ErrPIN)
	}
	return t.unseal(ctx, token, sigs, pin)
}

// unseal is Unseal; without the PIN that a token needs it stops where that counts.
func (t *TPM) unseal(ctx context.Context, token Token, sigs pcrsig.File, pin []byte) ([]byte, error) {
	if err := token.Usable(); err != nil {
		return nil, err
	}
	parts, err := splitBlob(token.Blob)
	if err != nil {
		return nil, fmt.Errorf("%w: blob %w", ErrToken, err)
	}
	public, err := checkSealed(parts.public, token.Policy)
	if err != nil {
		return nil, err
	}
	b := t.bind(ctx)
	srk, release, err := b.primaryFor(token)
	if err != nil {
		return nil, err
	}
	var secret []byte
	err = b.retrying(token.PIN, func() (err error) {
		secret, err = b.loadAndUnseal(srk, token, parts.private, public, sigs, pin)
		return err
	})
	if err := errors.Join(err, release()); err != nil {
		clear(secret)
		return nil, err
	}
	return secret, nil
}

func (b bound) loadAndUnseal(srk SRK, token Token, private []byte, public tpm2.TPMTPublic, sigs pcrsig.File, pin []byte) ([]byte, error) {
	object, err := b.load(srk, private, public)
	if err != nil {
		return nil, err
	}
	auth, err := authValue(token, pin)
	if err != nil {
		return nil, errors.Join(err, b.flush(object.Handle))
	}
	defer clear(auth)
	secret, err := b.unsealOnce(srk, object, token, sigs, inFull, auth)
	if token.PubKey != nil && errors.Is(err, errPolicyDigest) {
		if other, otherErr := b.unsealOnce(srk, object, token, sigs, short, auth); otherErr == nil {
			secret, err = other, nil
		}
	}
	if err := errors.Join(err, b.flush(object.Handle)); err != nil {
		clear(secret)
		return nil, err
	}
	return secret, nil
}

// load brings the sealed object into the TPM. Only the TPM that made it can
// check its integrity, so a failure of that means another TPM (or a damaged
// token, which cannot be told apart).
func (b bound) load(srk SRK, private []byte, public tpm2.TPMTPublic) (tpm2.NamedHandle, error) {
	s, err := b.startSession(tpm2.TPMSEHMAC, srk, nil)
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	rsp, err := b.run(command{
		code: tpm2.TPMCCLoad, handles: []tpm2.NamedHandle{srk.named()}, auth: s.encrypts(true, false), makes: true,
		params: appendSized(appendSized(nil, private), tpm2.Marshal(public)),
	})
	var object tpm2.NamedHandle
	if err == nil {
		object, err = b.loaded(rsp)
	}
	switch {
	case errors.Is(err, tpm2.TPMRCIntegrity), errors.Is(err, tpm2.TPMRCSize), errors.Is(err, tpm2.TPMRCSensitive):
		err = fmt.Errorf("cannot load sealed object: %w (or damaged): %w", ErrOtherTPM, err)
	case err != nil:
		err = fmt.Errorf("cannot load sealed object: %w", classify(err))
	}
	if endErr := s.end(b); err == nil && endErr != nil {
		return tpm2.NamedHandle{}, errors.Join(endErr, b.flush(object.Handle))
	}
	return object, err
}

func (b bound) unsealOnce(srk SRK, object tpm2.NamedHandle, token Token, sigs pcrsig.File, form exponent, auth []byte) ([]byte, error) {
	s, err := b.startSession(tpm2.TPMSEPolicy, srk, auth)
	if err != nil {
		return nil, err
	}
	var secret []byte
	if err = b.satisfy(s, token, sigs, form); err == nil && (!token.PIN || auth != nil) {
		secret, err = b.unsealIn(s, object, token)
	}
	if err := errors.Join(err, s.end(b)); err != nil {
		clear(secret)
		return nil, err
	}
	return secret, nil
}

func (b bound) unsealIn(s *session, object tpm2.NamedHandle, token Token) ([]byte, error) {
	rsp, err := b.run(command{
		code: tpm2.TPMCCUnseal, handles: []tpm2.NamedHandle{object}, auth: s.encrypts(false, true),
	})
	switch {
	case errors.Is(err, tpm2.TPMRCPolicyFail):
		return nil, fmt.Errorf("cannot unseal secret: %w: %w", &PCRsChangedError{PCRs: token.AllPCRs(), Bank: token.Bank}, err)
	case err != nil:
		return nil, fmt.Errorf("cannot unseal secret: %w", classify(err))
	}
	secret := rsp.sized()
	if rsp.end() != nil || len(secret) != SecretSize {
		return nil, fmt.Errorf("%w: sealed secret has %d bytes", ErrToken, len(secret))
	}
	return bytes.Clone(secret), nil // the session wipes its own
}

// Stretching of a PIN by systemd (PBKDF2_HMAC_SHA256_ITERATIONS).
const (
	pinIterations = 10000
	pinSaltSize   = 32
)

// newAuth gives a new token its PIN salt and returns the authorization value.
func newAuth(token *Token, pin []byte) ([]byte, error) {
	if !token.PIN {
		return nil, nil
	}
	token.Salt = make([]byte, pinSaltSize)
	if _, err := rand.Read(token.Salt); err != nil {
		return nil, fmt.Errorf("cannot make PIN salt: %w", err)
	}
	return authValue(*token, pin)
}

// authValue is the authorization value of a token's object: SHA-256 of the PIN,
// or with a salt of the base64 form of the stretched PIN, without trailing zero
// bytes (the TPM drops those). Nil without a PIN. The caller wipes it.
func authValue(token Token, pin []byte) ([]byte, error) {
	if !token.PIN || pin == nil {
		return nil, nil
	}
	text := pin
	if token.Salt != nil {
		stretched := pbkdf2SHA256(pin, token.Salt)
		text = Passphrase(stretched)
		clear(stretched)
		defer clear(text)
	}
	sum := sha256.Sum256(text)
	return bytes.TrimRight(sum[:], "\x00"), nil
}

// pbkdf2SHA256 is PBKDF2 (RFC 8018, 5.2) for one block of output. The standard
// library's takes the password as a string, which nobody can wipe.
func pbkdf2SHA256(password, salt []byte) []byte {
	mac := hmac.New(sha256.New, password)
	mac.Write(salt)
	mac.Write([]byte{0, 0, 0, 1})
	u := mac.Sum(nil)
	out := bytes.Clone(u)
	for range pinIterations - 1 {
		mac.Reset()
		mac.Write(u)
		u = mac.Sum(u[:0])
		for i := range out {
			out[i] ^= u[i]
		}
	}
	clear(u)
	return out
}
