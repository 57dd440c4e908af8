package tpm

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sort"
	"time"
)

// Event is something measured into a PCR.
type Event struct {
	PCR  int
	Data []byte // what is hashed
	Text string // what the log says; never anything secret
	Type string // event type of the log: "phase" for the words of PCR 11; may be empty
}

// Log is an event log in the format of systemd's
// /run/log/systemd/tpm2-measure.log: RFC 7464 JSON text sequences.
type Log struct {
	W      io.Writer
	BootID string               // 32 hex digits, as sd_id128 prints a boot ID
	Now    func() time.Duration // time since boot (CLOCK_BOOTTIME)
}

// Measure extends every active bank with the digest of e.Data and appends a
// record to log (nil: none). When only the record fails the error is an ErrLog:
// the PCR has its new value.
func (t *TPM) Measure(ctx context.Context, e Event, log *Log) error {
	digests, err := t.extend(ctx, e.PCR, e.Data)
	if err != nil {
		return err
	}
	if log == nil {
		return nil
	}
	record, err := log.record(e, digests)
	if err != nil {
		return err
	}
	if _, err := log.W.Write(record); err != nil {
		return fmt.Errorf("%w: PCR %d: %w", ErrLog, e.PCR, err)
	}
	return nil
}

// logRecord has the members of a record in systemd's order
// (tpm2_userspace_log in src/shared/tpm2-util.c).
type logRecord struct {
	PCR         int         `json:"pcr"`
	Digests     []logDigest `json:"digests"`
	ContentType string      `json:"content_type"`
	Content     logContent  `json:"content"`
}

type logDigest struct {
	HashAlg string `json:"hashAlg"`
	Digest  string `json:"digest"`
}

type logContent struct {
	String    string `json:"string,omitempty"`
	BootID    string `json:"bootId"`
	Timestamp int64  `json:"timestamp"` // microseconds
	EventType string `json:"eventType,omitempty"`
}

func (l *Log) record(e Event, digests map[Bank][]byte) ([]byte, error) {
	r := logRecord{
		PCR: e.PCR, ContentType: "systemd",
		Content: logContent{String: e.Text, BootID: l.BootID, Timestamp: l.Now().Microseconds(), EventType: e.Type},
	}
	for bank, digest := range digests {
		r.Digests = append(r.Digests, logDigest{HashAlg: string(bank), Digest: hex.EncodeToString(digest)})
	}
	sort.Slice(r.Digests, func(i, j int) bool { return len(r.Digests[i].Digest) < len(r.Digests[j].Digest) })
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLog, err)
	}
	return slices.Concat([]byte{0x1e}, data, []byte{'\n'}), nil
}
