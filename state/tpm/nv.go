package tpm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// nvIndex returns an index with the Name that the TPM gives it; public is nil when
// it is not defined.
func (b bound) nvIndex(number uint32) (index tpm2.NamedHandle, public *tpm2.TPMSNVPublic, err error) {
	rsp, err := b.run(command{code: tpm2.TPMCCNVReadPublic, handles: []tpm2.NamedHandle{byHandle(tpm2.TPMHandle(number))}})
	if errors.Is(err, tpm2.TPMRCHandle) {
		return index, nil, nil
	}
	area, name := rsp.sized(), rsp.sized()
	if err == nil {
		err = rsp.end()
	}
	if err == nil {
		public, err = tpm2.Unmarshal[tpm2.TPMSNVPublic](area)
	}
	if err != nil {
		return index, nil, fmt.Errorf("cannot look for NV index %#x: %w", number, classify(err))
	}
	return byName(number, name), public, nil
}

// readNV reads an index from its beginning, as anybody may.
func (b bound) readNV(index tpm2.NamedHandle, size uint16) ([]byte, error) {
	rsp, err := b.run(command{
		code: tpm2.TPMCCNVRead, handles: []tpm2.NamedHandle{index, index}, auth: emptyPassword(),
		params: append(binary.BigEndian.AppendUint16(nil, size), 0, 0), // offset
	})
	if err != nil {
		return nil, err
	}
	data := bytes.Clone(rsp.sized())
	return data, rsp.end()
}

// writeNV writes an index from its beginning.
func (b bound) writeNV(index tpm2.NamedHandle, auth *session, data []byte) error {
	return b.do(command{
		code: tpm2.TPMCCNVWrite, handles: []tpm2.NamedHandle{index, index}, auth: auth,
		params: append(appendSized(nil, data), 0, 0), // offset
	})
}

// defineNV defines an index with an empty authorization value.
func (b bound) defineNV(public tpm2.TPMSNVPublic) error {
	return b.do(command{
		code: tpm2.TPMCCNVDefineSpace, handles: []tpm2.NamedHandle{owner()}, auth: emptyPassword(),
		params: appendSized([]byte{0, 0}, tpm2.Marshal(public)), already: tpm2.TPMRCNVDefined,
	})
}

func (b bound) undefineNV(index tpm2.NamedHandle) error {
	return b.do(command{
		code: tpm2.TPMCCNVUndefineSpace, handles: []tpm2.NamedHandle{owner(), index}, auth: emptyPassword(),
		already: tpm2.TPMRCHandle,
	})
}
