package grubenv

import (
	"slices"
	"strings"

	"sealroot/slots"
	"sealroot/slots/statetext"
)

// Scheme is a set of variables that says which slot is good, as others use it.
type Scheme int

// The schemes. Slot a is "A" in both.
const (
	Darch Scheme = iota + 1 // BOOT_VERSION, BOOT_COUNT, BOOT_VERIFIED, BOOT_FELL_BACK
	RAUC                    // ORDER, A_OK, A_TRY
)

// SchemeOf tells whose variables are in the block; false when neither's are.
func SchemeOf(e *Env) (Scheme, bool) {
	if _, ok := e.Get(darchVersion); ok {
		return Darch, true
	}
	if _, ok := e.Get(raucOrder); ok {
		return RAUC, true
	}
	return 0, false
}

// States holds the exact state of the slots (package statetext). A scheme cannot
// express all of it, so its own variables are a projection of this one; when
// they differ, somebody else changed them, and they win.
const States = "sealroot_slots"

// Read returns the slots named, which are in the order of their names. It never
// fails: what is missing or damaged reads as a state that can be booted.
func (s Scheme) Read(e *Env, names []string) []slots.Slot {
	if len(names) == 0 {
		return nil
	}
	text, _ := e.Get(States)
	exact, err := statetext.For(names, text)
	if err != nil {
		exact = nil
	}
	if s == RAUC {
		return readRAUC(e, names, exact)
	}
	return readDarch(e, names, exact)
}

// Write sets the variables of the scheme and States. Other variables stay.
func (s Scheme) Write(e *Env, list []slots.Slot) error {
	set := func(name, value string) error { return e.Set(name, value) }
	if s == RAUC {
		if err := projectRAUC(list).write(set); err != nil {
			return err
		}
	} else if err := projectDarch(list).write(set); err != nil {
		return err
	}
	return e.Set(States, statetext.Format(list))
}

// own says whether the scheme uses the variable.
func (s Scheme) own(name string) bool {
	switch {
	case name == States || name == Once || name == Default:
		return true
	case s == RAUC:
		return name == raucOrder || strings.HasSuffix(name, raucOK) || strings.HasSuffix(name, raucTry)
	}
	return s == Darch && strings.HasPrefix(name, "BOOT_")
}

// upper is the name of a slot in a scheme.
func upper(slot string) string { return strings.ToUpper(slot) }

// named finds a slot by its name in a scheme.
func named(names []string, inScheme string) (string, bool) {
	i := slices.IndexFunc(names, func(n string) bool { return upper(n) == inScheme })
	if i < 0 {
		return "", false
	}
	return names[i], true
}
