package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// SRKHandle is where the storage root key is kept (TCG "TPM 2.0 Provisioning
// Guidance" 7.8.1; systemd 254 and later use the same).
const SRKHandle = 0x81000001

// SRK is the storage root key of a TPM: the parent of the sealed object and the
// key with which sessions are salted.
type SRK struct {
	Handle    uint32
	Name      []byte // TPM Name: algorithm and hash of the public area
	Algorithm string // "ecc" or "rsa"
	public    tpm2.TPMTPublic
}

// Attributes of primary keys as in TPMA_OBJECT: fixedTPM, fixedParent,
// sensitiveDataOrigin, userWithAuth, restricted, decrypt; the SRK adds noDA, so
// that power cuts during its use never count towards a lockout.
func primaryAttributes(noDA bool) tpm2.TPMAObject {
	return tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
		NoDA: noDA, Restricted: true, Decrypt: true,
	}
}

// eccPrimary is template L-2 of the TCG "EK Credential Profile" B.4, with noDA:
// the SRK; without it: the transient primary of systemd 248 to 253.
func eccPrimary(noDA bool) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: primaryAttributes(noDA),
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: aes128CFB(), CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
}

// rsaPrimary is template L-1 without unique bytes, as systemd creates it on TPMs
// that have no ECC.
func rsaPrimary(noDA bool) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: primaryAttributes(noDA),
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			Symmetric: aes128CFB(), KeyBits: 2048,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{}),
	}
}

func aes128CFB() tpm2.TPMTSymDefObject {
	return tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES,
		KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
		Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
}

// EnsureSRK returns the SRK, which it creates (ECC P-256) and makes persistent
// when there is none. It needs the owner hierarchy's authorization to be empty
// for that. Errors: ErrSRK when the handle holds an unsuitable object.
func (t *TPM) EnsureSRK(ctx context.Context) (SRK, error) {
	b := t.bind(ctx)
	srk, err := b.readSRK()
	if !errors.Is(err, errNoObject) {
		return srk, err
	}
	primary, err := b.createPrimary(eccPrimary(true))
	if err != nil {
		return SRK{}, err
	}
	err = b.do(command{
		code: tpm2.TPMCCEvictControl, handles: []tpm2.NamedHandle{owner(), primary.named()}, auth: emptyPassword(),
		params: binary.BigEndian.AppendUint32(nil, SRKHandle), already: tpm2.TPMRCNVDefined,
	})
	if err != nil {
		err = fmt.Errorf("cannot make SRK persistent at %#x: %w", uint32(SRKHandle), classify(err))
	}
	if err := errors.Join(err, b.flush(tpm2.TPMHandle(primary.Handle))); err != nil {
		return SRK{}, err
	}
	return b.readSRK()
}

// ReadSRK returns the SRK, or an error that wraps ErrOtherTPM when there is none:
// nothing can have been sealed to it here.
func (t *TPM) ReadSRK(ctx context.Context) (SRK, error) { return t.bind(ctx).readSRK() }

var errNoObject = errors.New("no object at the handle")

func (b bound) readSRK() (SRK, error) {
	rsp, err := b.run(command{code: tpm2.TPMCCReadPublic, handles: []tpm2.NamedHandle{byHandle(SRKHandle)}})
	if errors.Is(err, tpm2.TPMRCHandle) {
		return SRK{}, fmt.Errorf("cannot read SRK at %#x: %w: %w", uint32(SRKHandle), ErrOtherTPM, errNoObject)
	}
	if err != nil {
		return SRK{}, fmt.Errorf("cannot read SRK at %#x: %w", uint32(SRKHandle), classify(err))
	}
	area, name, _ := rsp.sized(), rsp.sized(), rsp.sized() // the last: qualified Name
	if err := rsp.end(); err != nil {
		return SRK{}, fmt.Errorf("cannot read SRK at %#x: %w", uint32(SRKHandle), err)
	}
	return newSRK(SRKHandle, area, name)
}

// newSRK checks that a public area is fit to salt sessions and to be a parent,
// and that the TPM's Name is really the Name of it.
func newSRK(handle uint32, area, name []byte) (SRK, error) {
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](area)
	if err != nil {
		return SRK{}, fmt.Errorf("%w: public area: %w", ErrSRK, err)
	}
	srk := SRK{Handle: handle, Name: name, public: *pub}
	switch pub.Type {
	case tpm2.TPMAlgECC:
		srk.Algorithm = "ecc"
	case tpm2.TPMAlgRSA:
		srk.Algorithm = "rsa"
	default:
		return SRK{}, fmt.Errorf("%w: object at %#x is neither ECC nor RSA", ErrSRK, handle)
	}
	attr := pub.ObjectAttributes
	attr.NoDA = false
	if pub.NameAlg != tpm2.TPMAlgSHA256 || attr != primaryAttributes(false) {
		return SRK{}, fmt.Errorf("%w: object at %#x has other attributes than a storage key", ErrSRK, handle)
	}
	want, err := tpm2.ObjectName(pub)
	if err != nil {
		return SRK{}, fmt.Errorf("%w: %w", ErrSRK, err)
	}
	if !bytes.Equal(want.Buffer, name) {
		return SRK{}, fmt.Errorf("%w: its Name is not that of its public area", ErrSRK)
	}
	return srk, nil
}

