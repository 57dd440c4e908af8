// Package bootlog is the boot log in the partition sealroot-log: what the next
// boot should know about boots that never reached the state partition. It is a
// hint only; a lost or forged log costs a try at most.
//
// The partition is 1 MiB and holds two records, at 0 and at 512 KiB. A record
// is a header of 32 bytes, all numbers little-endian, and a JSON object:
//
//	 0  8 bytes  "SEALRLOG"
//	 8  u32      version of this header, 1
//	12  u32      length of the JSON in bytes
//	16  u64      sequence number; the valid record with the higher one counts
//	24  u32      CRC-32C of the header with this field zero, and the JSON
//	28  u32      zero
//
// A new record overwrites the one that does not count, and is then synced.
package bootlog

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"

	"sealroot/slots"
)

const (
	// PartitionSize is the size of the partition in bytes.
	PartitionSize = 1 << 20
	// MaxReports is how many boot reports are kept, the newest ones.
	MaxReports = 10
	// MaxReport is how long one of them may be, in bytes.
	MaxReport = 32 << 10

	half       = PartitionSize / 2
	headerSize = 32
	maxPayload = half - headerSize
	maxDetail  = 500 // bytes, as maxReason
	maxReason  = 64
	magic      = "SEALRLOG"
	version    = 1
	// a higher sequence number than this is not ours and could end the count
	maxSequence = 1 << 62
)

var (
	// ErrUnreadable: neither record is valid, and the partition is not blank.
	// An empty record comes with it.
	ErrUnreadable = errors.New("boot log is unreadable")
	// ErrFormat: this is not a valid record.
	ErrFormat = errors.New("bad boot log record")
	// ErrTooLarge: the record does not fit.
	ErrTooLarge = errors.New("boot log record too large")
)

// Device is the open partition.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Failure is the last failure of a slot.
type Failure struct {
	Reason slots.Reason `json:"reason"`
	Class  slots.Class  `json:"class"`
	Detail string       `json:"detail,omitempty"`
	BootID string       `json:"boot_id,omitempty"`
	Above  string       `json:"above,omitempty"` // see slots.Failure.Above
}

// Record is the content of the log. Fields of a newer version survive.
type Record struct {
	Armed    string             // slot the loader's one-shot was armed for
	Failures map[string]Failure // last failure of each slot
	Pauses   int                // last resorts and failed boots in a row
	Told     string             // the fallback that was told of last
	Reports  []json.RawMessage  // boot reports, oldest first

	unknown map[string]json.RawMessage
}

// fields is the JSON form of what we know.
type fields struct {
	Armed    string             `json:"armed"`
	Failures map[string]Failure `json:"failures,omitempty"`
	Pauses   int                `json:"pauses"`
	Told     string             `json:"told,omitempty"`
	Reports  []json.RawMessage  `json:"reports,omitempty"`
}

// UnmarshalJSON keeps unknown members for the next write.
func (r *Record) UnmarshalJSON(b []byte) error {
	var f fields
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return err
	}
	for _, known := range []string{"armed", "failures", "pauses", "told", "reports"} {
		delete(all, known)
	}
	*r = Record{Armed: f.Armed, Failures: f.Failures, Pauses: min(max(f.Pauses, 0), 1000), Told: f.Told, Reports: f.Reports, unknown: all}
	return nil
}

// MarshalJSON writes what we know beside what we kept.
func (r Record) MarshalJSON() ([]byte, error) {
	b, err := json.Marshal(fields{r.Armed, r.Failures, r.Pauses, r.Told, r.Reports})
	if err != nil {
		return nil, err
	}
	all := map[string]json.RawMessage{}
	for k, v := range r.unknown {
		all[k] = v
	}
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, err
	}
	return json.Marshal(all)
}

// Apply returns the record with a change made; bootID goes with the failures.
func (r Record) Apply(c slots.LogChange, bootID string) Record {
	for _, slot := range c.Forget {
		r = r.Forget(slot)
	}
	for _, slot := range c.Clear {
		r = r.Clear(slot)
	}
	if c.SetArmed {
		r.Armed = c.Armed
	}
	if c.SetPauses {
		r.Pauses = c.Pauses
	}
	if len(c.Failures) > 0 {
		m := map[string]Failure{}
		for k, v := range r.Failures {
			m[k] = v
		}
		for _, f := range c.Failures {
			if f.Above == "" && !f.ByHand() {
				f.Above = m[f.Slot].Above // lowered before; the place is still owed
			}
			m[f.Slot] = Failure{f.Reason, f.Class, cut(f.Detail, maxDetail), bootID, f.Above}
			if slots.ToldOf(r.Told, f.Slot) {
				r.Told = ""
			}
		}
		r.Failures = m
	}
	if c.Told != "" {
		r.Told = c.Told
	}
	return r
}

