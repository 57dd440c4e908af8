package tpm

import (
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"sealroot/state/tpm/pcrsig"
)

// Values are PCR values of one bank.
type Values = pcrsig.Values

// Policy says when the TPM gives the secret back. The parts are and-ed.
type Policy struct {
	// SignedPCRs must have values signed by PublicKey; an update brings new
	// signatures and needs no enrolment. Usually 11, or empty.
	SignedPCRs []int
	// PublicKey is the PEM text of an RSA public key; nil without SignedPCRs.
	PublicKey []byte
	// PCRs must have fixed values: those at sealing, or Values.
	PCRs []int
	// Values overrides the values of some or all of PCRs, for sealing to the
	// PCRs of a later boot. A nil value stands for zero: Values{15: nil}.
	Values Values
	// Bank holds all of these PCRs. Empty lets Seal take the strongest of
	// sha256, sha384 and sha512 that systemd would take: sha256 if active.
	Bank Bank
	// PIN asks for an authorization value too.
	PIN bool
}

// Capped is Token.Capped of the tokens that the policy makes.
func (p Policy) Capped() bool {
	return Token{PubPCRs: p.SignedPCRs, PCRs: p.PCRs}.Capped()
}

// Check returns nil for a policy that can be sealed to, else an ErrPolicy: PCR
// numbers, key and PCRs not together, or signed PCRs without a fixed one that the
// firmware measures, which bind to nothing: under any system that is not a UKI
// PCRs 11 and 15 are zero, and whoever boots one can replay the extends.
func (p Policy) Check() error {
	for _, list := range [][]int{p.SignedPCRs, p.PCRs} {
		if _, err := pcrsig.Selection(pcrsig.SHA256, list); err != nil {
			return fmt.Errorf("%w: %w", ErrPolicy, err)
		}
	}
	if (len(p.SignedPCRs) > 0) != (p.PublicKey != nil) {
		return fmt.Errorf("%w: public key and signed PCRs do not come together", ErrPolicy)
	}
	measured := func(pcr int) bool { return pcr != 11 && pcr != 15 }
	if len(p.SignedPCRs) > 0 && !slices.ContainsFunc(p.PCRs, measured) {
		return fmt.Errorf("%w: signed PCRs without a fixed one of the firmware bind to nothing", ErrPolicy)
	}
	if p.PublicKey != nil {
		if _, err := pcrsig.ParsePublicKey(p.PublicKey); err != nil {
			return fmt.Errorf("%w: %w", ErrPolicy, err)
		}
	}
	return nil
}

// Digest returns the policy digest of a token for fixed PCRs with the given values.
// The order is systemd's: PolicyAuthorize, PolicyPCR, PolicyAuthValue.
func (p Policy) Digest(values Values) ([32]byte, error) { return p.digest(values, inFull) }

// Fits tells whether a token with this digest gives its secret for fixed PCRs with the
// given values, whichever form its policy key has.
func (p Policy) Fits(digest [32]byte, values Values) (bool, error) {
	d, err := p.digest(values, inFull)
	if err == nil && d != digest {
		d, err = p.digest(values, short)
	}
	return err == nil && d == digest, err
}

// exponent is how 65537 is written in the public area of a policy key, whose Name is
// part of the policy. systemd writes it in full, but for 255 to 255.2, which wrote the
// TPM's default, 0 (systemd pull request 30971). A token does not say which.
type exponent bool

const (
	inFull exponent = true  // our tokens
	short  exponent = false // our records, and tokens of our earlier versions
)

func (p Policy) digest(values Values, form exponent) ([32]byte, error) {
	var d [32]byte
	if p.PublicKey != nil {
		key, err := pcrsig.ParsePublicKey(p.PublicKey)
		if err != nil {
			return [32]byte{}, fmt.Errorf("%w: %w", ErrPolicy, err)
		}
		if d, err = policyAuthorize(key, form); err != nil {
			return [32]byte{}, err
		}
	}
	if len(p.PCRs) > 0 {
		var err error
		if d, err = pcrsig.PolicyPCR(d, p.Bank, p.PCRs, values); err != nil {
			return [32]byte{}, fmt.Errorf("%w: %w", ErrPolicy, err)
		}
	}
	if p.PIN {
		d = extendPolicy(d, tpm2.TPMCCPolicyAuthValue, nil)
	}
	return d, nil
}

