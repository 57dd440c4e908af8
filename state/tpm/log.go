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
	// Incomplete marks the log while a PCR may be ahead of it, as systemd does
	// with the sticky bit of the file; nil when there is nothing to mark.
	Incomplete func(bool) error

	missing int // extends, done or tried, that have no record
}

// begin marks the log before a PCR is extended.
func (l *Log) begin() error {
	if l == nil {
		return nil
	}
	l.missing++
	if l.Incomplete == nil {
		return nil
	}
	return l.Incomplete(true)
}

// end appends the record of an extend and takes the mark away again, unless
// an earlier one has no record. Errors are ErrLog; the mark stays then, for good.
func (l *Log) end(e Event, digests map[Bank][]byte) error {
	if l == nil {
		return nil
	}
	record, err := l.record(e, digests)
	if err != nil {
		return err
	}
	if _, err = l.W.Write(record); err == nil {
		l.missing--
		if l.missing == 0 && l.Incomplete != nil {
			err = l.Incomplete(false)
		}
	}
	if err != nil {
		return fmt.Errorf("%w: PCR %d: %w", ErrLog, e.PCR, err)
	}
	return nil
}

// endWord is end for a word whose digests the TPM has computed itself.
func (l *Log) endWord(pcr int, word string, banks []Bank) error {
	digests := make(map[Bank][]byte, len(banks))
	for _, bank := range banks {
		var err error
		if digests[bank], err = bank.Digest([]byte(word)); err != nil {
			return err
		}
	}
	return l.end(Event{PCR: pcr, Text: word, Type: "phase"}, digests)
}

// Measure extends every active bank with the digest of e.Data and appends a
// record to log (nil: none). When only the record fails the error is an ErrLog:
// the PCR has its new value.
func (t *TPM) Measure(ctx context.Context, e Event, log *Log) error {
	marked := log.begin()
	digests, err := t.extend(ctx, e.PCR, e.Data, true)
	if err != nil {
		return err
	}
	if err := log.end(e, digests); err != nil {
		return err
	}
	if marked != nil {
		return fmt.Errorf("%w: PCR %d: %w", ErrLog, e.PCR, marked)
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
