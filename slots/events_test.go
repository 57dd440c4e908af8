package slots

// event is what the running system does after a boot. It says whether it could.
type event struct {
	name string
	do   func(m machine, d *disk, r outcome) bool
}

const trialTries = 2

// events are all that happens to a machine with n slots.
func events(n int) []event {
	all := []event{
		{"power off", func(machine, *disk, outcome) bool { return true }},
		{"commit", commitEvent},
		{"health check failed", healthEvent},
		{"rollback", rollbackEvent},
		{"breaks", breakEvent},
	}
	for t := range n {
		target := name(t)
		for _, h := range []health{good, silent, badImage, deadKernel} {
			all = append(all, event{"finish " + target + ", " + h.String(), func(m machine, d *disk, r outcome) bool {
				return finishEvent(m, d, r, t, h)
			}})
		}
		all = append(all,
			event{"begin " + target, func(m machine, d *disk, r outcome) bool { return beginEvent(m, d, r, t) }},
			event{"copy to " + target, func(m machine, d *disk, r outcome) bool { return copyEvent(m, d, r, t) }},
			event{"refused from now on: " + target, func(_ machine, d *disk, _ outcome) bool { return refusedEvent(d, t) }},
			event{"verify " + target, func(m machine, d *disk, r outcome) bool { return verifyEvent(m, d, t) }},
		)
	}
	return all
}

func (m machine) loader(d *disk) Loader {
	if !m.oneShot {
		return nil
	}
	return fakeLoader{d}
}

func commitEvent(m machine, d *disk, r outcome) bool {
	if !d.image[letter(r.running)].works() {
		return false
	}
	c := Commitment{Running: r.running, Loaded: m.rules.loaded(r.loaded, r.running), Refill: m.refill, Failures: d.failures()}
	_ = CommitNow(c, fakeStore{d}, m.loader(d), fakeLog{d})
	return true
}

// lowered is MarkBad by the running system: the reason first, a cut then only
// leaves a reason too many.
func lowered(m machine, d *disk, slot string, reason Reason) {
	f := Failure{Slot: slot, Class: ImageFailure, Reason: reason}
	if (fakeLog{d}).Record(LogChange{Failures: []Failure{f}}) == nil {
		_ = fakeStore{d}.Save(m.rules.markBad(d.slots(), slot))
	}
}

func healthEvent(m machine, d *disk, r outcome) bool {
	lowered(m, d, r.running, HealthCheck)
	return true
}

func rollbackEvent(m machine, d *disk, r outcome) bool {
	if _, err := Rollback(d.slots(), r.running); err != nil {
		return false
	}
	lowered(m, d, r.running, Manual)
	return true
}

// breakEvent: weeks later the system stops committing.
func breakEvent(_ machine, d *disk, r outcome) bool {
	i := letter(r.running)
	if d.image[i] != good {
		return false
	}
	d.image[i] = silent
	return true
}

// beginEvent makes the slot unbootable and then writes into it. It refuses what
// would leave the loader with a kernel that never reached PID 1.
func beginEvent(m machine, d *disk, r outcome, t int) bool {
	if name(t) == r.running || r.loaded != r.running && (r.loaded == name(t) || d.def == name(t)) {
		return false
	}
	after, err := m.rules.begin(d.slots(), name(t))
	if err != nil {
		return false
	}
	loader := m.loader(d)
	if loader == nil && d.def == name(t) {
		return false
	}
	if loader != nil && d.def == name(t) && loader.SetDefault(r.running) != nil {
		return true
	}
	if d.hint == name(t) && loader.Clear() != nil {
		return true
	}
	if (fakeLog{d}).Record(LogChange{Forget: []string{name(t)}}) != nil {
		return true
	}
	if (fakeStore{d}).Save(after) != nil {
		return true
	}
	return d.write(toImage, func() { d.image[t] = torn }) == nil || true
}

// finishEvent writes a whole image into a slot that was begun, in this boot or
// in an earlier one.
func finishEvent(m machine, d *disk, r outcome, t int, h health) bool {
	if d.image[t] != torn || name(t) == r.running {
		return false
	}
	if d.write(toImage, func() { d.image[t] = h }) != nil {
		return true
	}
	after, err := FinishUpdate(d.slots(), name(t), trialTries)
	if err != nil {
		panic(err)
	}
	dec := Decision{Slots: after}
	if m.oneShot {
		dec.Rearm = name(t)
		dec.arm(name(t))
	}
	_ = Apply(dec, fakeStore{d}, m.loader(d), fakeLog{d})
	return true
}

func copyEvent(m machine, d *disk, r outcome, t int) bool {
	source, _ := Find(d.slots(), r.running)
	if !source.Successful || d.image[t] != torn || name(t) == r.running {
		return false
	}
	if d.write(toImage, func() { d.image[t] = d.image[letter(r.running)] }) != nil {
		return true
	}
	after, err := FinishCopy(d.slots(), r.running, name(t))
	if err != nil {
		panic(err)
	}
	_ = fakeStore{d}.Save(after)
	return true
}

// refusedEvent: the image is damaged on the disk, or the rollback floor has been
// raised above it.
func refusedEvent(d *disk, t int) bool {
	if d.image[t] != good {
		return false
	}
	d.image[t] = badImage
	return true
}

func verifyEvent(m machine, d *disk, t int) bool {
	f, ok := d.failures()[name(t)]
	if !ok || f.ByHand() || !d.image[t].mounts() || !d.slot[t].Successful {
		return false
	}
	after, err := Restore(d.slots(), f, m.refill)
	if err != nil {
		panic(err)
	}
	if (fakeStore{d}).Save(after) == nil {
		_ = fakeLog{d}.Record(LogChange{Clear: []string{name(t)}})
	}
	return true
}
