package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"sealroot/state/tpm/pcrsig"
)

// ActiveBanks returns the PCR banks in which the TPM keeps PCRs. An active bank
// of an algorithm that this program cannot compute (sm3, sha3) is an ErrBank:
// what cannot be extended must not be sealed beside.
func (t *TPM) ActiveBanks(ctx context.Context) ([]Bank, error) {
	known, unknown, err := t.bind(ctx).banks()
	if err != nil {
		return nil, err
	}
	if len(unknown) > 0 {
		return nil, fmt.Errorf("%w: bank %#04x is active in this TPM", ErrBank, unknown[0])
	}
	return known, nil
}

// banks returns the active banks; unknown holds the TPM_ALG_IDs of those that
// Bank does not have. Banks without any PCR are not active.
func (b bound) banks() (known []Bank, unknown []uint16, err error) {
	ask := binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMCapPCRs))
	ask = append(ask, 0, 0, 0, 0, 0, 0, 0, 1) // first property, count
	rsp, err := b.run(command{code: tpm2.TPMCCGetCapability, params: ask})
	if err != nil {
		return nil, nil, fmt.Errorf("cannot list PCR banks: %w", classify(err))
	}
	_, kind := rsp.byte(), tpm2.TPMCap(rsp.uint32()) // first: is there more
	list := rsp.selections()
	if rsp.end() != nil || kind != tpm2.TPMCapPCRs {
		return nil, nil, fmt.Errorf("cannot list PCR banks: %w", errResponse)
	}
	for _, sel := range list {
		if len(bytes.Trim(sel.bits, "\x00")) == 0 {
			continue
		}
		bank, err := pcrsig.BankOf(sel.hash)
		if err != nil {
			unknown = append(unknown, sel.hash)
			continue
		}
		known = append(known, bank)
	}
	if len(known)+len(unknown) == 0 {
		return nil, nil, fmt.Errorf("%w: no PCR bank is active in this TPM", ErrBank)
	}
	return known, unknown, nil
}

// pcrSelection is a TPMS_PCR_SELECTION.
type pcrSelection struct {
	hash uint16 // TPM_ALG_ID of the bank
	bits []byte // bit n%8 of byte n/8: PCR n
}

// selections takes a TPML_PCR_SELECTION.
func (r *reader) selections() []pcrSelection {
	var list []pcrSelection
	for n := r.uint32(); n > 0 && !r.bad; n-- {
		list = append(list, pcrSelection{r.uint16(), r.take(uint32(r.byte()))})
	}
	return list
}

// bestBank is the bank that a new policy uses.
func (t *TPM) bestBank(ctx context.Context) (Bank, error) {
	active, err := t.ActiveBanks(ctx)
	if err != nil {
		return "", err
	}
	for _, bank := range []Bank{pcrsig.SHA256, pcrsig.SHA384, pcrsig.SHA512} {
		if slices.Contains(active, bank) {
			return bank, nil
		}
	}
	return "", fmt.Errorf("%w: only sha1 is active in this TPM", ErrBank)
}

// ReadPCRs returns the values of pcrs in one bank. A bank or PCR that the TPM
// does not have is an ErrBank.
func (t *TPM) ReadPCRs(ctx context.Context, bank Bank, pcrs []int) (Values, error) {
	if _, err := pcrsig.Selection(bank, pcrs); err != nil {
		return nil, fmt.Errorf("cannot read PCRs: %w", err)
	}
	b := t.bind(ctx)
	values := make(Values, len(pcrs))
	left := slices.Sorted(slices.Values(pcrs))
	for len(left) > 0 {
		// A TPM answers with as many as fit, eight digests.
		ask := left[:min(len(left), 8)]
		if err := b.readPCRs(bank, ask, values); err != nil {
			return nil, err
		}
		left = slices.DeleteFunc(left, func(pcr int) bool { return values[pcr] != nil })
	}
	return values, nil
}

func (b bound) readPCRs(bank Bank, pcrs []int, into Values) error {
	sel, err := pcrsig.Selection(bank, pcrs)
	if err != nil {
		return err
	}
	id, err := bank.AlgID()
	if err != nil {
		return err
	}
	hash, err := bank.Hash()
	if err != nil {
		return err
	}
	rsp, err := b.run(command{code: tpm2.TPMCCPCRRead, params: sel})
	if err != nil {
		return fmt.Errorf("cannot read PCRs of bank %s: %w", bank, classify(err))
	}
	rsp.uint32() // update counter
	var got []int
	for _, s := range rsp.selections() {
		if s.hash != id {
			continue
		}
		for _, pcr := range pcrs {
			if pcr/8 < len(s.bits) && s.bits[pcr/8]&(1<<(pcr%8)) != 0 {
				got = append(got, pcr)
			}
		}
	}
	if n := rsp.uint32(); len(got) == 0 || uint64(n) != uint64(len(got)) {
		return fmt.Errorf("%w: TPM has no PCRs %s in bank %s", ErrBank, joinInts(pcrs), bank)
	}
	for _, pcr := range got {
		d := rsp.sized()
		if len(d) != hash.Size() {
			return fmt.Errorf("%w: value of PCR %d in bank %s has %d bytes", ErrBank, pcr, bank, len(d))
		}
		into[pcr] = bytes.Clone(d)
	}
	return rsp.end()
}