// policyAuthorize is the digest after TPM2_PolicyAuthorize, which starts from
// zero whatever was before and always adds the (here empty) policyRef in a
// second hash (part 3, 23.16).
func policyAuthorize(key *rsa.PublicKey, form exponent) ([32]byte, error) {
	pub := policyKey(key, form)
	name, err := tpm2.ObjectName(&pub)
	if err != nil {
		return [32]byte{}, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	d := extendPolicy([32]byte{}, tpm2.TPMCCPolicyAuthorize, name.Buffer)
	return sha256.Sum256(d[:]), nil
}

func extendPolicy(d [32]byte, cc tpm2.TPMCC, arg []byte) [32]byte {
	buf := binary.BigEndian.AppendUint32(slices.Clone(d[:]), uint32(cc))
	return sha256.Sum256(append(buf, arg...))
}

// policyKey is the public area under which systemd loads a policy key.
func policyKey(key *rsa.PublicKey, form exponent) tpm2.TPMTPublic {
	e := uint32(key.E)
	if e == 65537 && form == short {
		e = 0
	}
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{UserWithAuth: true, Decrypt: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			KeyBits: tpm2.TPMKeyBits(key.N.BitLen()), Exponent: e,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()}),
	}
}

// errPolicyDigest: every part of the policy could be executed, the result differs.
var errPolicyDigest = errors.New("cannot meet TPM policy")

// satisfy executes a token's policy in a policy session.
func (b bound) satisfy(s *session, t Token, sigs pcrsig.File, form exponent) error {
	if t.PubKey != nil {
		if err := b.authorizePCRs(s, t, sigs, form); err != nil {
			return err
		}
	}
	if len(t.PCRs) > 0 {
		if err := b.policyPCR(s, t.Bank, t.PCRs); err != nil {
			return err
		}
	}
	if t.PIN {
		if err := b.policy(s, tpm2.TPMCCPolicyAuthValue, nil); err != nil {
			return fmt.Errorf("cannot ask for PIN in policy: %w", classify(err))
		}
	}
	digest, err := b.policyDigest(s)
	if err != nil {
		return err
	}
	if digest != t.Policy && len(t.PCRs) == 0 {
		return fmt.Errorf("%w: %w: its digest is another", errPolicyDigest, ErrPolicy)
	}
	if digest != t.Policy {
		// The signed part is met when we are here, so the fixed PCRs differ.
		return fmt.Errorf("%w: %w", errPolicyDigest, &PCRsChangedError{PCRs: b.changed(t), Bank: t.Bank})
	}
	return nil
}

// changed returns the fixed PCRs of a token that come into question when its
// policy is not met: a single one where the policy would be met with that one at
// zero, as PCR 12 and 15 are before something is measured into them.
func (b bound) changed(t Token) []int {
	values, err := b.t.ReadPCRs(b.ctx, t.Bank, t.PCRs)
	if err != nil {
		return t.PCRs
	}
	policy := Policy{PublicKey: t.PubKey, PCRs: t.PCRs, PIN: t.PIN, Bank: t.Bank}
	for pcr, now := range values {
		values[pcr] = make([]byte, len(now))
		if fits, _ := policy.Fits(t.Policy, values); fits {
			return []int{pcr}
		}
		values[pcr] = now
	}
	return t.PCRs
}

func (b bound) policyPCR(s *session, bank Bank, pcrs []int) error {
	sel, err := pcrsig.Selection(bank, pcrs)
	if err != nil {
		return err
	}
	// Without a digest of the values: those of now.
	if err := b.policy(s, tpm2.TPMCCPolicyPCR, append([]byte{0, 0}, sel...)); err != nil {
		return fmt.Errorf("cannot bind policy to PCRs %s: %w", joinInts(pcrs), classify(err))
	}
	return nil
}

