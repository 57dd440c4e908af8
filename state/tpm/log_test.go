package tpm_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/tpmtest"
)

// markedLog remembers whether the log is marked as incomplete.
type markedLog struct {
	bytes.Buffer
	marks []bool
}

func (l *markedLog) log() *tpm.Log {
	return &tpm.Log{W: l, Now: func() time.Duration { return time.Second }, Incomplete: func(on bool) error {
		l.marks = append(l.marks, on)
		return nil
	}}
}

// The log of a whole boot, replayed, gives in every bank the values that
// tpm2_pcrread prints, whichever way the PCRs were closed.
func TestLogReplays(t *testing.T) {
	for _, tt := range []struct {
		name  string
		banks string
		fails tpm2.TPMCC
	}{
		{"every_bank", "sha1,sha256,sha384,sha512", 0},
		{"two_banks", "sha1,sha384", 0},
		{"closed_by_events", "sha1,sha256", tpm2.TPMCCPCRExtend},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := tpmtest.StartWithBanks(t, tt.banks)
			chip := tpm.New(m)
			banks, err := chip.ActiveBanks(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var l markedLog
			root := pcrsig.RootEvent(pcrsig.RoleRoot, make([]byte, 32), 3)
			for _, e := range []tpm.Event{
				{PCR: 11, Data: []byte(pcrsig.PhaseEnterInitrd), Text: pcrsig.PhaseEnterInitrd, Type: "phase"},
				{PCR: 13, Data: []byte(root), Text: root},
				{PCR: 15, Data: []byte("key"), Text: "volume"},
				{PCR: 11, Data: []byte(pcrsig.PhaseLeaveInitrd), Text: pcrsig.PhaseLeaveInitrd, Type: "phase"},
			} {
				if err := chip.Measure(t.Context(), e, l.log()); err != nil {
					t.Fatal(err)
				}
			}
			closing := chip
			if tt.fails != 0 {
				closing = tpm.New(refusing{Machine: m, cc: tt.fails})
			}
			if _, err := closing.Cap(t.Context(), l.log(), 11, 15); err != nil {
				t.Fatal(err)
			}
			for _, bank := range banks {
				values, err := tpmtest.Replay(l.Bytes(), bank, nil)
				if err != nil {
					t.Fatal(err)
				}
				for _, pcr := range []int{11, 13, 15} {
					if got, want := hex.EncodeToString(values[pcr]), toolPCR(m, bank, pcr); got != want {
						t.Errorf("PCR %d of bank %s: the log gives %s, tpm2_pcrread says %s", pcr, bank, got, want)
					}
				}
			}
			if len(l.marks) != 12 || l.marks[len(l.marks)-1] {
				t.Errorf("marks %v, want on and off for each of 6 events", l.marks)
			}
		})
	}
}

// A log that may lack a measurement says so.
func TestLogStaysMarked(t *testing.T) {
	m := tpmtest.Start(t)
	for _, cc := range []tpm2.TPMCC{tpm2.TPMCCPCRExtend, tpm2.TPMCCGetCapability} {
		var l markedLog
		chip := tpm.New(refusing{Machine: m, cc: cc})
		if err := chip.Measure(t.Context(), tpm.Event{PCR: 13, Data: []byte("x")}, l.log()); err == nil || errors.Is(err, tpm.ErrLog) {
			t.Errorf("command %#x fails: got %v", uint32(cc), err)
		}
		if !slices.Equal(l.marks, []bool{true}) || l.Len() > 0 {
			t.Errorf("command %#x fails: marks %v, log %q, want a marked empty log", uint32(cc), l.marks, &l.Buffer)
		}
	}
	var l markedLog
	if _, err := tpm.New(refusing{Machine: m, cc: tpm2.TPMCCGetCapability}).Cap(t.Context(), l.log(), 11); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(l.marks, []bool{true}) || l.Len() > 0 {
		t.Errorf("banks cannot be listed: marks %v, log %q, want a marked empty log", l.marks, &l.Buffer)
	}
}

// refusingWriter fails at its first use.
type refusingWriter struct{ failed bool }

func (w *refusingWriter) Write(p []byte) (int, error) {
	if !w.failed {
		w.failed = true
		return 0, errors.New("no space")
	}
	return len(p), nil
}

// The mark of a log that lacks a record stays, whatever is recorded later: the log
// replayed gives another PCR.
func TestMarkOfALostRecordStays(t *testing.T) {
	m := tpmtest.Start(t)
	event := tpm.Event{PCR: 13, Data: []byte("x")}
	for _, tt := range []struct {
		name  string
		first func(l *tpm.Log) error
		marks []bool
	}{
		{"control", func(l *tpm.Log) error {
			l.W.(*refusingWriter).failed = true
			return tpm.New(m).Measure(t.Context(), event, l)
		}, []bool{true, false, true, false, true, false}},
		{"not_written", func(l *tpm.Log) error {
			if err := tpm.New(m).Measure(t.Context(), event, l); !errors.Is(err, tpm.ErrLog) {
				return fmt.Errorf("got %w, want ErrLog", err)
			}
			return nil
		}, []bool{true, true, true}},
		{"not_known_whether_extended", func(l *tpm.Log) error {
			l.W.(*refusingWriter).failed = true
			if err := tpm.New(refusing{Machine: m, cc: tpm2.TPMCCPCRExtend}).Measure(t.Context(), event, l); err == nil {
				return errors.New("extended")
			}
			return nil
		}, []bool{true, true, true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var l markedLog
			log := l.log()
			log.W = &refusingWriter{}
			if err := tt.first(log); err != nil {
				t.Fatal(err)
			}
			if err := tpm.New(m).Measure(t.Context(), event, log); err != nil {
				t.Fatal(err)
			}
			if _, err := tpm.New(m).Cap(t.Context(), log, 15); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(l.marks, tt.marks) {
				t.Errorf("marks %v, want %v", l.marks, tt.marks)
			}
		})
	}
}

// A record that leaves a bank out is found by who replays the log.
func TestReplayRedControl(t *testing.T) {
	record := "\x1e" + `{"pcr":13,"digests":[{"hashAlg":"sha1","digest":"0000000000000000000000000000000000000000"}]}` + "\n"
	if _, err := tpmtest.Replay([]byte(record), pcrsig.SHA1, nil); err != nil {
		t.Error(err)
	}
	if v, err := tpmtest.Replay([]byte(record), pcrsig.SHA256, nil); err == nil {
		t.Errorf("bank sha256 was not extended, got %x", v)
	}
}
