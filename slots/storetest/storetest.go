// Package storetest is what every store of slots has to pass, on the host and in
// a guest: nothing in it needs a test binary.
package storetest

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"sealroot/slots"
)

// T is what the suite needs of *testing.T.
type T interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any) // does not return
	Logf(format string, args ...any)
}

// Medium is what a store keeps its state on, together with content of others.
type Medium interface {
	// Open opens the store anew, as the next boot does.
	Open() slots.Store
	// Writes is how often something was written so far.
	Writes() int
	// Foreign is what is not the store's, as text: it must stay.
	Foreign() string
}

// Fragile is a medium that loses power.
type Fragile interface {
	Medium
	// CutAfter lets n more writes succeed.
	CutAfter(n int)
	// Outcomes are the media that the next boot may find after the cut.
	Outcomes() []Medium
}

// Subject is a store to be tested.
type Subject struct {
	Slots []string // the names, in their order
	// New returns a new medium, made by others or empty.
	New func() Medium
	// Claims says which states the store can hold; nil: all.
	Claims func([]slots.Slot) bool
	// States is how many states a round trip is made of; 0: all of them. A
	// guest's firmware has flash that wears out.
	States int
}

// Run runs the suite.
func Run(t T, s Subject) {
	t.Helper()
	begin(t, s)
	roundTrips(t, s)
	refusals(t, s)
	story(t, s)
	cuts(t, s)
}

func (s Subject) claims(list []slots.Slot) bool { return s.Claims == nil || s.Claims(list) }

func load(t T, m Medium) []slots.Slot {
	t.Helper()
	list, err := m.Open().Load()
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	return list
}

// save saves and reads back what the next boot sees.
func save(t T, m Medium, want []slots.Slot) {
	t.Helper()
	before, foreign := load(t, m), m.Foreign()
	if err := m.Open().Save(want); err != nil {
		t.Fatalf("Save %v over %v: %v", want, before, err)
	}
	if got := load(t, m); !slices.Equal(got, want) {
		t.Fatalf("saved %v over %v, loaded %v", want, before, got)
	}
	if now := m.Foreign(); now != foreign {
		t.Fatalf("Save %v changed what is not the store's:\n%s\nbefore:\n%s", want, now, foreign)
	}
	writes := m.Writes()
	if err := m.Open().Save(want); err != nil || m.Writes() != writes {
		t.Fatalf("saving %v again: %v, %d writes, want none", want, err, m.Writes()-writes)
	}
}

// begin: a new medium holds every slot, in order, one of which can be booted,
// and reading it writes nothing.
func begin(t T, s Subject) {
	t.Helper()
	m := s.New()
	writes := m.Writes()
	list := load(t, m)
	if !slices.EqualFunc(list, s.Slots, func(l slots.Slot, name string) bool { return l.Name == name }) {
		t.Fatalf("a new medium holds %v, want slots %v", list, s.Slots)
	}
	if d, err := slots.Decide(slots.Observed{Slots: list, LogReadable: true}); err != nil || d.Slot == "" {
		t.Fatalf("a new medium with %v: chosen %q, %v", list, d.Slot, err)
	}
	if err := m.Open().Save(list); err != nil || m.Writes() != writes {
		t.Errorf("reading and saving the same: %v, %d writes, want none", err, m.Writes()-writes)
	}
}

// states are the states of one slot, by all that stores treat differently.
func states(name string) []slots.Slot {
	var out []slots.Slot
	for _, priority := range []int{0, 1, 2, 15} {
		for _, tries := range []int{0, 1, 10, 11, 15} {
			for _, good := range []bool{false, true} {
				out = append(out, slots.Slot{Name: name, Priority: priority, Tries: tries, Successful: good})
			}
		}
	}
	return out
}