// policy executes a command that makes the policy of a session.
func (b bound) policy(s *session, code tpm2.TPMCC, params []byte) error {
	return b.do(command{code: code, handles: []tpm2.NamedHandle{byHandle(s.handle)}, params: params})
}

func (b bound) policyDigest(s *session) ([32]byte, error) {
	rsp, err := b.run(command{code: tpm2.TPMCCPolicyGetDigest, handles: []tpm2.NamedHandle{byHandle(s.handle)}})
	if err != nil {
		return [32]byte{}, fmt.Errorf("cannot read policy digest: %w", classify(err))
	}
	digest := rsp.sized()
	if rsp.end() != nil || len(digest) != 32 {
		return [32]byte{}, fmt.Errorf("cannot read policy digest: %w: %d bytes", errResponse, len(digest))
	}
	return [32]byte(digest), nil
}

// authorizePCRs brings the signed PCRs into the policy: the present values, a
// signature of them by the token's key, and the TPM's own check of it.
func (b bound) authorizePCRs(s *session, t Token, sigs pcrsig.File, form exponent) error {
	key, err := pcrsig.ParsePublicKey(t.PubKey)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrToken, err)
	}
	if err := b.policyPCR(s, t.Bank, t.PubPCRs); err != nil {
		return err
	}
	now, err := b.policyDigest(s)
	if err != nil {
		return err
	}
	sig, ok := sigs.Find(t.Bank, t.PubPCRs, key, now)
	if !ok && !sigs.Has(t.Bank, t.PubPCRs, key) {
		return fmt.Errorf("%w: this image holds no signature by the policy key of the token", ErrPolicy)
	}
	if !ok {
		return fmt.Errorf("cannot find a signature for the present PCRs: %w", &PCRsChangedError{PCRs: t.PubPCRs, Bank: t.Bank})
	}
	loaded, err := b.loadExternal(policyKey(key, form))
	if err != nil {
		return fmt.Errorf("cannot load policy key: %w", classify(err))
	}
	err = b.authorize(s, loaded, now, sig)
	return errors.Join(err, b.flush(loaded.Handle))
}

// loadExternal loads a public key into the owner hierarchy.
func (b bound) loadExternal(public tpm2.TPMTPublic) (tpm2.NamedHandle, error) {
	params := appendSized([]byte{0, 0}, tpm2.Marshal(public)) // first: no private area
	params = binary.BigEndian.AppendUint32(params, uint32(tpm2.TPMRHOwner))
	rsp, err := b.run(command{code: tpm2.TPMCCLoadExternal, params: params, makes: true})
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	return b.loaded(rsp)
}

// loaded is the object that a response names.
func (b bound) loaded(rsp response) (tpm2.NamedHandle, error) {
	name := rsp.sized()
	if err := rsp.end(); err != nil {
		return tpm2.NamedHandle{}, errors.Join(err, b.flush(rsp.handle))
	}
	return byName(uint32(rsp.handle), name), nil
}

func (b bound) authorize(s *session, key tpm2.NamedHandle, approved [32]byte, sig []byte) error {
	digest := sha256.Sum256(approved[:])
	params := appendSized(nil, digest[:])
	params = binary.BigEndian.AppendUint16(params, uint16(tpm2.TPMAlgRSASSA))
	params = binary.BigEndian.AppendUint16(params, uint16(tpm2.TPMAlgSHA256))
	params = appendSized(params, sig)
	rsp, err := b.run(command{code: tpm2.TPMCCVerifySignature, handles: []tpm2.NamedHandle{key}, params: params})
	if err != nil {
		return fmt.Errorf("%w: signature of the PCRs does not verify: %w", ErrPolicy, classify(err))
	}
	ticket := rsp.ticket()
	if err := rsp.end(); err != nil {
		return fmt.Errorf("cannot verify signature of the PCRs: %w", err)
	}
	params = append(appendSized(nil, approved[:]), 0, 0) // policyRef
	params = appendSized(params, key.Name.Buffer)
	if err := b.policy(s, tpm2.TPMCCPolicyAuthorize, append(params, ticket...)); err != nil {
		return fmt.Errorf("cannot authorize policy: %w", classify(err))
	}
	return nil
}
