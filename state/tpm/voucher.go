package tpm

import (
	"context"
	"fmt"
)

// VoucherIndex is the NV index of the digest of a voucher's secret (package voucher).
const VoucherIndex = 0x01c05ea5

// VoucherPin is its record, as it is written under policy.
func VoucherPin(policy Policy) Pinned {
	return Pinned{Index: VoucherIndex, Size: 32, Policy: policy}
}

// RemoveVoucher undefines the index: no voucher counts then. It is no error when there
// is none.
func (t *TPM) RemoveVoucher(ctx context.Context) error {
	if err := t.bind(ctx).removeNV(VoucherIndex); err != nil {
		return fmt.Errorf("cannot remove the record of a voucher: %w", classify(err))
	}
	return nil
}

func (b bound) removeNV(number uint32) error {
	index, public, err := b.nvIndex(number)
	if err == nil && public != nil {
		err = b.undefineNV(index)
	}
	return err
}
