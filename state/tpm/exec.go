package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// command is a TPM command (TPM 2.0 part 1, 18; the commands are those of part 3).
// It stands in for go-tpm's Execute, which is generic: every command costs PID 1
// about 18 KB there. Public areas are go-tpm's; what has a few fields only is
// written and read here.
type command struct {
	code    tpm2.TPMCC
	handles []tpm2.NamedHandle
	// auth authorizes the first handle; nil: the command needs none. No command of
	// this package has a second one to authorize.
	auth   *session
	params []byte // marshalled; the first is encrypted in place where auth says so
	// makes: the response begins with the handle of an object or session.
	makes bool
	// once: not sent again when it is not known whether the TPM has done it.
	once bool
	// already is the response code to a command that was done before; 0: none.
	already tpm2.TPMRC
}

// response is what a command brings when the TPM has done it: its parameters to be
// read in order, then end.
type response struct {
	reader
	handle tpm2.TPMHandle
}

// errResponse: bytes that are no response to the command. The TPM is no TPM 2.0,
// or someone on its bus is at work.
var errResponse = errors.New("malformed response of the TPM")

// run executes a command. A response code of the TPM is returned as tpm2.TPMRC.
func (b bound) run(c command) (response, error) {
	request, err := c.encode()
	if err != nil {
		return response{}, err
	}
	// An authorization value proven twice in a session counts as a wrong one.
	once := c.once || c.auth != nil && len(c.auth.auth) > 0
	rsp, repeated, err := b.send(request, once)
	if err != nil {
		return response{}, err
	}
	out, err := c.decode(rsp)
	if repeated && c.already != 0 && errors.Is(err, c.already) {
		return response{}, nil
	}
	return out, err
}

// do is run for a command of whose response nothing is wanted.
func (b bound) do(c command) error {
	_, err := b.run(c)
	return err
}

// tag says whether a command has authorizations; its response has the same.
func (c command) tag() tpm2.TPMST {
	if c.auth == nil {
		return tpm2.TPMSTNoSessions
	}
	return tpm2.TPMSTSessions
}

const headerSize = 10 // tag, size, command or response code

func (c command) encode() ([]byte, error) {
	var area []byte
	if c.auth != nil {
		if err := c.auth.renew(); err != nil {
			return nil, err
		}
		if err := c.auth.encrypt(c.params); err != nil {
			return nil, err
		}
		area = c.auth.authorize(c)
	}
	size := headerSize + 4*len(c.handles) + len(area) + len(c.params)
	out := make([]byte, 0, size)
	out = binary.BigEndian.AppendUint16(out, uint16(c.tag()))
	out = binary.BigEndian.AppendUint32(out, uint32(size))
	out = binary.BigEndian.AppendUint32(out, uint32(c.code))
	for _, h := range c.handles {
		out = binary.BigEndian.AppendUint32(out, uint32(h.Handle))
	}
	out = append(out, area...)
	return append(out, c.params...), nil
}

func (c command) decode(rsp []byte) (response, error) {
	r := reader{rest: rsp}
	tag, size, rc := tpm2.TPMST(r.uint16()), r.uint32(), tpm2.TPMRC(r.uint32())
	switch {
	case r.bad || uint64(size) != uint64(len(rsp)):
		return response{}, fmt.Errorf("%w: %w: %d bytes", ErrNoTPM, errResponse, len(rsp))
	case tag == tpm2.TPMSTRspCommand:
		return response{}, fmt.Errorf("%w: it answers as a TPM 1.2", ErrNoTPM)
	case rc != tpm2.TPMRCSuccess:
		return response{}, rc
	case tag != c.tag():
		return response{}, fmt.Errorf("%w: tag %#x", errResponse, uint16(tag))
	}
	var handle tpm2.TPMHandle
	if c.makes {
		handle = tpm2.TPMHandle(r.uint32())
	}
	params := r.rest
	if c.auth != nil {
		params = r.take(r.uint32())
		auth := responseAuth{nonce: r.sized(), attributes: r.byte(), mac: r.sized()}
		if err := r.end(); err != nil {
			return response{}, err
		}
		if err := c.auth.validate(c.code, params, auth); err != nil {
			return response{}, err
		}
		if err := c.auth.decrypt(params); err != nil {
			return response{}, err
		}
	}
	if r.bad {
		return response{}, errResponse
	}
	return response{reader{rest: params}, handle}, nil
}

// emptyPassword authorizes by an empty authorization value, in clear.
func emptyPassword() *session { return &session{handle: tpm2.TPMRSPW} }

// byName is a handle whose Name is known.
func byName(handle uint32, name []byte) tpm2.NamedHandle {
	return tpm2.NamedHandle{Handle: tpm2.TPMHandle(handle), Name: tpm2.TPM2BName{Buffer: name}}
}

// byHandle is a PCR, session or hierarchy: its handle is its Name.
func byHandle(handle tpm2.TPMHandle) tpm2.NamedHandle {
	return tpm2.NamedHandle{Handle: handle, Name: tpm2.HandleName(handle)}
}

// appendSized appends a TPM2B: two bytes of length and as many bytes.
func appendSized(out, data []byte) []byte {
	return append(binary.BigEndian.AppendUint16(out, uint16(len(data))), data...)
}

// reader takes big-endian fields off a byte slice; after the first field that is
// too short everything reads as zero and bad is set.
type reader struct {
	rest []byte
	bad  bool
}

func (r *reader) take(n uint32) []byte {
	if r.bad || uint64(n) > uint64(len(r.rest)) {
		r.bad = true
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// sized takes a TPM2B.
func (r *reader) sized() []byte { return r.take(uint32(r.uint16())) }

// end is errResponse unless every field was there and nothing is left.
func (r *reader) end() error {
	if r.bad || len(r.rest) > 0 {
		return errResponse
	}
	return nil
}
