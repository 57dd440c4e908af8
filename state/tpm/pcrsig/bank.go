package pcrsig

import (
	"crypto"
	_ "crypto/sha1" // the hash functions of the banks register themselves
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Bank is a PCR bank, named as systemd names it in tokens, signatures and logs.
type Bank string

// The banks that sealroot can compute.
const (
	SHA1   Bank = "sha1"
	SHA256 Bank = "sha256"
	SHA384 Bank = "sha384"
	SHA512 Bank = "sha512"
)

// PCRCount is the number of PCRs of a bank (TCG PC Client platform profile).
const PCRCount = 24

// ErrBank is returned for a PCR bank that this program cannot compute.
var ErrBank = errors.New("unsupported PCR bank")

// ErrPCR is returned for a PCR number outside of 0…23, one given twice, or a
// PCR whose value is missing or of the wrong length.
var ErrPCR = errors.New("invalid PCR")

// Banks returns every bank that this package knows, shortest digest first.
func Banks() []Bank { return []Bank{SHA1, SHA256, SHA384, SHA512} }

// Hash returns the hash function of the bank, or ErrBank.
func (b Bank) Hash() (crypto.Hash, error) {
	switch b {
	case SHA1:
		return crypto.SHA1, nil
	case SHA256:
		return crypto.SHA256, nil
	case SHA384:
		return crypto.SHA384, nil
	case SHA512:
		return crypto.SHA512, nil
	}
	return 0, fmt.Errorf("%w: %q", ErrBank, string(b))
}

// AlgID returns the TPM_ALG_ID of the bank's hash (TPM 2.0 part 2, table 9),
// or ErrBank.
func (b Bank) AlgID() (uint16, error) {
	switch b {
	case SHA1:
		return 0x0004, nil
	case SHA256:
		return 0x000b, nil
	case SHA384:
		return 0x000c, nil
	case SHA512:
		return 0x000d, nil
	}
	return 0, fmt.Errorf("%w: %q", ErrBank, string(b))
}

// BankOf returns the bank of a TPM_ALG_ID, or ErrBank.
func BankOf(algID uint16) (Bank, error) {
	for _, b := range Banks() {
		if id, err := b.AlgID(); err == nil && id == algID {
			return b, nil
		}
	}
	return "", fmt.Errorf("%w: TPM algorithm %#04x", ErrBank, algID)
}

// Digest returns the hash of data in the bank's algorithm, or ErrBank.
func (b Bank) Digest(data []byte) ([]byte, error) {
	hash, err := b.Hash()
	if err != nil {
		return nil, err
	}
	h := hash.New()
	h.Write(data)
	return h.Sum(nil), nil
}

// extend returns the value of a PCR after an extend with data's digest.
func extend(hash crypto.Hash, pcr, data []byte) []byte {
	d := hash.New()
	d.Write(data)
	h := hash.New()
	h.Write(pcr)
	h.Write(d.Sum(nil))
	return h.Sum(nil)
}

// Values are PCR values of one bank.
type Values map[int][]byte

// Selection returns the marshalled TPML_PCR_SELECTION that selects pcrs in one
// bank (TPM 2.0 part 2, 10.6.2 and 10.9.7), three bytes of bits as all PC TPMs
// have. Errors are ErrBank and ErrPCR.
func Selection(bank Bank, pcrs []int) ([]byte, error) {
	id, err := bank.AlgID()
	if err != nil {
		return nil, err
	}
	var bits [PCRCount / 8]byte
	for _, pcr := range pcrs {
		if pcr < 0 || pcr >= PCRCount {
			return nil, fmt.Errorf("%w: number %d", ErrPCR, pcr)
		}
		if bits[pcr/8]&(1<<(pcr%8)) != 0 {
			return nil, fmt.Errorf("%w: number %d is given twice", ErrPCR, pcr)
		}
		bits[pcr/8] |= 1 << (pcr % 8)
	}
	sel := binary.BigEndian.AppendUint32(nil, 1)
	sel = binary.BigEndian.AppendUint16(sel, id)
	sel = append(sel, byte(len(bits)))
	return append(sel, bits[:]...), nil
}

// PolicyPCR returns the policy digest (always SHA-256 here) after TPM2_PolicyPCR
// over pcrs of bank with the given values, starting from the digest start: 32
// zero bytes for a fresh policy session (TPM 2.0 part 3, 23.7). Errors are
// ErrBank and ErrPCR.
func PolicyPCR(start [32]byte, bank Bank, pcrs []int, values Values) ([32]byte, error) {
	sel, err := Selection(bank, pcrs)
	if err != nil {
		return [32]byte{}, err
	}
	hash, err := bank.Hash()
	if err != nil {
		return [32]byte{}, err
	}
	// The values are hashed with the session's algorithm, in order of the PCRs.
	concat := crypto.SHA256.New()
	for _, pcr := range slices.Sorted(slices.Values(pcrs)) {
		if len(values[pcr]) != hash.Size() {
			return [32]byte{}, fmt.Errorf("%w: value of PCR %d has %d bytes in place of %d", ErrPCR, pcr, len(values[pcr]), hash.Size())
		}
		concat.Write(values[pcr])
	}
	const ccPolicyPCR = 0x0000017f
	h := crypto.SHA256.New()
	h.Write(start[:])
	h.Write(binary.BigEndian.AppendUint32(nil, ccPolicyPCR))
	h.Write(sel)
	h.Write(concat.Sum(nil))
	return [32]byte(h.Sum(nil)), nil
}
