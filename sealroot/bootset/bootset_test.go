package bootset

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"sealroot/slots"
)

var errCut = errors.New("power cut")

// disk is everything that commit and try write, with the power cut before one
// of the writes. trace names the writes that were made.
type disk struct {
	slots  []slots.Slot
	once   string
	places [3]string // what the places start
	armed  string
	failed []string // slots with a failure on record
	cut    int      // writes that still succeed; -1: all
	trace  []string
}

func (d *disk) write(what string, change func()) error {
	if d.cut == 0 {
		return errCut
	}
	d.cut--
	d.trace = append(d.trace, what)
	change()
	return nil
}

type store struct{ *disk }

func (s store) Load() ([]slots.Slot, error) { return slices.Clone(s.slots), nil }
func (s store) Save(l []slots.Slot) error {
	if slices.Equal(l, s.slots) {
		return nil // as every store
	}
	return s.write("slots", func() { s.slots = slices.Clone(l) })
}

type hint struct{ *disk }

func (h hint) Get() (string, error)  { return h.once, nil }
func (h hint) Arm(slot string) error { return h.write("arm "+slot, func() { h.once = slot }) }
func (h hint) Clear() error          { return h.write("clear", func() { h.once = "" }) }

type place struct {
	*disk
	n int
}

func (p place) Name() string { return fmt.Sprint("place ", p.n) }
func (p place) IsDefault(slot string) (bool, error) {
	return p.places[p.n] == slot, nil
}
func (p place) SetDefault(slot string) error {
	return p.write(p.Name()+" "+slot, func() { p.places[p.n] = slot })
}

type log struct{ *disk }

func (l log) Record(c slots.LogChange) error {
	armed := l.armed
	if c.SetArmed {
		armed = c.Armed
	}
	gone := append(slices.Clone(c.Forget), c.Clear...)
	if slices.Contains(gone, armed) {
		armed = ""
	}
	failed := slices.DeleteFunc(slices.Clone(l.failed), func(s string) bool { return slices.Contains(gone, s) })
	for _, f := range c.Failures {
		if !slices.Contains(failed, f.Slot) {
			failed = append(failed, f.Slot)
		}
	}
	if armed == l.armed && slices.Equal(failed, l.failed) {
		return nil
	}
	return l.write("log", func() { l.armed, l.failed = armed, failed })
}

func (d *disk) machine() Machine {
	return Machine{
		Store: store{d}, Log: log{d}, HoldsImage: func(string) error { return nil },
		Loader: Loader{Hint: hint{d}, Places: []Place{place{d, 0}, place{d, 1}, place{d, 2}}},
	}
}

func (d *disk) copy() *disk {
	c := *d
	c.slots, c.failed, c.trace, c.cut = slices.Clone(d.slots), slices.Clone(d.failed), nil, -1
	return &c
}

func (d *disk) String() string {
	return fmt.Sprint(d.slots, " once ", d.once, " places ", d.places, " armed ", d.armed, " failed ", d.failed)
}

// onTrial is a machine in which slot b runs on trial for the first time.
func onTrial() *disk {
	return &disk{
		slots: []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Tries: 2}},
		once:  "b", places: [3]string{"a", "a", "a"}, armed: "b", failed: []string{"b"}, cut: -1,
	}
}

var inB = Boot{Running: "b", Loaded: "b"}

func TestCommit(t *testing.T) {
	d := onTrial()
	was, err := d.machine().Commit(inB)
	if err != nil || was {
		t.Fatalf("Commit() = %v, %v; want false, nil", was, err)
	}
	want := "[slot a: priority 1, no tries left, committed slot b: priority 2, no tries left, committed] once  places [b b b] armed  failed []"
	if got := d.String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	// the slot is committed before any loader starts it by default
	if got, want := strings.Join(d.trace, ", "), "log, slots, place 0 b, place 1 b, place 2 b, clear"; got != want {
		t.Errorf("writes: got %s, want %s", got, want)
	}
	again := d.copy()
	was, err = again.machine().Commit(inB)
	if err != nil || !was || len(again.trace) != 0 {
		t.Errorf("second Commit() = %v, %v and wrote %v; want true, nil and nothing written", was, err, again.trace)
	}
}

