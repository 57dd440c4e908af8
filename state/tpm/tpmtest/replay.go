package tpmtest

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"sealroot/state/tpm"
)

// Replay computes what the PCRs of a bank hold after the events of a userspace
// log (the JSON text sequence of systemd's tpm2-measure.log). start holds what the
// firmware's log left; a PCR that is not in it began at zero. A record without a
// digest for the bank is an error: that bank was not extended.
func Replay(log []byte, bank tpm.Bank, start tpm.Values) (tpm.Values, error) {
	hash, err := bank.Hash()
	if err != nil {
		return nil, err
	}
	now := make(tpm.Values)
	for pcr, v := range start {
		now[pcr] = bytes.Clone(v)
	}
	for i, text := range bytes.Split(bytes.TrimPrefix(log, []byte{0x1e}), []byte{0x1e}) {
		var r struct {
			PCR     int
			Digests []struct{ HashAlg, Digest string }
		}
		if err := json.Unmarshal(text, &r); err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
		found := false
		for _, d := range r.Digests {
			if d.HashAlg != string(bank) {
				continue
			}
			digest, err := hex.DecodeString(d.Digest)
			if err != nil || len(digest) != hash.Size() || found {
				return nil, fmt.Errorf("record %d: digest %q of bank %s: %v", i, d.Digest, bank, err)
			}
			found = true
			if now[r.PCR] == nil {
				now[r.PCR] = make([]byte, hash.Size())
			}
			h := hash.New()
			h.Write(now[r.PCR])
			h.Write(digest)
			now[r.PCR] = h.Sum(nil)
		}
		if !found {
			return nil, fmt.Errorf("record %d has no digest for bank %s", i, bank)
		}
	}
	return now, nil
}
