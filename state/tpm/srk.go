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
	_, err = tpm2.EvictControl{
		Auth:             ownerAuth(),
		ObjectHandle:     &tpm2.NamedHandle{Handle: tpm2.TPMHandle(primary.Handle), Name: tpm2.TPM2BName{Buffer: primary.Name}},
		PersistentHandle: SRKHandle,
	}.Execute(b)
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
	rsp, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(SRKHandle)}.Execute(b)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return SRK{}, fmt.Errorf("cannot read SRK at %#x: %w: %w", uint32(SRKHandle), ErrOtherTPM, errNoObject)
	}
	if err != nil {
		return SRK{}, fmt.Errorf("cannot read SRK at %#x: %w", uint32(SRKHandle), classify(err))
	}
	return newSRK(SRKHandle, rsp.OutPublic.Bytes(), rsp.Name.Buffer)
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
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: ownerAuth(), InPublic: tpm2.New2B(template)}.Execute(b)
	if err != nil {
		return SRK{}, fmt.Errorf("cannot create primary key: %w", classify(err))
	}
	srk, err := newSRK(uint32(rsp.ObjectHandle), rsp.OutPublic.Bytes(), rsp.Name.Buffer)
	if err != nil {
		return SRK{}, errors.Join(err, b.flush(rsp.ObjectHandle))
	}
	return srk, nil
}

// ownerAuth is the owner hierarchy with an empty password. An owner who has set
// one has taken the TPM; sealroot then reads, but cannot provision.
func ownerAuth() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
}

// Reference returns the SRK as tokens hold it in tpm2_srk: handle, Name and
// public area as tpm2-tss serialises them (ESYS_TR: IESYS_RESOURCE, of type key).
func (s SRK) Reference() []byte {
	area := tpm2.Marshal(s.public)
	ref := binary.BigEndian.AppendUint32(nil, s.Handle)
	ref = append(binary.BigEndian.AppendUint16(ref, uint16(len(s.Name))), s.Name...)
	ref = binary.BigEndian.AppendUint32(ref, esysKeyResource)
	return append(binary.BigEndian.AppendUint16(ref, uint16(len(area))), area...)
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

// reader takes big-endian fields off a byte slice; after the first field that is
// too short everything reads as zero and bad is set.
type reader struct {
	rest []byte
	bad  bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.rest) {
		r.bad = true
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// sized takes a TPM2B: two bytes of length and as many bytes.
func (r *reader) sized() []byte {
	b := r.take(2)
	if b == nil {
		return nil
	}
	return r.take(int(binary.BigEndian.Uint16(b)))
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