// TestCommitCutAnywhere cuts the power before each write of a commit: what any
// place starts by default is committed, and the next commit ends where an
// undisturbed one does.
func TestCommitCutAnywhere(t *testing.T) {
	whole := onTrial()
	if _, err := whole.machine().Commit(inB); err != nil {
		t.Fatal(err)
	}
	cuts := len(whole.trace)
	if cuts < 5 {
		t.Fatalf("a commit makes %d writes, want at least 5: %v", cuts, whole.trace)
	}
	for n := range cuts {
		d := onTrial()
		d.cut = n
		if _, err := d.machine().Commit(inB); !errors.Is(err, errCut) {
			t.Errorf("cut after %d: got error %v, want %v", n, err, errCut)
		}
		for _, p := range d.places {
			if s, _ := slots.Find(d.slots, p); !s.Successful {
				t.Errorf("cut after %d: a place starts slot %s, which is not committed: %s", n, p, d)
			}
		}
		after := d.copy()
		if _, err := after.machine().Commit(inB); err != nil {
			t.Errorf("cut after %d: the next commit: %v", n, err)
		}
		if got, want := after.String(), whole.String(); got != want {
			t.Errorf("cut after %d, then committed:\ngot  %s\nwant %s", n, got, want)
		}
	}
}

// TestCommitOfTheStandIn: slot a runs because b's kernel died, and b is to be
// tried again; a's unit commits at each boot and must not take that away.
func TestCommitOfTheStandIn(t *testing.T) {
	d := onTrial()
	was, err := d.machine().Commit(Boot{Running: "a", Loaded: "a"})
	if err != nil || !was || len(d.trace) != 0 {
		t.Errorf("Commit() = %v, %v and wrote %v; want true, nil and nothing written", was, err, d.trace)
	}
}

func TestCommitOnAnotherKernel(t *testing.T) {
	d := onTrial()
	if _, err := d.machine().Commit(Boot{Running: "b", Loaded: "a"}); err != nil {
		t.Fatal(err)
	}
	if d.places != [3]string{"a", "a", "a"} {
		t.Errorf("places start %v, want a: the kernel of b was not seen to work", d.places)
	}
}

func TestCommitRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		boot Boot
	}{
		{"degraded", Boot{Running: "b", Loaded: "b", Degraded: true}},
		{"etc_in_memory", Boot{Running: "b", Loaded: "b", Trial: true, EtcInMemory: true}},
		{"a_trial_that_kexec_started", Boot{Running: "b", Loaded: "b", Trial: true, Kexec: true}},
		{"running_slot_unknown", Boot{Loaded: "b"}},
		{"slot_not_on_disk", Boot{Running: "c", Loaded: "c"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := onTrial()
			if _, err := d.machine().Commit(c.boot); !errors.Is(err, ErrRefused) {
				t.Errorf("got error %v, want %v", err, ErrRefused)
			}
			if len(d.trace) != 0 {
				t.Errorf("wrote %v, want nothing", d.trace)
			}
		})
	}
}

// brokenPlace cannot be read.
type brokenPlace struct{ place }

func (brokenPlace) IsDefault(string) (bool, error) { return false, errCut }
func (brokenPlace) SetDefault(string) error        { return errCut }

// damagedPlace cannot be read until it is set.
type damagedPlace struct{ place }

func (p damagedPlace) IsDefault(slot string) (bool, error) {
	if p.places[p.n] == "damaged" {
		return false, errors.New("bad format")
	}
	return p.place.IsDefault(slot)
}

func TestCommitMendsADamagedPlace(t *testing.T) {
	d := onTrial()
	d.places[0] = "damaged"
	m := d.machine()
	m.Loader = Loader{Hint: hint{d}, Places: []Place{damagedPlace{place{d, 0}}}}
	if _, err := m.Commit(inB); err != nil || d.places[0] != "b" {
		t.Errorf("Commit() = %v, the place starts %s; want nil, b", err, d.places[0])
	}
}

// TestCommitWithoutOneShot: what needs no variables of the firmware is set, and a
// kernel that nobody can be asked for is not recorded as asked for.
func TestCommitWithoutOneShot(t *testing.T) {
	for loaded, want := range map[string]string{"b": "b", "a": "a", "?": "a"} {
		d := onTrial()
		d.once, d.armed = "", ""
		m := d.machine()
		m.Unarmed = true
		if _, err := m.Commit(Boot{Running: "b", Loaded: loaded}); err != nil {
			t.Fatal(err)
		}
		if d.places[0] != want || d.once+d.armed != "" || !d.slots[1].Successful {
			t.Errorf("on the kernel of %s: got %s, want default %s and nothing armed", loaded, d, want)
		}
	}
}

