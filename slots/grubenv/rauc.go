package grubenv

import (
	"slices"
	"strings"

	"sealroot/slots"
)

// The variables of RAUC's GRUB backend (RAUC reference manual, "GRUB"): the
// first slot of ORDER with OK=1 and TRY=0 is booted. RAUC's boot script sets
// TRY=1 before it does so, and `rauc status mark-good` sets it back to 0. A slot
// on trial has OK=1 and TRY=1 here: RAUC's primary slot is then the committed
// one, which is also the loader's default, and mark-good is a commit.
const (
	raucOrder = "ORDER"
	raucOK    = "_OK"
	raucTry   = "_TRY"
)

// raucFlags is what the scheme says of one slot.
type raucFlags struct{ ok, try bool }

// rauc is what the scheme can say.
type rauc struct {
	order []string // names of slots
	flags map[string]raucFlags
}

func raucState(s slots.Slot) raucFlags {
	switch s.State() {
	case slots.Committed:
		return raucFlags{ok: true}
	case slots.Trial, slots.Spent:
		return raucFlags{ok: true, try: true}
	}
	return raucFlags{}
}

func projectRAUC(list []slots.Slot) rauc {
	r := rauc{flags: map[string]raucFlags{}}
	for _, i := range slots.ByPriority(list) {
		s := list[i]
		r.order = append(r.order, s.Name)
		r.flags[s.Name] = raucState(s)
	}
	return r
}

func (r rauc) write(set func(name, value string) error) error {
	if err := set(raucOrder, upper(strings.Join(r.order, " "))); err != nil {
		return err
	}
	flag := map[bool]string{false: "0", true: "1"}
	for _, name := range r.order {
		f := r.flags[name]
		if err := set(upper(name)+raucOK, flag[f.ok]); err != nil {
			return err
		}
		if err := set(upper(name)+raucTry, flag[f.try]); err != nil {
			return err
		}
	}
	return nil
}

// parseRAUC reads the scheme's variables alone. ok is false when there are none.
func parseRAUC(e *Env, names []string) (r rauc, ok bool) {
	r.flags = map[string]raucFlags{}
	order, ok := e.Get(raucOrder)
	for word := range strings.FieldsSeq(order) {
		if name, known := named(names, word); known && !slices.Contains(r.order, name) {
			r.order = append(r.order, name)
		}
	}
	for _, name := range names {
		if !slices.Contains(r.order, name) {
			r.order = append(r.order, name)
		}
		good, hasOK := e.Get(upper(name) + raucOK)
		try, hasTry := e.Get(upper(name) + raucTry)
		ok = ok || hasOK || hasTry
		r.flags[name] = raucFlags{ok: good == "1", try: try == "1"}
	}
	return r, ok
}

func readRAUC(e *Env, names []string, exact []slots.Slot) []slots.Slot {
	r, ok := parseRAUC(e, names)
	if !ok {
		for _, name := range names {
			r.flags[name] = raucFlags{ok: true}
		}
		exact = nil
	}
	if exact != nil {
		before := projectRAUC(exact)
		if slices.Equal(before.order, r.order) && !slices.ContainsFunc(names, func(n string) bool { return before.flags[n] != r.flags[n] }) {
			return exact
		}
	}
	return r.slots(names, exact)
}

// slots makes a state of what the scheme says, with what is known of each slot
// from before: its flags as they are keep its state, and others are a change
// that somebody made.
func (r rauc) slots(names []string, exact []slots.Slot) []slots.Slot {
	order := slices.Clone(r.order)
	state := map[string]slots.Slot{}
	for _, name := range names {
		before, known := slots.Find(exact, name)
		now := r.flags[name]
		s := slots.Slot{Name: name}
		switch {
		case known && raucState(before) == now:
			s = before
		case now == raucFlags{ok: true} && known && before.State() == slots.Unbootable:
			s.Tries = 1 // rauc put something into it: one try, as RAUC has it
		case now == raucFlags{ok: true}:
			s.Successful = true // marked good
		case now.ok && before.Successful:
			// RAUC's own boot script started it and nobody confirmed that: it
			// stays good and goes behind the others
			s.Successful = true
			order = append(slices.DeleteFunc(order, func(n string) bool { return n == name }), name)
		}
		s.Priority = 0
		if now.ok {
			s.Priority = 1 // its place follows
		}
		state[name] = s
	}
	for i, name := range order {
		s := state[name]
		if s.Priority > 0 {
			s.Priority = min(len(order)-i, slots.MaxPriority)
			state[name] = s
		}
	}
	var out []slots.Slot
	for _, name := range names {
		out = append(out, state[name])
	}
	return out
}