func (b bound) createPrimary(template tpm2.TPMTPublic) (SRK, error) {
	rsp, err := b.run(command{
		code: tpm2.TPMCCCreatePrimary, handles: []tpm2.NamedHandle{owner()}, auth: emptyPassword(), makes: true,
		params: createParams(nil, nil, template),
	})
	if err != nil {
		return SRK{}, fmt.Errorf("cannot create primary key: %w", classify(err))
	}
	area := rsp.sized()
	rsp.creation()
	srk, err := newSRK(uint32(rsp.handle), area, rsp.sized())
	if err = errors.Join(err, rsp.end()); err != nil {
		return SRK{}, errors.Join(err, b.flush(rsp.handle))
	}
	return srk, nil
}

// createParams are the parameters of TPM2_Create and TPM2_CreatePrimary, without
// outsideInfo and creation PCRs. They hold auth and data in the one buffer.
func createParams(auth, data []byte, public tpm2.TPMTPublic) []byte {
	area := tpm2.Marshal(public)
	out := make([]byte, 0, 2+2+len(auth)+2+len(data)+2+len(area)+2+4)
	out = binary.BigEndian.AppendUint16(out, uint16(2+len(auth)+2+len(data)))
	out = appendSized(appendSized(out, auth), data)
	out = appendSized(out, area)
	return append(out, 0, 0, 0, 0, 0, 0)
}

// creation takes creation data, their hash and ticket.
func (r *reader) creation() {
	r.sized()
	r.sized()
	r.ticket()
}

// ticket takes a ticket of any kind: tag, hierarchy, digest.
func (r *reader) ticket() []byte {
	from := r.rest
	r.take(2 + 4)
	r.sized()
	return from[:len(from)-len(r.rest)]
}

// owner is the owner hierarchy, whose password is taken to be empty. An owner who
// has set one has taken the TPM; sealroot then reads, but cannot provision.
func owner() tpm2.NamedHandle { return byHandle(tpm2.TPMRHOwner) }

func (s SRK) named() tpm2.NamedHandle { return byName(s.Handle, s.Name) }

// Reference returns the SRK as tokens hold it in tpm2_srk: handle, Name and
// public area as tpm2-tss serialises them (ESYS_TR: IESYS_RESOURCE, of type key).
func (s SRK) Reference() []byte {
	area := tpm2.Marshal(s.public)
	ref := binary.BigEndian.AppendUint32(nil, s.Handle)
	ref = appendSized(ref, s.Name)
	ref = binary.BigEndian.AppendUint32(ref, esysKeyResource)
	return appendSized(ref, area)
}

const esysKeyResource = 1 // IESYSC_KEY_RSRC of tpm2-tss

// parseReference reads what Reference writes. It returns only handle and Name:
// the public area is taken from the TPM and must have that Name.
func parseReference(ref []byte) (handle uint32, name []byte, err error) {
	r := reader{rest: ref}
	handle = r.uint32()
	name = r.sized()
	kind := r.uint32()
	r.sized()
	if r.bad || len(r.rest) != 0 || kind != esysKeyResource {
		return 0, nil, fmt.Errorf("%w: reference to the SRK is damaged", ErrToken)
	}
	if handle>>24 != 0x81 {
		return 0, nil, fmt.Errorf("%w: reference to the SRK names handle %#x, which is not persistent", ErrToken, handle)
	}
	if len(name) != 2+32 || binary.BigEndian.Uint16(name) != uint16(tpm2.TPMAlgSHA256) {
		return 0, nil, fmt.Errorf("%w: reference to the SRK has a Name of %d bytes", ErrToken, len(name))
	}
	return handle, name, nil
}

// StorageKey is the Name of the storage root key that the token was sealed to, nil
// where it names none: then the primary key is the one that the TPM, or whoever
// answers for it, says it is.
func (t Token) StorageKey() []byte {
	_, name, err := parseReference(t.SRK)
	if err != nil {
		return nil
	}
	return name
}

// primaryFor returns the primary key that a token was sealed to and a function
// that frees it. With tpm2_srk it is the persistent one, whose Name must be that
// in the token before anything is sent to it; without, it is the transient
// primary of systemd 248 to 253.
func (b bound) primaryFor(t Token) (SRK, func() error, error) {
	nothing := func() error { return nil }
	if t.SRK == nil {
		template := eccPrimary(false)
		if t.Primary == "rsa" {
			template = rsaPrimary(false)
		}
		srk, err := b.createPrimary(template)
		if err != nil {
			return SRK{}, nil, err
		}
		return srk, func() error { return b.flush(tpm2.TPMHandle(srk.Handle)) }, nil
	}
	handle, name, err := parseReference(t.SRK)
	if err != nil {
		return SRK{}, nil, err
	}
	if handle != SRKHandle {
		return SRK{}, nil, fmt.Errorf("%w: its SRK is at handle %#x in place of %#x", ErrToken, handle, uint32(SRKHandle))
	}
	srk, err := b.readSRK()
	if err != nil {
		return SRK{}, nil, err
	}
	if !bytes.Equal(srk.Name, name) {
		return SRK{}, nil, fmt.Errorf("%w: the SRK has another Name than in the token", ErrOtherTPM)
	}
	return srk, nothing, nil
}
