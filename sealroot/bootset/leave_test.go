package bootset

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"sealroot/slots"
)

func good(name string, priority int) slots.Slot {
	return slots.Slot{Name: name, Priority: priority, Successful: true}
}

func trial(name string, priority, tries int) slots.Slot {
	return slots.Slot{Name: name, Priority: priority, Tries: tries}
}

func TestPlanMarkBad(t *testing.T) {
	for _, c := range []struct {
		name  string
		list  []slots.Slot
		slot  string
		force bool
		want  []slots.Slot
		err   error
	}{
		{"trial", []slots.Slot{good("a", 1), trial("b", 2, 3)}, "b", false, []slots.Slot{good("a", 1), {Name: "b"}}, nil},
		{"committed", []slots.Slot{good("a", 1), good("b", 2)}, "b", false, []slots.Slot{good("a", 2), good("b", 1)}, nil},
		{"only_committed", []slots.Slot{good("a", 1), {Name: "b"}}, "a", false, nil, ErrRefused},
		{"only_committed_by_force", []slots.Slot{good("a", 1), {Name: "b"}}, "a", true, []slots.Slot{good("a", 1), {Name: "b"}}, nil},
		{"only_trial", []slots.Slot{{Name: "a"}, trial("b", 2, 3)}, "b", false, nil, ErrRefused},
		{"only_trial_by_force", []slots.Slot{{Name: "a"}, trial("b", 2, 3)}, "b", true, []slots.Slot{{Name: "a"}, {Name: "b"}}, nil},
		{"other_is_on_trial", []slots.Slot{good("a", 1), trial("b", 2, 3)}, "a", false, []slots.Slot{good("a", 1), trial("b", 2, 3)}, nil},
		{"bad_already", []slots.Slot{good("a", 1), {Name: "b"}}, "b", false, []slots.Slot{good("a", 1), {Name: "b"}}, nil},
		{"unknown", []slots.Slot{good("a", 1)}, "x", true, nil, ErrUsage},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := PlanMarkBad(c.list, Leave{Slot: c.slot, Force: c.force})
			if !errors.Is(err, c.err) {
				t.Fatalf("got error %v, want %v", err, c.err)
			}
			// a lowered slot may get any number below the other
			if c.name == "committed" {
				d, ok := slots.Default(got)
				if !ok || d.Name != "a" || len(got) != 2 || !got[1].Successful {
					t.Errorf("got %v, want slot a first and both committed", got)
				}
				return
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// inBoth is a machine with two committed slots, of which b runs.
func inBoth() *disk {
	return &disk{
		slots: []slots.Slot{good("a", 1), good("b", 2)}, places: [3]string{"b", "b", "b"}, cut: -1,
	}
}

func TestMarkBad(t *testing.T) {
	for _, c := range []struct {
		name  string
		disk  *disk
		want  string
		trace string
	}{
		{
			"on_trial", onTrial(),
			"[slot a: priority 1, no tries left, committed slot b: priority 0, no tries left, not bootable] once  places [a a a] armed  failed [b]",
			"log, slots, clear",
		},
		{
			"committed", inBoth(),
			"[slot a: priority 2, no tries left, committed slot b: priority 1, no tries left, committed] once  places [a a a] armed  failed [b]",
			"log, slots, place 0 a, place 1 a, place 2 a",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := c.disk
			d.failed = nil
			left, err := d.machine().MarkBad(Leave{Slot: "b", Reason: slots.HealthCheck, Detail: "10-net"})
			if err != nil || left.Next != "a" {
				t.Fatalf("MarkBad() = %+v, %v; want the next boot for slot a", left, err)
			}
			if got := d.String(); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if got := strings.Join(d.trace, ", "); got != c.trace {
				t.Errorf("writes: got %s, want %s", got, c.trace)
			}
		})
	}
}

// TestLeaveCutAnywhere cuts the power before each write. The slot is either as
// it was or left; once it is left, its reason is on record; no place starts a
// slot by default that is not committed; and the same command then ends where
// an undisturbed one does.
func TestLeaveCutAnywhere(t *testing.T) {
	l := Leave{Slot: "b", Reason: slots.Manual}
	for _, c := range []struct {
		name string
		make func() *disk
		do   func(Machine) error
	}{
		{"mark_bad_on_trial", onTrial, func(m Machine) error { _, err := m.MarkBad(l); return err }},
		{"mark_bad_committed", inBoth, func(m Machine) error { _, err := m.MarkBad(l); return err }},
		{"rollback_on_trial", onTrial, func(m Machine) error { _, err := m.Rollback(l); return err }},
		{"rollback_committed", inBoth, func(m Machine) error { _, err := m.Rollback(l); return err }},
	} {
		t.Run(c.name, func(t *testing.T) {
			whole := c.make()
			whole.failed = nil
			before := slices.Clone(whole.slots)
			if err := c.do(whole.machine()); err != nil {
				t.Fatal(err)
			}
			if len(whole.trace) < 3 {
				t.Fatalf("only %d writes: %v", len(whole.trace), whole.trace)
			}
			for n := range whole.trace {
				d := c.make()
				d.failed, d.cut = nil, n
				if err := c.do(d.machine()); !errors.Is(err, errCut) {
					t.Errorf("cut %d: got error %v, want %v", n, err, errCut)
				}
				if !slices.Equal(d.slots, before) && !slices.Contains(d.failed, "b") {
					t.Errorf("cut %d: left without a reason: %s", n, d)
				}
				for _, p := range d.places {
					if s, ok := slots.Find(d.slots, p); !ok || !s.Successful {
						t.Errorf("cut %d: slot %s is started by default, and is not committed: %s", n, p, d)
					}
				}
				again := d.copy()
				if err := c.do(again.machine()); err != nil {
					t.Errorf("cut %d: the second time: %v", n, err)
				}
				if got, want := again.String(), whole.String(); got != want {
					t.Errorf("cut %d: the second time got\n%s\nwant\n%s", n, got, want)
				}
			}
		})
	}
}

// TestCommitAfterMarkBad: the commit that comes too late does not bring back
// what the time limit or a check has given up; a last resort can be committed.
func TestCommitAfterMarkBad(t *testing.T) {
	d := onTrial()
	b := inB
	b.Trial = true
	if _, err := d.machine().MarkBad(Leave{Slot: "b", Reason: slots.NoCommit}); err != nil {
		t.Fatal(err)
	}
	was := d.copy()
	if _, err := was.machine().Commit(b); !errors.Is(err, ErrRefused) || len(was.trace) > 0 {
		t.Errorf("got error %v and writes %v, want %v and none", err, was.trace, ErrRefused)
	}
	b.Trial = false
	if _, err := d.machine().Commit(b); err != nil {
		t.Errorf("the last resort: %v", err)
	}
}

// TestOfflineTryArmsNothing: the firmware of another machine is out of reach.
func TestOfflineTryArmsNothing(t *testing.T) {
	d := &disk{slots: []slots.Slot{good("a", 1), {Name: "b"}}, places: [3]string{"a", "a", "a"}, cut: -1}
	m := d.machine()
	m.Unarmed = true
	if err := m.Try(Boot{}, "b", 3); err != nil {
		t.Fatal(err)
	}
	if d.once != "" || d.armed != "" || d.slots[1].Tries != 3 {
		t.Errorf("got %s, want slot b on trial and nothing armed", d)
	}
}