// all combines the states of all slots, in a random but fixed order.
func (s Subject) all() [][]slots.Slot {
	out := [][]slots.Slot{nil}
	for _, name := range s.Slots {
		var longer [][]slots.Slot
		for _, list := range out {
			for _, state := range states(name) {
				longer = append(longer, append(slices.Clone(list), state))
			}
		}
		out = longer
	}
	out = slices.DeleteFunc(out, func(l []slots.Slot) bool { return !s.claims(l) })
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

func roundTrips(t T, s Subject) {
	t.Helper()
	all := s.all()
	if len(all) == 0 {
		t.Fatalf("the store claims no state at all")
	}
	if s.States > 0 {
		all = all[:min(len(all), s.States)]
	}
	m := s.New()
	for _, want := range all {
		save(t, m, want)
	}
	t.Logf("%d states saved and loaded", len(all))
}

// refusals: slots that do not exist, and states that the store cannot hold, are
// errors and change nothing; one slot alone leaves the others.
func refusals(t T, s Subject) {
	t.Helper()
	m := s.New()
	before, foreign, writes := load(t, m), m.Foreign(), m.Writes()
	bad := [][]slots.Slot{{{Name: "z", Priority: 1}}, {{Name: ""}}}
	if s.Claims != nil {
		for _, list := range (Subject{Slots: s.Slots}).all() {
			if !s.Claims(list) && len(bad) < 10 {
				bad = append(bad, list)
			}
		}
	}
	for _, list := range bad {
		if err := m.Open().Save(list); err == nil {
			t.Errorf("Save of %v: got no error", list)
		}
		if now := load(t, m); !slices.Equal(now, before) || m.Foreign() != foreign || m.Writes() != writes {
			t.Errorf("a refused Save of %v changed something: %v, before %v", list, now, before)
		}
	}
	last := before[len(before)-1]
	last.Tries = (last.Tries + 1) % slots.MaxTries
	after := slices.Clone(before)
	after[len(after)-1] = last
	if !s.claims(after) {
		return
	}
	if err := m.Open().Save([]slots.Slot{last}); err != nil {
		t.Fatalf("Save of one slot: %v", err)
	}
	if now := load(t, m); !slices.Equal(now, after) {
		t.Errorf("saved only %v over %v: got %v", last, before, now)
	}
}

// step is a transition of the state machine.
type step struct {
	name string
	run  func([]slots.Slot) ([]slots.Slot, error)
}

// steps is the life of a machine with slots a and b.
func steps() []step {
	begin := func(name string) step {
		return step{"begin_update_" + name, func(l []slots.Slot) ([]slots.Slot, error) { return slots.BeginUpdate(l, name) }}
	}
	finish := func(name string, tries int) step {
		return step{fmt.Sprintf("finish_update_%s_%d", name, tries), func(l []slots.Slot) ([]slots.Slot, error) { return slots.FinishUpdate(l, name, tries) }}
	}
	spend := func(name string) step {
		return step{"spend_" + name, func(l []slots.Slot) ([]slots.Slot, error) { return slots.Spend(l, name) }}
	}
	commit := func(name string, refill int) step {
		return step{fmt.Sprintf("commit_%s_%d", name, refill), func(l []slots.Slot) ([]slots.Slot, error) { return slots.CommitCounted(l, name, refill) }}
	}
	bad := func(name string) step {
		return step{"mark_bad_" + name, func(l []slots.Slot) ([]slots.Slot, error) { return slots.MarkBad(l, name, slots.ImageFailure) }}
	}
	return []step{
		begin("b"), finish("b", 3), spend("b"), spend("b"), commit("b", 0), // an update
		begin("a"), finish("a", 2), spend("a"), spend("a"), // one that is given up
		bad("a"), bad("b"), // its image turns out bad, and so does the good one
		begin("a"), {"finish_copy_a", func(l []slots.Slot) ([]slots.Slot, error) { return slots.FinishCopy(l, "b", "a") }},
		{"rollback_b", func(l []slots.Slot) ([]slots.Slot, error) { return slots.Rollback(l, "b") }},
		begin("b"), finish("b", 15), spend("b"), bad("b"),
		commit("a", 3), {"recount_a", func(l []slots.Slot) ([]slots.Slot, error) { return slots.Recount(l, "a") }},
		begin("b"), finish("b", 1), spend("b"), commit("b", 3),
	}
}

// first is where the story begins: a new disk with an image in slot a.
func first() []slots.Slot {
	return []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b"}}
}

// tells says whether the store can live through the story.
func (s Subject) tells() bool {
	return slices.Equal(s.Slots, []string{"a", "b"}) && s.claims(first())
}

// story: after each transition the store holds what the pure model has.
func story(t T, s Subject) {
	t.Helper()
	if !s.tells() {
		return
	}
	m := s.New()
	model := first()
	save(t, m, model)
	for _, step := range steps() {
		next, err := step.run(load(t, m))
		if err != nil {
			t.Fatalf("%s of %v: %v", step.name, model, err)
		}
		if model, err = step.run(model); err != nil || !slices.Equal(next, model) {
			t.Fatalf("%s: the store leads to %v, the model to %v, %v", step.name, next, model, err)
		}
		save(t, m, next)
	}
}

// cuts: a power cut at any write of any transition leaves the old or the new
// state, and the machine can go on from there.
func cuts(t T, s Subject) {
	t.Helper()
	if _, ok := s.New().(Fragile); !ok || !s.tells() {
		return
	}
	n := 0
	old := first()
	for _, step := range steps() {
		next, err := step.run(old)
		if err != nil {
			t.Fatalf("%s of %v: %v", step.name, old, err)
		}
		n += cut(t, s, step.name, old, next)
		old = next
	}
	if n < len(steps()) {
		t.Errorf("only %d outcomes of power cuts were looked at", n)
	}
	t.Logf("%d outcomes of power cuts", n)
}

// cut cuts the power at each write of one change, and returns how many outcomes
// it looked at.
func cut(t T, s Subject, what string, old, next []slots.Slot) int {
	t.Helper()
	n := 0
	for after := 0; ; after++ {
		m := s.New().(Fragile)
		save(t, m, old)
		foreign := m.Foreign()
		m.CutAfter(after)
		done := m.Open().Save(next) == nil
		for _, out := range m.Outcomes() {
			n++
			got := load(t, out)
			if !slices.Equal(got, next) && (done || !slices.Equal(got, old)) {
				t.Fatalf("%s, power cut after %d writes: %v is neither %v nor %v (saved: %v)", what, after, got, old, next, done)
			}
			if now := out.Foreign(); now != foreign {
				t.Fatalf("%s, power cut after %d writes changed what is not the store's:\n%s\nbefore:\n%s", what, after, now, foreign)
			}
			save(t, out, next)
		}
		if done {
			return n
		}
		if after > 100 {
			t.Fatalf("%s: more than 100 writes", what)
		}
	}
}
