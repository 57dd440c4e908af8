package tpm

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// nonceSize is the length of the nonces of a session, that of its hash.
const nonceSize = 32

// session is an HMAC or policy session that is salted with the SRK and encrypts
// parameters with AES-128-CFB (TPM 2.0 part 1, 17.6 and 19). It stands in for
// go-tpm's own sessions because those cut an authorization value at its first
// zero byte in place of its trailing ones (v0.9.8, hmacKeyFromAuthValue), which
// breaks one PIN in nine, and leave the secrets they decrypt in buffers that
// nobody can wipe: this one remembers every buffer it has decrypted.
type session struct {
	handle  tpm2.TPMHandle
	key     []byte // session key
	auth    []byte // authorization value of the object it is used on
	caller  tpm2.TPM2BNonce
	tpm     tpm2.TPM2BNonce
	attrs   tpm2.TPMASession
	cleared [][]byte // buffers that hold parameters in clear
}

// startSession begins a session of a kind (TPMSEHMAC or TPMSEPolicy) salted with
// key. auth is the authorization value that it proves, nil for none. The caller
// ends it with end.
func (b bound) startSession(kind tpm2.TPMSE, key SRK, auth []byte) (*session, error) {
	enc, err := tpm2.ImportEncapsulationKey(&key.public)
	if err != nil {
		return nil, fmt.Errorf("cannot salt TPM session: %w", err)
	}
	salt, encSalt, err := tpm2.CreateEncryptedSalt(rand.Reader, enc)
	if err != nil {
		return nil, fmt.Errorf("cannot salt TPM session: %w", err)
	}
	defer clear(salt)
	s := &session{caller: tpm2.TPM2BNonce{Buffer: make([]byte, nonceSize)}}
	if err := s.NewNonceCaller(); err != nil {
		return nil, err
	}
	rsp, err := tpm2.StartAuthSession{
		TPMKey:        tpm2.NamedHandle{Handle: tpm2.TPMHandle(key.Handle), Name: tpm2.TPM2BName{Buffer: key.Name}},
		Bind:          tpm2.TPMRHNull,
		NonceCaller:   s.caller,
		EncryptedSalt: tpm2.TPM2BEncryptedSecret{Buffer: encSalt},
		SessionType:   kind,
		Symmetric: tpm2.TPMTSymDef{
			Algorithm: tpm2.TPMAlgAES,
			KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
			Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
		},
		AuthHash: tpm2.TPMAlgSHA256,
	}.Execute(b)
	if err != nil {
		return nil, fmt.Errorf("cannot start TPM session: %w", classify(err))
	}
	s.handle = tpm2.TPMHandle(rsp.SessionHandle.HandleValue())
	s.tpm = rsp.NonceTPM
	s.key = tpm2.KDFa(crypto.SHA256, salt, "ATH", s.tpm.Buffer, s.caller.Buffer, 256)
	s.auth = bytes.Clone(bytes.TrimRight(auth, "\x00"))
	s.attrs.ContinueSession = true // end flushes it, on every path
	return s, nil
}

// encrypts sets which parameters of the next command are encrypted: the first
// one sent, the first one received. Only a TPM2B can be.
func (s *session) encrypts(sent, received bool) *session {
	s.attrs.Decrypt, s.attrs.Encrypt = sent, received // from the TPM's side
	return s
}

// end flushes the session and wipes what it knows.
func (s *session) end(b bound) error {
	clear(s.key)
	clear(s.auth)
	for _, buf := range s.cleared {
		clear(buf)
	}
	return b.flush(s.handle)
}

// Init implements tpm2.Session; the session has begun already.
func (s *session) Init(transport.TPM) error { return nil }

// CleanupFailure implements tpm2.Session; end is called on every path.
func (s *session) CleanupFailure(transport.TPM) error { return nil }

// NonceTPM implements tpm2.Session.
func (s *session) NonceTPM() tpm2.TPM2BNonce { return s.tpm }

// NewNonceCaller implements tpm2.Session.
func (s *session) NewNonceCaller() error {
	_, err := rand.Read(s.caller.Buffer)
	return err
}

