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
)

// Attributes of a session (TPMA_SESSION: part 2, 8.4).
const (
	sessionContinue = 1 << 0
	sessionDecrypt  = 1 << 5 // the TPM decrypts: the first parameter sent
	sessionEncrypt  = 1 << 6 // the TPM encrypts: the first parameter received
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
	key     []byte   // session key
	auth    []byte   // authorization value of the object it is used on
	caller  []byte   // its nonce
	tpm     []byte   // its nonce
	attrs   byte     // TPMA_SESSION
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
	s := &session{caller: make([]byte, nonceSize)}
	if err := s.renew(); err != nil {
		return nil, err
	}
	params := appendSized(appendSized(nil, s.caller), encSalt)
	params = append(params, byte(kind))
	for _, field := range []uint16{uint16(tpm2.TPMAlgAES), 128, uint16(tpm2.TPMAlgCFB), uint16(tpm2.TPMAlgSHA256)} {
		params = binary.BigEndian.AppendUint16(params, field)
	}
	rsp, err := b.run(command{
		code: tpm2.TPMCCStartAuthSession, handles: []tpm2.NamedHandle{key.named(), byHandle(tpm2.TPMRHNull)},
		params: params, makes: true,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot start TPM session: %w", classify(err))
	}
	s.handle, s.tpm = rsp.handle, bytes.Clone(rsp.sized())
	if err := rsp.end(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot start TPM session: %w", err), b.flush(s.handle))
	}
	s.key = tpm2.KDFa(crypto.SHA256, salt, "ATH", s.tpm, s.caller, 256)
	s.auth = bytes.Clone(bytes.TrimRight(auth, "\x00"))
	s.attrs = sessionContinue // end flushes it, on every path
	return s, nil
}

// encrypts sets which parameters of the next command are encrypted: the first
// one sent, the first one received. Only a TPM2B can be.
func (s *session) encrypts(sent, received bool) *session {
	s.attrs = sessionContinue
	if sent {
		s.attrs |= sessionDecrypt
	}
	if received {
		s.attrs |= sessionEncrypt
	}
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

// renew draws the nonce of the next command. A password has none.
func (s *session) renew() error {
	if _, err := rand.Read(s.caller); err != nil {
		return fmt.Errorf("cannot make TPM nonce: %w", err)
	}
	return nil
}

// authorize returns the authorization area of a command: a password, or the HMAC
// over the command (part 1, 18.7 and 19.6.5).
func (s *session) authorize(c command) []byte {
	var mac []byte
	if s.handle != tpm2.TPMRSPW {
		h := crypto.SHA256.New()
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(c.code)))
		for _, handle := range c.handles {
			h.Write(handle.Name.Buffer)
		}
		h.Write(c.params)
		mac = s.mac(h.Sum(nil), s.caller, s.tpm, s.attrs)
	}
	area := binary.BigEndian.AppendUint32(make([]byte, 4), uint32(s.handle))
	area = append(appendSized(area, s.caller), s.attrs)
	area = appendSized(area, mac)
	binary.BigEndian.PutUint32(area, uint32(len(area)-4))
	return area
}

// responseAuth is the authorization in a response.
type responseAuth struct {
	nonce      []byte
	attributes byte
	mac        []byte
}

var errResponseHMAC = errors.New("response of the TPM is not authentic")

// validate checks the HMAC over a response whose code is success; that to a
// password has none, and must not look as if it had.
func (s *session) validate(code tpm2.TPMCC, params []byte, auth responseAuth) error {
	if s.handle == tpm2.TPMRSPW {
		if len(auth.nonce)+len(auth.mac) != 0 || auth.attributes != sessionContinue {
			return errResponseHMAC
		}
		return nil
	}
	s.tpm = bytes.Clone(auth.nonce)
	h := crypto.SHA256.New()
	h.Write(make([]byte, 4)) // response code
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(code)))
	h.Write(params)
	if !hmac.Equal(s.mac(h.Sum(nil), s.tpm, s.caller, auth.attributes), auth.mac) {
		return errResponseHMAC
	}
	return nil
}

func (s *session) mac(parmHash, newer, older []byte, attrs byte) []byte {
	key := append(bytes.Clone(s.key), s.auth...)
	defer clear(key)
	mac := hmac.New(crypto.SHA256.New, key)
	mac.Write(parmHash)
	mac.Write(newer)
	mac.Write(older)
	mac.Write([]byte{attrs})
	return mac.Sum(nil)
}

// encrypt encrypts the first of the parameters in place, where the session is to.
func (s *session) encrypt(params []byte) error {
	if s.attrs&sessionDecrypt == 0 {
		return nil
	}
	r := reader{rest: params}
	return s.cipher(r.sized(), s.caller, s.tpm, true)
}

// decrypt decrypts the first of a response's parameters in place, where the TPM
// has encrypted it. The session wipes it in the end.
func (s *session) decrypt(params []byte) error {
	if s.attrs&sessionEncrypt == 0 {
		return nil
	}
	r := reader{rest: params}
	first := r.sized()
	s.cleared = append(s.cleared, first)
	return s.cipher(first, s.tpm, s.caller, false)
}

// cipher is AES-128-CFB in place, with key and IV of part 1, 21.3.
func (s *session) cipher(data, newer, older []byte, encrypt bool) error {
	value := append(bytes.Clone(s.key), s.auth...)
	defer clear(value)
	keyIV := tpm2.KDFa(crypto.SHA256, value, "CFB", newer, older, (16+aes.BlockSize)*8)
	defer clear(keyIV)
	block, err := aes.NewCipher(keyIV[:16])
	if err != nil {
		return fmt.Errorf("cannot encrypt TPM parameter: %w", err)
	}
	// CFB is what TPMs do; its known weakness, no authentication, is made up for
	// by the HMAC of the session.
	if encrypt {
		cipher.NewCFBEncrypter(block, keyIV[16:]).XORKeyStream(data, data) //lint:ignore SA1019 TPM format
	} else {
		cipher.NewCFBDecrypter(block, keyIV[16:]).XORKeyStream(data, data) //lint:ignore SA1019 TPM format
	}
	return nil
}
