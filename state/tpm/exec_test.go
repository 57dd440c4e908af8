package tpm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
)

// exchange is a command and what the TPM answered.
type exchange struct{ command, response []byte }

func (e exchange) code() tpm2.TPMCC { return tpm2.TPMCC(binary.BigEndian.Uint32(e.command[6:])) }

// first returns the first exchange of a command.
func first(t *testing.T, trace []exchange, code tpm2.TPMCC) exchange {
	t.Helper()
	for _, e := range trace {
		if e.code() == code {
			return e
		}
	}
	t.Fatalf("command %#x was not sent", uint32(code))
	return exchange{}
}

// takes stands in for a TPM: it keeps the command that go-tpm sends.
type takes struct{ command []byte }

var errTaken = errors.New("command taken")

func (k *takes) Send(command []byte) ([]byte, error) {
	k.command = bytes.Clone(command)
	return nil, errTaken
}

// sized returns the TPM2B at the beginning of b and what follows it.
func sized(b []byte) (field, rest []byte) {
	n := 2 + int(binary.BigEndian.Uint16(b))
	return b[2:n], b[n:]
}

// Every command without a salted session has the bytes that go-tpm's Execute sends
// for it. (Of those with one the software TPM is the judge, in the other tests.)
func TestCommandsAreThoseOfGoTPM(t *testing.T) {
	m, chip := machine(t)
	key, pub := newKey(t)
	sigs, secret := sign(t, key), newSecret(t)
	token := seal(t, chip, tpm.Policy{PCRs: []int{7}, SignedPCRs: []int{11}, PublicKey: pub, PIN: true}, secret, []byte("1"))
	unseal(t, chip, token, sigs, []byte("1"), secret, nil)
	mark := tpm.Mark{Volume: [16]byte{1, 2, 15: 3}}
	_, _, markErr := chip.ReadMark(t.Context())
	random, randomErr := chip.GetRandom(t.Context(), 5)
	if err := errors.Join(markErr, randomErr, chip.WriteMark(t.Context(), mark)); err != nil || len(random) != 5 {
		t.Fatal(err)
	}
	if got, set, err := chip.ReadMark(t.Context()); err != nil || !set || got != mark {
		t.Fatalf("ReadMark: got %v, %v, %v", got, set, err)
	}
	if err := chip.RemoveMark(t.Context()); err != nil {
		t.Fatal(err)
	}
	srk, err := chip.ReadSRK(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var trace []exchange
	raw := m.Trace()
	for i := 0; i < len(raw); i += 2 {
		trace = append(trace, exchange{raw[i], raw[i+1]})
	}

	empty := tpm2.PasswordAuth(nil)
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: empty}
	selected := func(pcrs ...uint) tpm2.TPMLPCRSelection {
		return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(pcrs...)}}}
	}
	handle := func(code tpm2.TPMCC) tpm2.TPMHandle { // the first of the command as it was sent
		return tpm2.TPMHandle(binary.BigEndian.Uint32(first(t, trace, code).command[10:]))
	}
	srkTemplate := tpm2.ECCSRKTemplate
	srkTemplate.ObjectAttributes.NoDA = true
	srkTemplate.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	index := tpm2.TPMSNVPublic{
		NVIndex: tpm.MarkIndex, NameAlg: tpm2.TPMAlgSHA256, DataSize: 64,
		Attributes: tpm2.TPMANV{OwnerRead: true, AuthRead: true, OwnerWrite: true, AuthWrite: true, NoDA: true, NT: tpm2.TPMNTOrdinary},
	}
	name, err := tpm2.NVName(&index)
	if err != nil {
		t.Fatal(err)
	}
	markHandle := tpm2.NamedHandle{Handle: tpm.MarkIndex, Name: *name}
	markAuth := tpm2.AuthHandle{Handle: tpm.MarkIndex, Name: *name, Auth: empty}
	written := first(t, trace, tpm2.TPMCCNVWrite).command
	salted := first(t, trace, tpm2.TPMCCStartAuthSession).command
	nonce, rest := sized(salted[18:])
	salt, _ := sized(rest)
	approved := first(t, trace, tpm2.TPMCCPolicyGetDigest).response[12:]
	digest, err := pcrsig.SHA256.Digest(approved)
	if err != nil {
		t.Fatal(err)
	}
	policyKey := tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{UserWithAuth: true, Decrypt: true, SignEncrypt: true},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048, Exponent: 65537}),
		Unique:           tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()}),
	}
	keyName, err := tpm2.ObjectName(&policyKey)
	if err != nil {
		t.Fatal(err)
	}
	ticket, err := tpm2.Unmarshal[tpm2.TPMTTKVerified](first(t, trace, tpm2.TPMCCVerifySignature).response[10:])
	if err != nil {
		t.Fatal(err)
	}
	sig, ok := sigs.Find(pcrsig.SHA256, []int{11}, &key.PublicKey, [32]byte(approved))
	if !ok {
		t.Fatal("no signature of the policy that the TPM computed")
	}
	digests := tpm2.TPMLDigestValues{}
	for _, bank := range pcrsig.Banks() {
		id, err := bank.AlgID()
		if err != nil {
			t.Fatal(err)
		}
		d, err := bank.Digest([]byte("loader"))
		if err != nil {
			t.Fatal(err)
		}
		digests.Digests = append(digests.Digests, tpm2.TPMTHA{HashAlg: tpm2.TPMIAlgHash(id), Digest: d})
	}

	for _, tc := range []struct {
		code tpm2.TPMCC
		send func(transport.TPM) error
	}{
		{tpm2.TPMCCGetCapability, sends(tpm2.GetCapability{Capability: tpm2.TPMCapPCRs, PropertyCount: 1}.Execute)},
		{tpm2.TPMCCGetRandom, sends(tpm2.GetRandom{BytesRequested: 5}.Execute)},
		{tpm2.TPMCCPCRRead, sends(tpm2.PCRRead{PCRSelectionIn: selected(7)}.Execute)},
		{tpm2.TPMCCPCRExtend, func(k transport.TPM) error {
			_, err := tpm2.PCRExtend{PCRHandle: tpm2.AuthHandle{Handle: 4, Auth: empty}, Digests: digests}.Execute(k)
			return err
		}},
		{tpm2.TPMCCReadPublic, sends(tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(tpm.SRKHandle)}.Execute)},
		{tpm2.TPMCCCreatePrimary, sends(tpm2.CreatePrimary{PrimaryHandle: owner, InPublic: tpm2.New2B(srkTemplate)}.Execute)},
		{tpm2.TPMCCEvictControl, sends(tpm2.EvictControl{
			Auth: owner,
			ObjectHandle: tpm2.NamedHandle{
				Handle: tpm2.TPMHandle(binary.BigEndian.Uint32(first(t, trace, tpm2.TPMCCEvictControl).command[14:])),
				Name:   tpm2.TPM2BName{Buffer: srk.Name},
			},
			PersistentHandle: tpm.SRKHandle,
		}.Execute)},
		{tpm2.TPMCCFlushContext, sends(tpm2.FlushContext{FlushHandle: handle(tpm2.TPMCCFlushContext)}.Execute)},
		{tpm2.TPMCCNVReadPublic, sends(tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(tpm.MarkIndex)}.Execute)},
		{tpm2.TPMCCNVDefineSpace, sends(tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: tpm2.New2B(index)}.Execute)},
		{tpm2.TPMCCNVWrite, sends(tpm2.NVWrite{
			AuthHandle: markAuth, NVIndex: markHandle, Data: tpm2.TPM2BMaxNVBuffer{Buffer: written[len(written)-66 : len(written)-2]},
		}.Execute)},
		{tpm2.TPMCCNVRead, sends(tpm2.NVRead{AuthHandle: markAuth, NVIndex: markHandle, Size: 64}.Execute)},
		{tpm2.TPMCCNVUndefineSpace, sends(tpm2.NVUndefineSpace{AuthHandle: owner, NVIndex: markHandle}.Execute)},
		{tpm2.TPMCCStartAuthSession, sends(tpm2.StartAuthSession{
			TPMKey: tpm2.TPMHandle(tpm.SRKHandle), Bind: tpm2.TPMRHNull,
			NonceCaller: tpm2.TPM2BNonce{Buffer: nonce}, EncryptedSalt: tpm2.TPM2BEncryptedSecret{Buffer: salt},
			SessionType: tpm2.TPMSEHMAC,
			Symmetric: tpm2.TPMTSymDef{
				Algorithm: tpm2.TPMAlgAES,
				KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
				Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
			},
			AuthHash: tpm2.TPMAlgSHA256,
		}.Execute)},
		{tpm2.TPMCCPolicyPCR, sends(tpm2.PolicyPCR{PolicySession: handle(tpm2.TPMCCPolicyPCR), Pcrs: selected(11)}.Execute)},
		{tpm2.TPMCCPolicyGetDigest, sends(tpm2.PolicyGetDigest{PolicySession: handle(tpm2.TPMCCPolicyGetDigest)}.Execute)},
		{tpm2.TPMCCLoadExternal, sends(tpm2.LoadExternal{InPublic: tpm2.New2B(policyKey), Hierarchy: tpm2.TPMRHOwner}.Execute)},
		{tpm2.TPMCCVerifySignature, sends(tpm2.VerifySignature{
			KeyHandle: handle(tpm2.TPMCCVerifySignature), Digest: tpm2.TPM2BDigest{Buffer: digest},
			Signature: tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgRSASSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA,
				&tpm2.TPMSSignatureRSA{Hash: tpm2.TPMAlgSHA256, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: sig}})},
		}.Execute)},
		{tpm2.TPMCCPolicyAuthorize, sends(tpm2.PolicyAuthorize{
			PolicySession: handle(tpm2.TPMCCPolicyAuthorize), ApprovedPolicy: tpm2.TPM2BDigest{Buffer: approved},
			KeySign: *keyName, CheckTicket: *ticket,
		}.Execute)},
		{tpm2.TPMCCPolicyAuthValue, sends(tpm2.PolicyAuthValue{PolicySession: handle(tpm2.TPMCCPolicyAuthValue)}.Execute)},
	} {
		var k takes
		if err := tc.send(&k); !errors.Is(err, errTaken) {
			t.Errorf("command %#x: go-tpm: %v", uint32(tc.code), err)
			continue
		}
		if got := first(t, trace, tc.code).command; !bytes.Equal(got, k.command) {
			t.Errorf("command %#x:\n  ours   %x\n  go-tpm %x", uint32(tc.code), got, k.command)
		}
	}
}

// sends drops the response of one of go-tpm's Execute methods.
func sends[R any](execute func(transport.TPM, ...tpm2.Session) (*R, error)) func(transport.TPM) error {
	return func(k transport.TPM) error {
		_, err := execute(k)
		return err
	}
}
