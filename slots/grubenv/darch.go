package grubenv

import (
	"strconv"

	"sealroot/slots"
)

// The variables of darch's author, as he described them in godarch/darch issue
// 32. His boot script counts the boots of a version that is not verified, takes
// the other one after the tenth, and says so for one boot.
const (
	darchVersion  = "BOOT_VERSION"  // A or B; missing: A
	darchCount    = "BOOT_COUNT"    // boots so far of a version that is not verified
	darchVerified = "BOOT_VERIFIED" // missing: true

	darchBoots = 10
	darchTrue  = "true"
)

// FellBack is true in the boot that follows a fallback, for the real system to
// see. Our grub.cfg clears it whenever it starts.
const FellBack = "BOOT_FELL_BACK"

// darch is what the scheme can say.
type darch struct {
	version  string // name of the slot
	count    int    // 0 when verified
	verified bool
}

// projectDarch says of the slot on top whether it is verified, and else how many
// of ten boots are used up.
func projectDarch(list []slots.Slot) darch {
	top := -1
	for i, s := range list {
		if s.State() != slots.Unbootable && (top < 0 || s.Priority > list[top].Priority) {
			top = i
		}
	}
	switch {
	case len(list) == 0:
		return darch{}
	case top < 0: // nothing to boot: all boots of the first one are used up
		return darch{version: list[0].Name, count: darchBoots}
	case list[top].Successful:
		return darch{version: list[top].Name, verified: true}
	}
	return darch{version: list[top].Name, count: darchBoots - min(list[top].Tries, darchBoots)}
}

func (d darch) write(set func(name, value string) error) error {
	if err := set(darchVersion, upper(d.version)); err != nil {
		return err
	}
	if err := set(darchCount, strconv.Itoa(d.count)); err != nil {
		return err
	}
	return set(darchVerified, strconv.FormatBool(d.verified))
}

// parseDarch reads the scheme's variables alone.
func parseDarch(e *Env, names []string) darch {
	d := darch{version: names[0]}
	version, _ := e.Get(darchVersion)
	if name, ok := named(names, version); ok {
		d.version = name
	}
	// save_env of an unset variable leaves an empty one
	verified, _ := e.Get(darchVerified)
	if d.verified = verified == "" || verified == darchTrue; d.verified {
		return d
	}
	if text, _ := e.Get(darchCount); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			n = darchBoots // a try too few is better than one too many
		}
		d.count = min(n, darchBoots)
	}
	return d
}

func readDarch(e *Env, names []string, exact []slots.Slot) []slots.Slot {
	d := parseDarch(e, names)
	if exact != nil && projectDarch(exact) == d {
		return exact
	}
	fellBack, _ := e.Get(FellBack)
	return d.slots(names, exact, d.verified && fellBack == darchTrue)
}

// slots makes a state of what the scheme says. Of the other slots it says
// nothing: without an exact state they are what darch's author falls back to,
// good, or after a fallback the one that failed.
func (d darch) slots(names []string, exact []slots.Slot, fellBack bool) []slots.Slot {
	var out []slots.Slot
	for _, name := range names {
		before, known := slots.Find(exact, name)
		s := slots.Slot{Name: name, Priority: 1, Successful: true}
		switch {
		case name == d.version && d.verified:
			s.Priority = 2
			if before.Successful {
				s.Tries = before.Tries
			}
		case name == d.version:
			s = slots.Slot{Name: name, Priority: 2, Tries: darchBoots - d.count}
		case known && before.State() == slots.Unbootable:
			s = slots.Slot{Name: name}
		case fellBack && !before.Successful:
			s = slots.Slot{Name: name, Priority: 3} // given up
		case known && !before.Successful:
			s = slots.Slot{Name: name, Priority: 1}
		case known:
			s.Tries = before.Tries
		}
		out = append(out, s)
	}
	return out
}
