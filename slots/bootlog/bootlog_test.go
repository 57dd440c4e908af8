package bootlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"sealroot/slots"
	"sealroot/slots/slotstest"
)

func newLog(t *testing.T) (*slotstest.Disk, Log) {
	t.Helper()
	d := slotstest.NewDisk(make([]byte, PartitionSize))
	if err := Format(d); err != nil {
		t.Fatal(err)
	}
	return d, Log{d, "boot-1"}
}

func TestBlankPartitionIsEmpty(t *testing.T) {
	l := Log{Dev: slotstest.NewDisk(make([]byte, PartitionSize))}
	if r, err := l.Load(); err != nil || r.Armed != "" {
		t.Errorf("got %+v, %v, want an empty record", r, err)
	}
	small := Log{Dev: slotstest.NewDisk(make([]byte, 512))}
	if _, err := small.Load(); !errors.Is(err, ErrUnreadable) {
		t.Errorf("small partition: got %v, want ErrUnreadable", err)
	}
}

func TestDamagedPartitionIsUnreadable(t *testing.T) {
	l := Log{Dev: slotstest.NewDisk(bytes.Repeat([]byte{0xff}, PartitionSize))}
	r, err := l.Load()
	if !errors.Is(err, ErrUnreadable) || r.Armed != "" || r.Failures != nil {
		t.Errorf("got %+v, %v, want an empty record and ErrUnreadable", r, err)
	}
	if err := l.Record(slots.LogChange{SetArmed: true, Armed: "b"}); err != nil {
		t.Fatal(err)
	}
	if r, err := l.Load(); err != nil || r.Armed != "b" {
		t.Errorf("after a record: got %+v, %v, want b armed", r, err)
	}
}

func TestRecord(t *testing.T) {
	d, l := newLog(t)
	change := slots.LogChange{SetArmed: true, Armed: "b", SetPauses: true, Pauses: 2,
		Failures: []slots.Failure{{Slot: "b", Class: slots.ImageFailure, Reason: slots.Verity, Detail: "block 7"}}}
	if err := l.Record(change); err != nil {
		t.Fatal(err)
	}
	r, err := l.Load()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r.Failures["b"], (Failure{slots.Verity, slots.ImageFailure, "block 7", "boot-1", ""}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := r.SlotFailures()["b"].String(); got != "slot b: hash tree does not match: block 7" {
		t.Errorf("got %q", got)
	}
	before := d.Ops()
	if err := l.Record(change); err != nil || d.Ops() != before {
		t.Errorf("the same again: %v, %d operations, want none", err, d.Ops()-before)
	}
	if err := l.Record(slots.LogChange{Forget: []string{"b"}}); err != nil {
		t.Fatal(err)
	}
	if r, _ := l.Load(); r.Armed != "" || len(r.Failures) != 0 || r.Pauses != 2 {
		t.Errorf("after Forget: got %+v", r)
	}
}

// What is told, and the place that a lowered slot had, live as long as they are
// true.
func TestToldAndAbove(t *testing.T) {
	lowered := slots.Failure{Slot: "b", Class: slots.ImageFailure, Reason: slots.Verity, Above: "a,c"}
	told := Record{}.Apply(slots.LogChange{Failures: []slots.Failure{lowered}, Told: "b verity"}, "boot-1")
	for _, tt := range []struct {
		name  string
		c     slots.LogChange
		told  string
		above string
	}{
		{"nothing", slots.LogChange{SetPauses: true}, "b verity", "a,c"},
		{"told_of_another_one", slots.LogChange{Told: "c no-commit"}, "c no-commit", "a,c"},
		{"failed_again", slots.LogChange{Failures: []slots.Failure{{Slot: "b", Class: slots.EnvironmentFailure, Reason: slots.IOError}}}, "", "a,c"},
		{"lowered_by_hand", slots.LogChange{Failures: []slots.Failure{{Slot: "b", Class: slots.ImageFailure, Reason: slots.Manual}}}, "", ""},
		{"proved_good", slots.LogChange{Clear: []string{"b"}}, "", ""},
		{"gets_another_image", slots.LogChange{Forget: []string{"b"}}, "", ""},
		{"another_slot_proved_good", slots.LogChange{Clear: []string{"a"}}, "b verity", "a,c"},
		{"another_slot_gets_another_image", slots.LogChange{Forget: []string{"a"}}, "b verity", "c"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, l := newLog(t)
			if err := l.Save(told.Apply(tt.c, "boot-2")); err != nil {
				t.Fatal(err)
			}
			r, err := l.Load()
			if err != nil {
				t.Fatal(err)
			}
			if r.Told != tt.told || r.SlotFailures()["b"].Above != tt.above {
				t.Errorf("told %q, above %q; want %q and %q", r.Told, r.SlotFailures()["b"].Above, tt.told, tt.above)
			}
		})
	}
}

