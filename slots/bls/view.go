package bls

import (
	"fmt"
	"io/fs"
	"slices"

	"sealroot/slots"
	"sealroot/slots/esp"
)

// view is what names and text say together.
type view struct {
	slots   []slots.Slot
	files   map[string]file
	surplus []file
	owed    map[string]bool // a boot that the loader counted shows as a try
	text    record          // the text's state, when it is in force
	names   []string        // in EFI/Linux
}

// interpret is the reading rule: the first state of the text that the names
// fit; a mixture of its two states is a save that power was cut in, which goes
// on to the new one; else the names alone.
func interpret(known, names []string, text []byte, counted Counted) view {
	v := view{owed: map[string]bool{}, names: names}
	v.files, v.surplus = sortFiles(names)
	now, before := decode(text)
	if !now.of(known) {
		now = record{}
	}
	if !before.of(known) {
		before = record{}
	}
	switch {
	case v.fits(now):
		v.text = now
		v.take(now)
	case v.fits(before):
		v.take(before)
	case v.between(now, before):
		v.take(now)
	default:
		v.fromNames(known, now, counted)
	}
	return v
}

// of says that the record is about exactly the slots known, and that its names
// are those of its state: the text is anybody's.
func (r record) of(known []string) bool {
	for i, s := range r.slots {
		m := r.marks[i]
		if m.exists && target(m, s, false) != m || !m.exists && s != (slots.Slot{Name: s.Name}) {
			return false
		}
	}
	return slices.EqualFunc(r.slots, known, func(s slots.Slot, name string) bool { return s.Name == name })
}

// fitsMark says that the slot's file has the name of the record, or what the
// loader has made of it.
func (v *view) fitsMark(r record, i int) bool {
	have := v.files[r.slots[i].Name].mark
	return have == r.marks[i] || loaderCounts(r.marks[i], have)
}

func (v *view) fits(r record) bool {
	for i := range r.slots {
		if !v.fitsMark(r, i) {
			return false
		}
	}
	return len(r.slots) > 0
}

// between says that every name is that of one record or the other.
func (v *view) between(a, b record) bool {
	for i := range a.slots {
		if !v.fitsMark(a, i) && (len(b.slots) == 0 || !v.fitsMark(b, i)) {
			return false
		}
	}
	return len(a.slots) > 0
}

// take shows the record's state, less what the loader has counted but once.
func (v *view) take(r record) {
	v.slots = slices.Clone(r.slots)
	for i := range v.slots {
		s := &v.slots[i]
		have := v.files[s.Name].mark
		if s.State() == slots.Trial && loaderCounts(r.marks[i], have) {
			s.Tries = min(s.Tries, have.left+1)
			v.owed[s.Name] = true
		}
	}
}

// fromNames makes a state of the names alone. Priorities are those of the text
// where it has one; else slots on trial come before committed ones.
func (v *view) fromNames(known []string, memory record, counted Counted) {
	top := 1
	for _, s := range memory.slots {
		top = max(top, s.Priority)
	}
	for _, name := range known {
		s := slots.Slot{Name: name}
		if old, ok := slots.Find(memory.slots, name); ok {
			s.Priority = old.Priority
		}
		m := v.files[name].mark
		left := m.left
		if m.counted && counted.Slot == name && markOf(counted.Counter) == m {
			left++ // shown until it is spent
			v.owed[name] = true
		}
		switch {
		case m.exists && !m.counted:
			s.Successful, s.Priority = true, max(s.Priority, 1)
		case m.exists && left > 0:
			s.Tries = min(left, slots.MaxTries)
			if s.Priority == 0 {
				s.Priority = min(top+1, slots.MaxPriority)
			}
		default:
			s.Priority = 0
			delete(v.owed, name)
		}
		v.slots = append(v.slots, s)
	}
}

// marks are the names that belong to the state shown: where a counted boot
// still shows as a try, the one before the loader counted.
func (v *view) marks() []mark {
	var out []mark
	for _, s := range v.slots {
		m := v.files[s.Name].mark
		if v.owed[s.Name] && m.left+1 == s.Tries {
			m = m.beforeCount()
		}
		out = append(out, m)
	}
	return out
}

type rename struct{ from, to string }

// plan is what Save writes, in this order.
type plan struct {
	aside   []rename
	text    []byte
	renames []rename
}

// plan decides what to write. The text holds the new state and the old one,
// each with its names, so that at every moment the names fit one of them or are
// a mixture of both.
func (s Store) plan(want []slots.Slot) (plan, error) {
	v, err := s.look()
	if err != nil {
		return plan{}, err
	}
	full := slices.Clone(v.slots)
	for _, w := range want {
		i := slices.IndexFunc(full, func(t slots.Slot) bool { return t.Name == w.Name })
		if i < 0 {
			return plan{}, slots.ErrUnknownSlot
		}
		full[i] = w
	}
	var p plan
	if p.aside, err = v.putAside(); err != nil {
		return plan{}, err
	}
	next := record{slots: full}
	for _, t := range full {
		f := v.files[t.Name]
		if !f.exists {
			if t.Priority != 0 || t.Tries != 0 || t.Successful {
				return plan{}, ErrNoFile
			}
			next.marks = append(next.marks, mark{})
			continue
		}
		m := target(f.mark, t, v.owed[t.Name])
		if m != f.mark {
			p.renames = append(p.renames, rename{f.name, esp.UKIName(t.Name, m.counter())})
		} else if v.owed[t.Name] && t.Tries == f.left+1 {
			m = f.mark.beforeCount()
		}
		next.marks = append(next.marks, m)
	}
	if slices.Equal(full, v.slots) && len(p.renames) == 0 || next.equal(v.text) {
		return p, nil
	}
	p.text, err = encode(next, record{v.slots, v.marks()})
	return p, err
}

// putAside renames surplus names so that no loader takes them for a slot. They
// are not removed: two names that a power cut left share their clusters, and
// removing one would give away the other's.
func (v *view) putAside() ([]rename, error) {
	taken := slices.Clone(v.names)
	var out []rename
	for _, f := range v.surplus {
		to, ok := asideName(f.slot, taken)
		if !ok {
			return nil, fmt.Errorf("cannot put %s aside: %w", f.name, fs.ErrExist)
		}
		taken = append(taken, to)
		out = append(out, rename{f.name, to})
	}
	return out, nil
}
