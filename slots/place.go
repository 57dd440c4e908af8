package slots

import (
	"fmt"
	"slices"
	"strings"
)

// Standing returns the committed slots that the slot comes before, joined by
// commas. MarkBad of a committed slot loses that; whoever records the failure
// keeps it in Failure.Above.
func Standing(s []Slot, name string) string {
	i := index(s, name)
	if i < 0 || !s[i].Successful {
		return ""
	}
	var below []string
	for j := range s {
		// on a tie the first one comes first
		if j != i && s[j].Successful && (s[j].Priority < s[i].Priority || s[j].Priority == s[i].Priority && i < j) {
			below = append(below, s[j].Name)
		}
	}
	return strings.Join(below, ",")
}

// Restore gives a committed slot that f lowered its place back: directly above
// the highest committed slot that it stood above then, and with boot.recount
// its tries (refill; 0 without). It is for a slot whose image has proved good
// since. A slot that f did not lower, or that is not committed, stays.
func Restore(s []Slot, f Failure, refill int) ([]Slot, error) {
	out, i, err := edit(s, f.Slot)
	if err != nil {
		return nil, fmt.Errorf("cannot restore slot %s: %w", f.Slot, err)
	}
	if !out[i].Successful || f.Above == "" || f.Class != ImageFailure {
		return out, nil
	}
	was := strings.Split(f.Above, ",")
	top := best(out, func(t Slot) bool {
		return t.Name != f.Slot && t.Successful && slices.Contains(was, t.Name)
	})
	if top >= 0 && (out[top].Priority > out[i].Priority || out[top].Priority == out[i].Priority && top < i) {
		place(out, i, top, true)
	}
	if refill > 0 && out[i].Tries == 0 {
		out[i].Tries = min(refill, MaxTries)
	}
	return out, nil
}

// FinishCopy commits a slot that has become a verified block copy of a
// committed one, directly below it and with as many tries; it needs no trial.
// ErrNotCommitted when the source is not committed.
func FinishCopy(s []Slot, source, target string) ([]Slot, error) {
	out, i, err := edit(s, target)
	if err != nil {
		return nil, fmt.Errorf("cannot finish the copy to slot %s: %w", target, err)
	}
	from := index(s, source)
	if from < 0 {
		return nil, fmt.Errorf("cannot finish the copy of slot %s: %w", source, ErrUnknownSlot)
	}
	if !s[from].Successful || from == i {
		return nil, fmt.Errorf("cannot finish the copy of slot %s to slot %s: %w", source, target, ErrNotCommitted)
	}
	out[i] = Slot{Name: target, Tries: s[from].Tries, Successful: true}
	place(out, i, from, false)
	return out, nil
}

// place gives slot i a priority of its own directly above or below slot at. It
// keeps the order of all others, and their numbers where there is room.
func place(s []Slot, i, at int, above bool) {
	want := s[at].Priority - 1
	if above {
		want = s[at].Priority + 1
	}
	free := want >= 1 && want <= MaxPriority
	for j := range s {
		if j == i || j == at || !ranked(s[j]) {
			continue
		}
		// a number on the far side of the gap, not in it
		if above {
			free = free && (s[j].Priority <= s[at].Priority || s[j].Priority > want)
		} else {
			free = free && (s[j].Priority >= s[at].Priority || s[j].Priority < want)
		}
	}
	if free {
		s[i].Priority = want
		return
	}
	spread(s, i, at, above)
}

// spread numbers all slots anew from 1 and leaves a number free for slot i next
// to slot at.
func spread(s []Slot, i, at int, above bool) {
	renumber(s, i, 1)
	gap := s[at].Priority
	if above {
		gap++
	}
	for j := range s {
		if j != i && ranked(s[j]) && s[j].Priority >= gap {
			s[j].Priority++
		}
	}
	s[i].Priority = gap
}
