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
			"[slot a: priority 2, no tries left, committed slot b: priority 1, no tries left, committed] once a places [b b b] armed a failed [b]",
			"log, slots, arm a, log",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := c.disk
			d.failed = nil
			left, err := d.machine().MarkBad(inB, Leave{Slot: "b", Reason: slots.HealthCheck, Detail: "10-net"})
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
		{"mark_bad_on_trial", onTrial, func(m Machine) error { _, err := m.MarkBad(inB, l); return err }},
		{"mark_bad_committed", inBoth, func(m Machine) error { _, err := m.MarkBad(inB, l); return err }},
		{"rollback_on_trial", onTrial, func(m Machine) error { _, err := m.Rollback(inB, l); return err }},
		{"rollback_committed", inBoth, func(m Machine) error { _, err := m.Rollback(inB, l); return err }},
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
	if _, err := d.machine().MarkBad(inB, Leave{Slot: "b", Reason: slots.NoCommit}); err != nil {
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

// TestDefaultIsAKernelThatStarts: whatever is left, the loader's default is moved
// to a kernel that runs now, or not at all; a committed slot whose own kernel may
// start is asked for once.
func TestDefaultIsAKernelThatStarts(t *testing.T) {
	three := []slots.Slot{good("a", 1), good("b", 2), trial("c", 3, 2)}
	inC, inBOnA, inNone := Boot{Running: "c", Loaded: "c"}, Boot{Running: "b", Loaded: "a"}, Boot{}
	for _, c := range []struct {
		name         string
		list         []slots.Slot
		boot         Boot
		first        string
		leave        string
		dead, once   string // slot whose kernel never came; one-shot before
		unarmed      bool
		want, wanted string // default, one-shot
	}{
		{"trial_beside_a_dead_kernel", three, inC, "a", "c", "b", "", false, "a", ""},
		{"trial_beside_an_unproved_kernel", three, inC, "a", "c", "", "", false, "a", ""},
		{"first_one_runs_on_it", three[:2], inBOnA, "a", "a", "b", "", false, "a", ""},
		{"default_is_left_for_an_unproved_kernel", three[:2], inBOnA, "a", "a", "", "", false, "a", "b"},
		{"default_is_left_for_the_running_kernel", three[:2], Boot{Running: "b", Loaded: "b"}, "a", "a", "", "", false, "b", ""},
		{"kernel_of_nobody", three[:2], Boot{Running: "b", Loaded: "?"}, "b", "b", "", "", false, "b", "a"},
		{"one_shot_of_a_trial_stays", three, Boot{Running: "b", Loaded: "b"}, "b", "b", "", "c", false, "b", "c"},
		{"one_shot_of_the_slot_goes", three[:2], Boot{Running: "b", Loaded: "b"}, "b", "b", "a", "b", false, "b", ""},
		{"nobody_takes_a_one_shot", three[:2], Boot{Running: "b", Loaded: "b"}, "b", "b", "", "", true, "b", ""},
		{"disk_of_another_machine", three[:2], inNone, "b", "b", "", "", true, "a", ""},
		{"disk_of_another_machine_dead_kernel", three[:2], inNone, "b", "b", "a", "", true, "b", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &disk{slots: slices.Clone(c.list), places: [3]string{c.first, c.first, c.first}, once: c.once, cut: -1}
			m := d.machine()
			m.Unarmed = c.unarmed
			if c.dead != "" {
				m.Failures = map[string]slots.Failure{c.dead: {Slot: c.dead, Class: slots.ImageFailure, Reason: slots.KernelNeverReached}}
			}
			if _, err := m.MarkBad(c.boot, Leave{Slot: c.leave, Reason: slots.Manual}); err != nil {
				t.Fatal(err)
			}
			if d.places[0] != c.want || d.once != c.wanted {
				t.Errorf("got default %q, one-shot %q; want %q, %q", d.places[0], d.once, c.want, c.wanted)
			}
			if c.wanted == "a" || c.wanted == "b" {
				if d.armed != c.wanted {
					t.Errorf("the record says %q, want %q", d.armed, c.wanted)
				}
			}
		})
	}
}

// mute is a loader that does not tell its default.
type mute struct {
	hint
	set *[]string
}

func (m mute) SetDefault(slot string) error { *m.set = append(*m.set, slot); return nil }

func (mute) IsDefault(string) (bool, error) { return false, errCut }

func TestDefaultThatNobodyTells(t *testing.T) {
	d, set := inBoth(), []string(nil)
	m := d.machine()
	m.Loader = mute{hint{d}, &set}
	if _, err := m.MarkBad(inB, Leave{Slot: "b", Reason: slots.Manual}); err != nil {
		t.Fatal(err)
	}
	if len(set) > 0 || d.once != "a" {
		t.Errorf("default set to %v, one-shot %q; want none and a", set, d.once)
	}
}
