package slots

import (
	"fmt"
	"slices"
	"sort"
)

// Spend takes one try from a slot on trial. A slot in another state is left as
// it is: the boots of a committed slot are counted by Recount.
func Spend(s []Slot, name string) ([]Slot, error) {
	out, i, err := edit(s, name)
	if err != nil {
		return nil, fmt.Errorf("cannot spend a try of slot %s: %w", name, err)
	}
	if out[i].State() == Trial {
		out[i].Tries--
	}
	return out, nil
}

// Recount takes one try from a committed slot, before it is touched; it is for
// configurations with boot.recount. One without tries is left as it is.
func Recount(s []Slot, name string) ([]Slot, error) {
	out, i, err := edit(s, name)
	if err != nil {
		return nil, fmt.Errorf("cannot count a boot of slot %s: %w", name, err)
	}
	if out[i].Successful && out[i].Tries > 0 {
		out[i].Tries--
	}
	return out, nil
}

// GiveBack returns the try that Recount took in the same boot, because the boot
// ended by no fault of the slot. The tries of a trial are never given back.
func GiveBack(s []Slot, name string) ([]Slot, error) {
	out, i, err := edit(s, name)
	if err != nil {
		return nil, fmt.Errorf("cannot give slot %s its try back: %w", name, err)
	}
	if out[i].Successful {
		out[i].Tries = min(out[i].Tries+1, MaxTries)
	}
	return out, nil
}

// CommitCounted records that the slot booted well. The order of the slots
// stays: a slot that stood in for another one does not overtake it. refill is
// boot.tries with boot.recount, and becomes the slot's tries; 0 without. What is
// so already does not change, so the caller can leave out the write.
func CommitCounted(s []Slot, name string, refill int) ([]Slot, error) {
	out, i, err := edit(s, name)
	if err != nil {
		return nil, fmt.Errorf("cannot commit slot %s: %w", name, err)
	}
	if refill < 0 || refill > MaxTries {
		return nil, fmt.Errorf("cannot commit slot %s with %d tries: %w", name, refill, ErrTries)
	}
	if refill > 0 || !out[i].Successful {
		out[i].Tries = refill
	}
	if out[i].Successful {
		return out, nil
	}
	out[i].Successful = true
	if out[i].Priority == 0 {
		// it was booted as the last resort and proved good: all others failed
		raise(out, i)
	}
	return out, nil
}

// MarkBad records a failure of the slot. Only an image failure changes
// anything: a committed slot goes to the last place, without tries so that
// boot.recount has it last too, and stays committed; any other slot becomes
// unbootable. What the environment or the state did is not the slot's fault, and
// a slot on trial has paid with its try.
func MarkBad(s []Slot, name string, class Class) ([]Slot, error) {
	out, i, err := edit(s, name)
	if err != nil {
		return nil, fmt.Errorf("cannot mark slot %s bad: %w", name, err)
	}
	if class != ImageFailure {
		return out, nil
	}
	out[i].Tries = 0
	if out[i].Successful {
		lower(out, i)
		return out, nil
	}
	out[i].Priority = 0
	return out, nil
}

// BeginUpdate makes the slot unbootable, before its first byte changes. Clear
// the hint and the armed record when they name the slot before saving this.
// ErrLastGood when the slot is the only committed one.
func BeginUpdate(s []Slot, name string) ([]Slot, error) {
	out, i, err := edit(s, name)
	if err != nil {
		return nil, fmt.Errorf("cannot begin the update of slot %s: %w", name, err)
	}
	if out[i].Successful && !otherCommitted(out, i) {
		return nil, fmt.Errorf("cannot begin the update of slot %s: %w", name, ErrLastGood)
	}
	out[i] = Slot{Name: name}
	return out, nil
}

// FinishUpdate puts a completely written and synced slot on trial: above all
// others, with 1 to MaxTries tries. The order of the others is kept.
func FinishUpdate(s []Slot, name string, tries int) ([]Slot, error) {
	out, i, err := edit(s, name)
	if err != nil {
		return nil, fmt.Errorf("cannot put slot %s on trial: %w", name, err)
	}
	if tries < 1 || tries > MaxTries {
		return nil, fmt.Errorf("cannot put slot %s on trial with %d tries: %w", name, tries, ErrTries)
	}
	if out[i].Successful && !otherCommitted(out, i) {
		return nil, fmt.Errorf("cannot put slot %s on trial: %w", name, ErrLastGood)
	}
	out[i].Successful, out[i].Tries = false, tries
	raise(out, i)
	return out, nil
}

// Rollback leaves the running slot for another committed one: a slot on trial
// becomes unbootable, a committed one goes to the last place. ErrNoOther when
// there is no other committed slot.
func Rollback(s []Slot, running string) ([]Slot, error) {
	out, i, err := edit(s, running)
	if err != nil {
		return nil, fmt.Errorf("cannot roll back from slot %s: %w", running, err)
	}
	if !otherCommitted(out, i) {
		return nil, fmt.Errorf("cannot roll back from slot %s: %w", running, ErrNoOther)
	}
	return MarkBad(out, running, ImageFailure)
}

// edit returns a copy to change and the index of the slot in it.
func edit(s []Slot, name string) ([]Slot, int, error) {
	i := index(s, name)
	if i < 0 {
		return nil, -1, ErrUnknownSlot
	}
	return slices.Clone(s), i, nil
}

func otherCommitted(s []Slot, i int) bool {
	for j := range s {
		if j != i && s[j].Successful {
			return true
		}
	}
	return false
}

// raise gives slot i a priority above all others.
func raise(s []Slot, i int) {
	top := 0
	for j := range s {
		if j != i {
			top = max(top, s[j].Priority)
		}
	}
	if top >= MaxPriority {
		top = renumber(s, i, 1)
	}
	s[i].Priority = top + 1
}

// ranked says that the slot takes part in the order. A committed slot does even
// with priority 0, which cgpt can set.
func ranked(s Slot) bool { return s.Priority > 0 || s.Successful }

// lower gives slot i a priority below all others in the order.
func lower(s []Slot, i int) {
	lowest := MaxPriority + 1
	for j := range s {
		if j != i && ranked(s[j]) {
			lowest = min(lowest, s[j].Priority)
		}
	}
	switch {
	case lowest > MaxPriority:
		s[i].Priority = max(s[i].Priority, 1)
	case s[i].Priority > 0 && s[i].Priority < lowest:
	case lowest > 1:
		s[i].Priority = lowest - 1
	default:
		renumber(s, i, 2)
		s[i].Priority = 1
	}
}

// renumber gives all slots in the order, but i, the numbers from first
// on, keeping their order and their ties, and returns the highest one given.
func renumber(s []Slot, i, first int) int {
	var used []int
	for j := range s {
		if j != i && ranked(s[j]) && !slices.Contains(used, s[j].Priority) {
			used = append(used, s[j].Priority)
		}
	}
	sort.Ints(used)
	for j := range s {
		if j != i && ranked(s[j]) {
			s[j].Priority = first + slices.Index(used, s[j].Priority)
		}
	}
	return first + len(used) - 1
}