// Extend extends a PCR with the digest of data in every active bank. With an
// active bank that this program cannot compute it does nothing: ErrBank.
func (t *TPM) Extend(ctx context.Context, pcr int, data []byte) error {
	_, err := t.extend(ctx, pcr, data, true)
	return err
}

// extend extends once: where it is not known whether the TPM has done it, it is an
// ErrFails; else at least once.
func (t *TPM) extend(ctx context.Context, pcr int, data []byte, once bool) (map[Bank][]byte, error) {
	banks, err := t.ActiveBanks(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot extend PCR %d: %w", pcr, err)
	}
	digests := make(map[Bank][]byte, len(banks))
	list := binary.BigEndian.AppendUint32(nil, uint32(len(banks)))
	for _, bank := range banks {
		id, err := bank.AlgID()
		if err != nil {
			return nil, err
		}
		if digests[bank], err = bank.Digest(data); err != nil {
			return nil, err
		}
		list = append(binary.BigEndian.AppendUint16(list, id), digests[bank]...)
	}
	if err := t.bind(ctx).toPCR(tpm2.TPMCCPCRExtend, pcr, list, once); err != nil {
		return nil, fmt.Errorf("cannot extend PCR %d: %w", pcr, classify(err))
	}
	return digests, nil
}

// toPCR executes TPM2_PCR_Extend or TPM2_PCR_Event.
func (b bound) toPCR(code tpm2.TPMCC, pcr int, params []byte, once bool) error {
	if pcr < 0 || pcr >= pcrsig.PCRCount {
		return pcrsig.ErrPCR
	}
	return b.do(command{
		code: code, handles: []tpm2.NamedHandle{byHandle(tpm2.TPMHandle(pcr))}, auth: emptyPassword(), params: params,
		once: once,
	})
}

// Capped says what Cap has done.
type Capped struct {
	PCRs    []int    // PCRs that were extended in every active bank
	Banks   []Bank   // active banks
	Unknown []uint16 // TPM_ALG_IDs of further active banks, extended too
}

// Cap extends each of pcrs, in every active bank, with pcrsig.WordCapped, so that
// no policy over one of them can be met again before the next reset. It is meant
// for every way out of the initramfs, errors included: it may be called again,
// goes on with the other PCRs when one fails, and falls back to TPM2_PCR_Event,
// with which the TPM itself computes the digests, for banks that this program
// does not know or cannot list. What was done is returned beside an error. The
// extends are recorded in log (nil: none); that a record cannot be written is no
// error.
func (t *TPM) Cap(ctx context.Context, log *Log, pcrs ...int) (Capped, error) {
	b := t.bind(ctx)
	banks, unknown, listErr := b.banks()
	done := Capped{Banks: banks, Unknown: unknown}
	var errs []error
	for _, pcr := range pcrs {
		_ = log.begin()
		before := b.repeats()
		err := listErr
		if err == nil && len(unknown) == 0 {
			_, err = t.extend(ctx, pcr, []byte(pcrsig.WordCapped), false)
		}
		known := listErr == nil && (err == nil || answered(err))
		if err != nil || len(unknown) > 0 {
			err = b.toPCR(tpm2.TPMCCPCREvent, pcr, appendSized(nil, []byte(pcrsig.WordCapped)), false)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot cap PCR %d: %w", pcr, classify(err)))
			continue
		}
		done.PCRs = append(done.PCRs, pcr)
		// Else the log stays marked: nobody knows which banks there are, or whether the
		// PCR was extended once.
		if known && b.repeats() == before {
			_ = log.endWord(pcr, pcrsig.WordCapped, banks)
		}
	}
	return done, errors.Join(errs...)
}

// Sanity returns ErrSanity when, in the bank a policy would use, one of pcrs is
// all 00 or FF: the boot path does not measure into it, and a policy over it
// protects nothing. For PCR 11 zero means that no stub measured a UKI. PCRs that
// the policy wants at zero (15 before its cap) are not for this check.
func (t *TPM) Sanity(ctx context.Context, bank Bank, pcrs ...int) error {
	if bank == "" {
		best, err := t.bestBank(ctx)
		if err != nil {
			return err
		}
		bank = best
	}
	values, err := t.ReadPCRs(ctx, bank, pcrs)
	if err != nil {
		return err
	}
	return checkMeasured(bank, values)
}

func checkMeasured(bank Bank, values Values) error {
	var bad []int
	for pcr, v := range values {
		if len(bytes.Trim(v, "\x00")) == 0 || len(bytes.Trim(v, "\xff")) == 0 {
			bad = append(bad, pcr)
		}
	}
	switch {
	case len(bad) == 0:
		return nil
	case slices.Contains(bad, 11):
		return fmt.Errorf("%w: PCR 11 of bank %s was not extended by a UKI stub", ErrSanity, bank)
	}
	return fmt.Errorf("%w: PCR %s of bank %s has all bits equal", ErrSanity, joinInts(bad), bank)
}