func TestCommitGoesOnBesideABrokenPlace(t *testing.T) {
	d := onTrial()
	m := d.machine()
	m.Loader = Loader{Hint: hint{d}, Places: []Place{brokenPlace{place{d, 0}}, place{d, 1}}}
	if _, err := m.Commit(inB); !errors.Is(err, errCut) {
		t.Errorf("got error %v, want that of the place", err)
	}
	if d.places[1] != "b" || !d.slots[1].Successful {
		t.Errorf("got %s, want b committed and started by place 1", d)
	}
}

func TestPlanTry(t *testing.T) {
	empty := slots.Slot{Name: "b"}
	good := slots.Slot{Name: "a", Priority: 1, Successful: true}
	for _, c := range []struct {
		name  string
		list  []slots.Slot
		slot  string
		tries int
		hint  bool
		want  error
		rearm string
	}{
		{"new_image", []slots.Slot{good, empty}, "b", 3, true, nil, "b"},
		{"without_loader", []slots.Slot{good, empty}, "b", 3, false, nil, ""},
		{"running_slot", []slots.Slot{good, empty}, "a", 3, true, ErrRefused, ""},
		{"no_such_slot", []slots.Slot{good, empty}, "x", 3, true, ErrUsage, ""},
		{"no_tries", []slots.Slot{good, empty}, "b", 0, true, ErrUsage, ""},
		{"too_many_tries", []slots.Slot{good, empty}, "b", 16, true, ErrUsage, ""},
		{"only_committed_slot", []slots.Slot{{Name: "a", Priority: 1, Tries: 1}, {Name: "b", Priority: 2, Successful: true}}, "b", 3, true, ErrRefused, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := PlanTry(c.list, Boot{Running: "a", Loaded: "a"}, c.slot, c.tries, c.hint)
			if !errors.Is(err, c.want) {
				t.Fatalf("got error %v, want %v", err, c.want)
			}
			if err != nil {
				if d.Slots != nil {
					t.Errorf("got a plan beside an error: %+v", d)
				}
				return
			}
			if s, _ := slots.Find(d.Slots, "b"); s != (slots.Slot{Name: "b", Priority: 2, Tries: 3}) {
				t.Errorf("got %v, want priority 2 and 3 tries", s)
			}
			if d.Rearm != c.rearm {
				t.Errorf("one-shot for %q, want %q", d.Rearm, c.rearm)
			}
		})
	}
}

func TestTryCutAnywhere(t *testing.T) {
	start := func() *disk {
		return &disk{
			slots: []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b"}}, cut: -1,
			places: [3]string{"a", "a", "a"}, failed: []string{"b"},
		}
	}
	inA := Boot{Running: "a", Loaded: "a"}
	whole := start()
	if err := whole.machine().Try(inA, "b", 3); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(whole.trace, ", "), "log, slots, arm b, log"; got != want {
		t.Errorf("writes: got %s, want %s", got, want)
	}
	for n, which := range []error{slots.ErrLog, slots.ErrStore, slots.ErrHint, slots.ErrLog} {
		d := start()
		d.cut = n
		err := d.machine().Try(inA, "b", 3)
		if !errors.Is(err, errCut) || !errors.Is(err, which) || strings.Contains(err.Error(), "\n") {
			t.Errorf("cut after %d: got error %q, want %v: %v", n, err, which, errCut)
		}
		if on := d.slots[1].State() == slots.Trial; errors.Is(err, ErrUnarmed) != on {
			t.Errorf("cut after %d: slot b on trial: %v, and the error is %v", n, on, err)
		}
		if d.armed != "" && d.once != "b" {
			t.Errorf("cut after %d: recorded as armed and is not, an innocent try is lost: %s", n, d)
		}
		if d.once != "" && d.slots[1].State() != slots.Trial {
			t.Errorf("cut after %d: the one-shot starts a slot that is not on trial: %s", n, d)
		}
		if !d.slots[0].Successful {
			t.Errorf("cut after %d: slot a is lost: %s", n, d)
		}
	}
}

func TestTryOfAnEmptySlotIsRefused(t *testing.T) {
	d := &disk{slots: []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b"}}, cut: -1}
	m := d.machine()
	m.HoldsImage = func(string) error { return fmt.Errorf("nothing there: %w", ErrNoImage) }
	if err := m.Try(Boot{Running: "a"}, "b", 3); !errors.Is(err, ErrNoImage) {
		t.Errorf("got error %v, want %v", err, ErrNoImage)
	}
	if len(d.trace) != 0 {
		t.Errorf("wrote %v, want nothing", d.trace)
	}
}
