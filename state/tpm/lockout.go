package tpm

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Properties of TPM 2.0 part 2, 6.13: how many failed tries the TPM remembers, and
// with how many it locks itself.
const (
	propLockoutCounter = 0x20e
	propMaxAuthFail    = 0x20f
)

// TriesLeft tells how many wrong PINs in a row lock the TPM.
func (t *TPM) TriesLeft(ctx context.Context) (int, error) {
	ask := binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMCapTPMProperties))
	ask = binary.BigEndian.AppendUint32(ask, propLockoutCounter)
	ask = binary.BigEndian.AppendUint32(ask, 2) // and the one after it
	rsp, err := t.bind(ctx).run(command{code: tpm2.TPMCCGetCapability, params: ask})
	if err != nil {
		return 0, fmt.Errorf("cannot ask for the TPM's lockout: %w", classify(err))
	}
	_, kind, n := rsp.byte(), tpm2.TPMCap(rsp.uint32()), rsp.uint32()
	counter, failed := rsp.uint32(), rsp.uint32()
	limit, most := rsp.uint32(), rsp.uint32()
	if rsp.end() != nil || kind != tpm2.TPMCapTPMProperties || n != 2 || counter != propLockoutCounter || limit != propMaxAuthFail {
		return 0, fmt.Errorf("cannot ask for the TPM's lockout: %w", errResponse)
	}
	return int(most) - int(min(failed, most)), nil
}