// Forget returns the record without anything about one slot's content: what
// Clear drops, and that others stood above it. An update of the slot begins so.
func (r Record) Forget(slot string) Record {
	r = r.Clear(slot)
	for k, f := range r.Failures { // the map is Clear's own
		above := slices.DeleteFunc(strings.Split(f.Above, ","), func(s string) bool { return s == slot })
		f.Above = strings.Join(above, ",")
		r.Failures[k] = f
	}
	return r
}

// Clear returns the record without the slot's last failure, that the one-shot
// was armed for it, and that a fallback from it was told: it has proved good.
func (r Record) Clear(slot string) Record {
	m := map[string]Failure{}
	for k, v := range r.Failures {
		if k != slot {
			m[k] = v
		}
	}
	r.Failures = m
	if r.Armed == slot {
		r.Armed = ""
	}
	if slots.ToldOf(r.Told, slot) {
		r.Told = ""
	}
	return r
}

// AddReport returns the record with a boot report (a JSON value of at most
// MaxReport bytes) added, and the oldest ones dropped beyond MaxReports.
func (r Record) AddReport(report []byte) (Record, error) {
	if !json.Valid(report) {
		return Record{}, fmt.Errorf("cannot add a boot report: %w", ErrFormat)
	}
	if len(report) > MaxReport {
		return Record{}, fmt.Errorf("cannot add a boot report of %d bytes: %w", len(report), ErrTooLarge)
	}
	all := append(append([]json.RawMessage(nil), r.Reports...), append(json.RawMessage(nil), report...))
	r.Reports = all[max(0, len(all)-MaxReports):]
	return r, nil
}

// SlotFailures is Failures as the state machine takes them. Anybody may have
// written them: texts are cut and free of control characters, and a failure of a
// class that is not known is left out.
func (r Record) SlotFailures() map[string]slots.Failure {
	m := map[string]slots.Failure{}
	for k, f := range r.Failures {
		switch f.Class {
		case slots.ImageFailure, slots.EnvironmentFailure, slots.StateFailure:
			m[k] = slots.Failure{Slot: k, Class: f.Class, Reason: slots.Reason(oneLine(string(f.Reason), maxReason)), Detail: oneLine(f.Detail, maxDetail), Above: f.Above}
		}
	}
	return m
}

// oneLine is the first n bytes of s, without control characters.
func oneLine(s string, n int) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, cut(s, n))
}

func cut(s string, n int) string { return s[:min(len(s), n)] }

// encode returns header and JSON.
func encode(r Record, sequence uint64) ([]byte, error) {
	payload, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("cannot encode the boot log: %w", err)
	}
	if len(payload) > maxPayload {
		return nil, fmt.Errorf("cannot encode the boot log: %w", ErrTooLarge)
	}
	b := make([]byte, headerSize, headerSize+len(payload))
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[8:], version)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(payload)))
	binary.LittleEndian.PutUint64(b[16:], sequence)
	b = append(b, payload...)
	binary.LittleEndian.PutUint32(b[24:], checksum(b))
	return b, nil
}

func checksum(b []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(0, table, b[:24])
	sum = crc32.Update(sum, table, make([]byte, 4))
	return crc32.Update(sum, table, b[28:])
}

// decode reads the record at off.
func decode(r io.ReaderAt, off int64) (Record, uint64, error) {
	h := make([]byte, headerSize)
	if n, err := r.ReadAt(h, off); n < len(h) {
		return Record{}, 0, fmt.Errorf("cannot read the boot log record at %d: %w", off, err)
	}
	n := binary.LittleEndian.Uint32(h[12:])
	sequence := binary.LittleEndian.Uint64(h[16:])
	if string(h[:8]) != magic || binary.LittleEndian.Uint32(h[8:]) != version || n > maxPayload || sequence > maxSequence {
		return Record{}, 0, fmt.Errorf("cannot read the boot log record at %d: %w", off, ErrFormat)
	}
	b := append(h, make([]byte, n)...)
	if got, err := r.ReadAt(b[headerSize:], off+headerSize); got < int(n) {
		return Record{}, 0, fmt.Errorf("cannot read the boot log record at %d: %w", off, err)
	}
	if checksum(b) != binary.LittleEndian.Uint32(b[24:]) {
		return Record{}, 0, fmt.Errorf("cannot read the boot log record at %d: checksum: %w", off, ErrFormat)
	}
	var rec Record
	if err := json.Unmarshal(b[headerSize:], &rec); err != nil {
		return Record{}, 0, fmt.Errorf("cannot read the boot log record at %d: %w: %w", off, ErrFormat, err)
	}
	return rec, sequence, nil
}
