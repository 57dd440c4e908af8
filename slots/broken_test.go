package slots

import (
	"errors"
	"slices"
	"testing"
)

// A default that cannot be set says nothing against the slot that has arrived.
func TestFailedDefaultAccusesNobody(t *testing.T) {
	broken := errors.New("NVRAM is full")
	o := Observed{
		Slots: parse(t, "a 1/0+ b 2/0+"), Loaded: "b", LogReadable: true, Armed: "b",
		Hint: HintState{Known: true, Supported: true},
	}
	d, err := Decide(o)
	if err != nil || d.SetDefault != "b" {
		t.Fatalf("got default %q, %v, want b", d.SetDefault, err)
	}
	var trace []string
	f := failing{map[string]error{"default": broken}, &trace}
	err = Apply(d, f, f, f)
	if !errors.Is(err, ErrDefault) || !errors.Is(err, broken) || errors.Is(err, ErrHint) {
		t.Errorf("got %v, want ErrDefault", err)
	}
	if want := []string{"default", "record armed "}; !slices.Equal(trace, want) {
		t.Errorf("got %q, want %q: the record would accuse slot b", trace, want)
	}
}

// The kernel of a slot that the store does not know is nobody's own.
func TestKernelOfASlotThatTheStoreDoesNotKnow(t *testing.T) {
	for loaded, own := range map[string]bool{"a": false, "b": true, UnknownKernel: true, "": false} {
		d, err := Decide(Observed{Slots: parse(t, "a 1/0+"), Loaded: loaded, LogReadable: true})
		if err != nil || d.NeedOwnKernel != own {
			t.Errorf("%q: own kernel needed %v, %v, want %v", loaded, d.NeedOwnKernel, err, own)
		}
	}
}

// Commit saves what is right already: a store with a damaged copy mends it then.
func TestCommitLetsTheStoreMend(t *testing.T) {
	s := &countingStore{list: parse(t, "a 1/0+")}
	if err := CommitNow(Commitment{Running: "a", Loaded: "a"}, s, nil, nil); err != nil || s.saves != 1 {
		t.Errorf("%d saves, %v, want 1", s.saves, err)
	}
}

type countingStore struct {
	list  []Slot
	saves int
}

func (s *countingStore) Load() ([]Slot, error) { return slices.Clone(s.list), nil }
func (s *countingStore) Save([]Slot) error     { s.saves++; return nil }

// A commit under another kernel arms nothing that the log cannot remember.
func TestCommitArmsNothingWithoutARecord(t *testing.T) {
	for _, broken := range []part{toImage, toLog} {
		d := &disk{n: 2, broken: broken}
		copy(d.slot[:], parse(t, "a 2/0+ b 1/0+"))
		d.def, d.readable, d.pauses = "b", true, 1
		err := CommitNow(Commitment{Running: "a", Loaded: "b"}, fakeStore{d}, fakeLoader{d}, fakeLog{d})
		if want := broken == toLog; errors.Is(err, ErrLog) != want || (d.hint == "") != want {
			t.Errorf("log fails %v: %v, one-shot %q", want, err, d.hint)
		}
	}
}

// The kernel of slot a has no driver for any root; that of slot b has. What
// looks like a fault of the machine ends when b's own is asked for.
func TestLastResortTriesAnotherKernel(t *testing.T) {
	for _, refill := range []int{0, 2} {
		m := machine{n: 2, oneShot: true, refill: refill, blind: "a", rules: rightRules()}
		d := &disk{n: 2}
		copy(d.slot[:], parse(t, "a 2/2+ b 1/2+"))
		d.def, d.readable = "a", true
		var ran []string
		for range 12 {
			out := m.boot(d, nothing)
			if out.running == "" {
				continue
			}
			ran = append(ran, out.running)
			commitEvent(m, d, out)
		}
		if len(ran) < 3 || ran[0] != "b" {
			t.Errorf("recount %d: ran %q in 12 boots, want slot b again and again", refill, ran)
		}
		if a := d.slot[0]; !a.Successful || a.Priority < d.slot[1].Priority {
			t.Errorf("recount %d: slot a lost its place: %v", refill, d.slots())
		}
	}
}