// The log is on the disk, where anybody may have written it.
func TestFailuresOfOthersAreCutAndCleaned(t *testing.T) {
	var r Record
	text := fmt.Sprintf(`{"failures":{
		"a":{"class":"image","reason":"verity","detail":"block 7: né"},
		"b":{"class":"state","reason":"\u001b[2J%s","detail":"\u009b2J\n%s"},
		"c":{"class":"other","reason":"verity"}}}`, strings.Repeat("r", 5000), strings.Repeat("é", 5000))
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	got := r.SlotFailures()
	if want := (slots.Failure{Slot: "a", Class: slots.ImageFailure, Reason: slots.Verity, Detail: "block 7: né"}); got["a"] != want {
		t.Errorf("got %+v, want %+v", got["a"], want)
	}
	b := got["b"]
	for _, s := range []string{string(b.Reason), b.Detail} {
		// two bytes more: a letter that was cut in half became U+FFFD
		if s == "" || len(s) > maxDetail+2 || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
			t.Errorf("%d bytes: %q", len(s), s)
		}
	}
	if len(b.Reason) > maxReason+2 {
		t.Errorf("a reason of %d bytes", len(b.Reason))
	}
	if f, ok := got["c"]; ok {
		t.Errorf("a failure of an unknown class: %+v", f)
	}
	if _, kept := r.Failures["c"]; !kept {
		t.Error("the record of a newer version is lost")
	}
}

func TestUnknownFieldsSurvive(t *testing.T) {
	_, l := newLog(t)
	var r Record
	if err := json.Unmarshal([]byte(`{"armed":"b","future":{"x":[1,2]}}`), &r); err != nil {
		t.Fatal(err)
	}
	if err := l.Save(r); err != nil {
		t.Fatal(err)
	}
	if err := l.Record(slots.LogChange{SetArmed: true}); err != nil {
		t.Fatal(err)
	}
	r, err := l.Load()
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(r)
	if err != nil || !strings.Contains(string(b), `"future":{"x":[1,2]}`) || r.Armed != "" {
		t.Errorf("got %s, %v", b, err)
	}
}

func TestReportsAreBounded(t *testing.T) {
	_, l := newLog(t)
	var r Record
	for i := range MaxReports + 3 {
		var err error
		r, err = r.AddReport(fmt.Appendf(nil, `{"n":%d}`, i))
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(r.Reports) != MaxReports || string(r.Reports[0]) != `{"n":3}` {
		t.Errorf("got %d reports from %s on", len(r.Reports), r.Reports[0])
	}
	if err := l.Save(r); err != nil {
		t.Fatal(err)
	}
	if got, err := l.Load(); err != nil || len(got.Reports) != MaxReports {
		t.Errorf("got %d reports, %v", len(got.Reports), err)
	}
	if _, err := r.AddReport([]byte("{")); !errors.Is(err, ErrFormat) {
		t.Errorf("half a report: got %v, want ErrFormat", err)
	}
	big := []byte(`"` + strings.Repeat("x", MaxReport) + `"`)
	if _, err := r.AddReport(big); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large report: got %v, want ErrTooLarge", err)
	}
}

func TestPowerCutAtEveryWrite(t *testing.T) {
	for cut := range 4 {
		d, l := newLog(t)
		if err := l.Record(slots.LogChange{SetArmed: true, Armed: "a"}); err != nil {
			t.Fatal(err)
		}
		d.CutAfter(cut)
		err := l.Record(slots.LogChange{SetArmed: true, Armed: "b", Failures: []slots.Failure{{Slot: "b", Detail: strings.Repeat("x", 400)}, {Slot: "a", Detail: strings.Repeat("y", 400)}}})
		if (err == nil) != (cut >= 2) {
			t.Fatalf("cut after %d: got %v", cut, err)
		}
		for _, b := range d.Outcomes(20, uint64(cut)) {
			r, loadErr := Log{Dev: slotstest.NewDisk(b)}.Load()
			if loadErr != nil || r.Armed != "a" && r.Armed != "b" || err == nil && r.Armed != "b" {
				t.Errorf("cut after %d: got armed %q, %v", cut, r.Armed, loadErr)
			}
		}
	}
}

func TestOneDamagedCopy(t *testing.T) {
	d, l := newLog(t)
	for _, s := range []string{"a", "b"} {
		if err := l.Record(slots.LogChange{SetArmed: true, Armed: s}); err != nil {
			t.Fatal(err)
		}
	}
	// three records were written, so the first copy counts
	for off, want := range map[int]string{40: "a", half + 40: "b"} {
		b := d.Bytes()
		b[off] ^= 1
		if r, err := (Log{Dev: slotstest.NewDisk(b)}).Load(); err != nil || r.Armed != want {
			t.Errorf("damage at %d: got %q, %v, want %q", off, r.Armed, err, want)
		}
	}
}

func FuzzLoad(f *testing.F) {
	good, err := encode(Record{Armed: "b", Failures: map[string]Failure{"a": {Reason: slots.Mount}}}, 7)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, false)
	f.Add([]byte(`{"pauses":-1,"reports":[null]}`), true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, b []byte, wrap bool) {
		if wrap && len(b) < maxPayload {
			// a right checksum, so that the JSON is reached
			head, err := encode(Record{}, 1)
			if err != nil {
				t.Fatal(err)
			}
			head = append(head[:headerSize:headerSize], b...)
			head[12], head[13], head[14], head[15] = byte(len(b)), byte(len(b)>>8), byte(len(b)>>16), 0
			clear(head[24:28])
			sum := checksum(head)
			head[24], head[25], head[26], head[27] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
			b = head
		}
		r, _, err := decode(bytes.NewReader(b), 0)
		if err != nil {
			if r.Armed != "" || r.Failures != nil || r.Reports != nil || r.unknown != nil || r.Pauses != 0 {
				t.Fatal("error with a value")
			}
			return
		}
		if _, err := encode(r, 1); err != nil && !errors.Is(err, ErrTooLarge) {
			t.Fatalf("what was read cannot be written: %v", err)
		}
	})
}