// Handle implements tpm2.Session.
func (s *session) Handle() tpm2.TPMHandle { return s.handle }

// IsEncryption implements tpm2.Session.
func (s *session) IsEncryption() bool { return s.attrs.Encrypt }

// IsDecryption implements tpm2.Session.
func (s *session) IsDecryption() bool { return s.attrs.Decrypt }

// Authorize implements tpm2.Session: the HMAC over the command (part 1, 19.6.5).
func (s *session) Authorize(cc tpm2.TPMCC, parms, addNonces []byte, names []tpm2.TPM2BName, _ int) (*tpm2.TPMSAuthCommand, error) {
	h := crypto.SHA256.New()
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(cc)))
	for _, name := range names {
		h.Write(name.Buffer)
	}
	h.Write(parms)
	mac := s.mac(h.Sum(nil), s.caller.Buffer, s.tpm.Buffer, addNonces, s.attrs)
	return &tpm2.TPMSAuthCommand{
		Handle: s.handle, Nonce: s.caller, Attributes: s.attrs,
		Authorization: tpm2.TPM2BData{Buffer: mac},
	}, nil
}

var errResponseHMAC = errors.New("response of the TPM is not authentic")

// Validate implements tpm2.Session: the HMAC over the response.
func (s *session) Validate(rc tpm2.TPMRC, cc tpm2.TPMCC, parms []byte, _ []tpm2.TPM2BName, _ int, auth *tpm2.TPMSAuthResponse) error {
	s.tpm = auth.Nonce
	h := crypto.SHA256.New()
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(rc)))
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(cc)))
	h.Write(parms)
	want := s.mac(h.Sum(nil), s.tpm.Buffer, s.caller.Buffer, nil, auth.Attributes)
	if !hmac.Equal(want, auth.Authorization.Buffer) {
		return errResponseHMAC
	}
	return nil
}

func (s *session) mac(parmHash, newer, older, addNonces []byte, attrs tpm2.TPMASession) []byte {
	key := append(bytes.Clone(s.key), s.auth...)
	defer clear(key)
	mac := hmac.New(crypto.SHA256.New, key)
	mac.Write(parmHash)
	mac.Write(newer)
	mac.Write(older)
	mac.Write(addNonces)
	mac.Write(tpm2.Marshal(attrs))
	return mac.Sum(nil)
}

// Encrypt implements tpm2.Session: parameter goes to the TPM, encrypted in place.
func (s *session) Encrypt(parameter []byte) error {
	if !s.attrs.Decrypt {
		return nil
	}
	stream, err := s.stream(s.caller.Buffer, s.tpm.Buffer, true)
	if err != nil {
		return err
	}
	stream.XORKeyStream(parameter, parameter)
	return nil
}

// Decrypt implements tpm2.Session: parameter came from the TPM.
func (s *session) Decrypt(parameter []byte) error {
	if !s.attrs.Encrypt {
		return nil
	}
	stream, err := s.stream(s.tpm.Buffer, s.caller.Buffer, false)
	if err != nil {
		return err
	}
	stream.XORKeyStream(parameter, parameter)
	s.cleared = append(s.cleared, parameter)
	return nil
}

// stream is AES-128-CFB with key and IV of part 1, 21.3.
func (s *session) stream(newer, older []byte, encrypt bool) (cipher.Stream, error) {
	value := append(bytes.Clone(s.key), s.auth...)
	defer clear(value)
	keyIV := tpm2.KDFa(crypto.SHA256, value, "CFB", newer, older, (16+aes.BlockSize)*8)
	defer clear(keyIV)
	block, err := aes.NewCipher(keyIV[:16])
	if err != nil {
		return nil, fmt.Errorf("cannot encrypt TPM parameter: %w", err)
	}
	// CFB is what TPMs do; its known weakness, no authentication, is made up for
	// by the HMAC of the session.
	if encrypt {
		return cipher.NewCFBEncrypter(block, keyIV[16:]), nil //lint:ignore SA1019 TPM format
	}
	return cipher.NewCFBDecrypter(block, keyIV[16:]), nil //lint:ignore SA1019 TPM format
}
