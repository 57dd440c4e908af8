package slots

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

// walker visits every state that can be reached, and from each one lets
// everything happen, with the power cut before and after each write.
type walker struct {
	m      machine
	events []event
	limit  int         // states at most; 0: all of them
	near   bool        // only what one step makes of the starts
	ended  func() bool // time is over: states that are left are not visited; may be nil

	seen    map[key]bool
	settled map[key]bool
	lives   [allChances]map[key]bool // what survives each chance for ever
	queue   []world
	boots   int
}

func (w *walker) add(x world) {
	x = w.m.canonical(x)
	if k := x.key(); !w.seen[k] && (w.limit == 0 || len(w.seen) < w.limit) {
		w.seen[k] = true
		w.queue = append(w.queue, x)
	}
}

// walk returns the first thing that must not happen, with the way to it.
func (w *walker) walk(starts []world) error {
	w.seen, w.settled = map[key]bool{}, map[key]bool{}
	for c := range w.lives {
		w.lives[c] = map[key]bool{}
	}
	for _, s := range starts {
		w.add(s)
	}
	if w.near {
		w.limit = len(w.seen)
	}
	for len(w.queue) > 0 && (w.ended == nil || !w.ended()) {
		next := w.queue[0]
		w.queue = w.queue[1:]
		if err := w.from(next); err != nil {
			return err
		}
	}
	return nil
}

// from lets each chance befall a boot from one state.
func (w *walker) from(before world) error {
	if err := w.settles(before); err != nil {
		return err
	}
	for _, c := range []chance{storeFails, loaderFails, logFails} {
		if err := w.survives(before, c); err != nil {
			return err
		}
	}
	for c := range allChances {
		if c == byHand && before.hint == "" || (c == otherKernel || c == loaderFails) && !w.m.oneShot {
			continue // there is nothing to ignore; nobody chooses, or is told
		}
		whole := &disk{world: before, n: w.m.n}
		out := w.m.boot(whole, c)
		w.boots++
		for cut := 1; cut <= whole.writes && c.broken() == toImage; cut++ {
			for _, after := range []bool{false, true} {
				d := &disk{world: before, n: w.m.n, cut: cut, after: after}
				w.m.boot(d, c)
				w.boots++
				// cut in a boot that takes a try, the try is gone; it is never more
				if err := w.check(before, d.world, ""); err != nil {
					return fmt.Errorf("boot (chance %d) cut at write %d (done %v): %w", c, cut, after, err)
				}
			}
		}
		if err := w.checkBoot(before, whole, out, c); err != nil {
			return fmt.Errorf("boot (chance %d) to %+v: %w", c, out, err)
		}
		if out.running == "" {
			continue
		}
		if err := w.running(whole.world, out); err != nil {
			return fmt.Errorf("from %v\nboot (chance %d) to %+v: %w", before, c, out, err)
		}
	}
	return nil
}

// running lets each event happen on the running system.
func (w *walker) running(before world, out outcome) error {
	for _, e := range w.events {
		whole := &disk{world: before, n: w.m.n}
		if !e.do(w.m, whole, out) {
			continue
		}
		for broken := toStore; broken <= toLog && whole.writes > 0; broken++ {
			d := &disk{world: before, n: w.m.n, broken: broken}
			e.do(w.m, d, out)
			if err := w.check(before, d.world, e.name); err != nil {
				return fmt.Errorf("%s, with writes to %d failing: %w", e.name, broken, err)
			}
		}
		for cut := 0; cut <= whole.writes; cut++ {
			for _, after := range []bool{false, true} {
				d := &disk{world: before, n: w.m.n, cut: cut, after: after}
				e.do(w.m, d, out)
				if err := w.check(before, d.world, e.name); err != nil {
					return fmt.Errorf("%s, cut at write %d (done %v): %w", e.name, cut, after, err)
				}
				if cut == 0 {
					break // no cut
				}
			}
		}
	}
	return nil
}

// check holds what is true after anything, cut or not, and goes on from there.
// what is the event, "" for a boot.
func (w *walker) check(before, after world, what string) error {
	for i := range w.m.n {
		b, a := before.slot[i], after.slot[i]
		touched := what == "commit" || strings.HasSuffix(what, " "+a.Name) || strings.Contains(what, " "+a.Name+",")
		switch {
		case a.Tries > b.Tries && !touched:
			return fmt.Errorf("tries of slot %s grew from %d to %d by %q\nfrom %v\nto %v", b.Name, b.Tries, a.Tries, what, before, after)
		case b.Successful && !a.Successful && what != "begin "+a.Name:
			return fmt.Errorf("slot %s is no longer committed by %q\nfrom %v\nto %v", b.Name, what, before, after)
		case a.Successful && !b.Successful && what != "commit" && what != "copy to "+a.Name:
			return fmt.Errorf("slot %s was committed by %q\nfrom %v\nto %v", b.Name, what, before, after)
		case after.image[i] == torn && a.Bootable():
			return fmt.Errorf("half-written slot %s is bootable by %q\nfrom %v\nto %v", a.Name, what, before, after)
		}
	}
	if committed(before) && !committed(after) {
		return fmt.Errorf("no committed slot is left by %q\nfrom %v\nto %v", what, before, after)
	}
	if !after.image[letter(after.def)].starts() {
		return fmt.Errorf("the default entry became a dead kernel by %q\nfrom %v\nto %v", what, before, after)
	}
	w.add(after)
	if w.near {
		return w.settles(after)
	}
	return nil
}

func committed(w world) bool {
	return slices.ContainsFunc(w.slot[:], func(s Slot) bool { return s.Successful })
}

// checkBoot holds what is true of one whole boot.
func (w *walker) checkBoot(before world, d *disk, out outcome, c chance) error {
	if err := w.check(before, d.world, ""); err != nil {
		return err
	}
	if c == refused || c == diskError {
		for i, b := range before.slot[:w.m.n] {
			if b.Successful && d.slot[i].Tries != b.Tries && out.took != b.Name && before.image[i].mounts() && before.fail[i].Reason != KernelNeverReached {
				return fmt.Errorf("committed slot %s paid for chance %d\nfrom %v\nto %v", b.Name, c, before, d.world)
			}
		}
	}
	if out.running == "" {
		if d.told != "" && d.told != before.told {
			return fmt.Errorf("a fallback counts as told, and nobody was there: %v", before)
		}
		return nil
	}
	ran := letter(out.running)
	b, a := before.slot[ran], d.slot[ran]
	switch {
	case !before.image[ran].mounts():
		return fmt.Errorf("a bad image runs: %v", before)
	case b.State() == Trial && a.Tries >= b.Tries:
		return fmt.Errorf("slot %s ran on trial without spending a try: %v", out.running, before)
	case w.m.refill > 0 && b.Successful && b.Tries > 0 && a.Tries >= b.Tries && c != storeFails:
		return fmt.Errorf("slot %s ran without being counted: %v", out.running, before)
	case out.told != "" && out.why == BecauseCommitted:
		return fmt.Errorf("a fallback without the reason fallback: %v", before)
	}
	pending := false
	for _, s := range before.slot[:w.m.n] {
		pending = pending || s.State() == Trial
	}
	tidy := before.hint == "" && before.armed == "" && before.readable && w.m.refill == 0
	if out.why == BecauseCommitted && !pending && tidy && c == nothing && d.writes > 0 {
		return fmt.Errorf("a boot of a committed slot with no trial pending wrote %d times: %v", d.writes, before)
	}
	if c == logFails {
		return nil // what cannot be remembered is told again
	}
	return w.toldOnce(d.world, out)
}

// toldOnce: the boot after one that told of a fallback does not tell it again,
// unless something new happened in it.
func (w *walker) toldOnce(after world, out outcome) error {
	if out.told == "" {
		return nil
	}
	again := &disk{world: after, n: w.m.n}
	next := w.m.boot(again, nothing)
	quiet := next.tried == 0 && again.fail == after.fail && again.slot == after.slot
	if next.told == out.told && next.running == out.running && quiet {
		return fmt.Errorf("the same fallback is told twice: %v", after)
	}
	return nil
}

// settles says that when nothing more befalls the machine, it comes to run a
// slot that commits, if it has one, at every boot and without a change; and that
// no reboots follow each other for long without a pause.
func (w *walker) settles(start world) error {
	var path []world
	steps := func() string { return w.m.story(start) }
	now, quick := w.m.canonical(start), 0
	for range 60 {
		if w.settled[now.key()] {
			break
		}
		path = append(path, now)
		d := &disk{world: now, n: w.m.n}
		out := w.m.boot(d, nothing)
		w.boots++
		quick++
		if out.running != "" || out.pause {
			quick = 0
		}
		if quick > 10 {
			return fmt.Errorf("reboot loop:\n%s", steps())
		}
		writes := d.writes
		if out.running != "" {
			commitEvent(w.m, d, out)
		}
		next := w.m.canonical(d.world)
		if next == now && out.running != "" && (writes == 0 || w.m.refill > 0) && w.mayStay(now, out) {
			w.settled[now.key()] = true
			break
		}
		now = next
	}
	if !w.settled[now.key()] && w.good(now) {
		return fmt.Errorf("does not settle:\n%s", steps())
	}
	for _, p := range path {
		w.settled[p.key()] = true
	}
	return nil
}

// survives says that a machine on which some writes fail for ever still boots:
// no reboots follow each other for long without a pause, a dead kernel is not
// loaded again and again, and when the default kernel's own slot is committed
// and good, something runs.
func (w *walker) survives(start world, c chance) error {
	path, now := []world{}, w.m.canonical(start)
	quick, dead, ran := 0, 0, false
	for range 30 {
		if w.lives[c][now.key()] {
			ran = true
			break
		}
		path = append(path, now)
		d := &disk{world: now, n: w.m.n}
		out := w.m.boot(d, c)
		w.boots++
		quick++
		if out.dead {
			dead++
		}
		if out.running != "" {
			commitEvent(w.m, d, out)
			ran = true
		}
		if out.running != "" || out.pause {
			quick = 0
		}
		if quick > 10 || dead > 3 && c == logFails {
			return fmt.Errorf("chance %d for ever: %d restarts in a row, %d dead kernels, from\n%v", c, quick, dead, start)
		}
		now = w.m.canonical(d.world)
	}
	def := letter(start.def)
	if !ran && start.slot[def].Successful && start.image[def].mounts() {
		return fmt.Errorf("chance %d for ever: nothing runs from\n%v", c, start)
	}
	if ran {
		for _, p := range path {
			w.lives[c][p.key()] = true
		}
	}
	return nil
}

// story is the first boots from a state, for the person who reads the error.
func (m machine) story(now world) string {
	var b strings.Builder
	for range 10 {
		d := &disk{world: now, n: m.n}
		out := m.boot(d, nothing)
		if out.running != "" {
			commitEvent(m, d, out)
		}
		fmt.Fprintf(&b, "%v -> %+v\n", now, out)
		now = m.canonical(d.world)
	}
	return b.String()
}

// good says that a good image is there to be found: one that is bootable, or
// any when nothing is.
func (w *walker) good(now world) bool {
	bootable, found := false, false
	for i, s := range now.slot[:w.m.n] {
		bootable = bootable || s.Bootable()
		waits := s.State() == Trial && now.fail[i].Reason == NotSaved // until somebody tries it
		found = found || s.Bootable() && now.image[i] == good && !waits
	}
	if bootable {
		return found
	}
	return slices.Contains(now.image[:w.m.n], good)
}

// mayStay says that a machine may run this slot for ever. A committed slot that
// broke is left only with boot.recount.
func (w *walker) mayStay(now world, out outcome) bool {
	i := letter(out.running)
	return now.image[i].works() || !w.good(now) || w.m.refill == 0 && now.slot[i].Successful
}

// anyBits are disks on which somebody's tool has set any bits, over every kind
// of image that can be in the slots.
func anyBits(m machine) []world {
	var bits []Slot
	for prio := range m.n + 1 {
		for tries := range trialTries + 1 {
			bits = append(bits, Slot{Priority: prio, Tries: tries}, Slot{Priority: prio, Tries: tries, Successful: true})
		}
	}
	out := []world{{def: "a", readable: true}}
	for i := range m.n {
		var next []world
		for _, w := range out {
			for _, b := range bits {
				for _, h := range []health{good, silent, badImage, deadKernel} {
					w.slot[i] = Slot{Name: name(i), Priority: b.Priority, Tries: b.Tries, Successful: b.Successful}
					w.image[i] = h
					if w.image[letter(w.def)].starts() {
						next = append(next, w)
					}
				}
			}
		}
		out = next
	}
	return out
}

// delivered is a new disk: a committed, the others empty.
func delivered(m machine) []world {
	w := world{def: "a", readable: true}
	for i := range m.n {
		w.slot[i].Name = name(i)
		w.image[i] = torn
	}
	w.slot[0] = Slot{Name: "a", Priority: 1, Tries: m.refill, Successful: true}
	w.image[0] = good
	return []world{w}
}

func kinds(n int) []machine {
	var all []machine
	for _, refill := range []int{0, 2} {
		for _, k := range []struct{ same, oneShot bool }{{true, true}, {false, true}, {true, false}} {
			all = append(all, machine{n: n, sameKernel: k.same, oneShot: k.oneShot, refill: refill, rules: rightRules()})
		}
	}
	return all
}

func (m machine) title() string {
	return fmt.Sprintf("slots_%d_same_kernel_%v_one_shot_%v_recount_%v", m.n, m.sameKernel, m.oneShot, m.refill > 0)
}

// statesHere is how many states each kind of machine visits in an ordinary run,
// those nearest to a new disk; the soak visits all of them.
const statesHere = 4_500

func limit(n int) int {
	if os.Getenv("SEALROOT_SOAK") != "" {
		return 0
	}
	return n
}

func (w *walker) visited() int { return len(w.seen) - len(w.queue) }

// soakEnded tells whether the machines of a soak are through: a walk beside them
// visits as many states as there is time for, and no fewer than an ordinary run.
func (w *walker) soakEnded() bool {
	until := os.Getenv("SEALROOT_WALK_UNTIL")
	if until == "" || w.visited() < statesHere {
		return false
	}
	_, err := os.Stat(until)
	return err == nil
}

// Whatever happens to a machine, in whatever order.
func TestSlotsWalk(t *testing.T) {
	all := kinds(2)
	for _, m := range kinds(3) {
		if m.oneShot && !m.sameKernel {
			all = append(all, m)
		}
	}
	for _, m := range all {
		t.Run(m.title(), func(t *testing.T) {
			t.Parallel()
			w := walker{m: m, events: events(m.n), limit: limit(statesHere)}
			if m.n > 2 {
				w.limit = statesHere / 2 // their number has no end worth waiting for
			}
			w.ended = w.soakEnded
			if err := w.walk(delivered(m)); err != nil {
				t.Error(err)
			}
			visited := w.visited()
			t.Logf("%d states visited, %d boots, all of them: %v", visited, w.boots, len(w.queue) == 0 && len(w.seen) != w.limit)
			if visited < 2000 {
				t.Errorf("got %d states, want at least 2000: the walk does not walk", visited)
			}
		})
	}
}

// Whatever bits somebody set: one step from there the machine still settles.
func TestSlotsWalkFromAnyBits(t *testing.T) {
	for _, m := range kinds(2) {
		t.Run(m.title(), func(t *testing.T) {
			t.Parallel()
			w := walker{m: m, events: events(m.n), near: true}
			if err := w.walk(anyBits(m)); err != nil {
				t.Error(err)
			}
			t.Logf("%d states visited, %d boots", len(w.seen), w.boots)
		})
	}
}

// The controls: with one rule wrong, the walk turns red.
func TestSlotsWalkNotices(t *testing.T) {
	for _, tt := range []struct {
		name    string
		recount bool // it takes boot.recount to notice
		wrong   func(*rules)
	}{
		{"a_trial_is_not_counted", false, func(r *rules) {
			r.decide = func(o Observed) (Decision, error) {
				d, err := Decide(o)
				if d.Why == BecauseTrial {
					d.Slots = nil
				}
				return d, err
			}
		}},
		{"a_committed_slot_is_not_counted", true, func(r *rules) {
			r.decide = func(o Observed) (Decision, error) {
				o.Refill = 0
				return Decide(o)
			}
		}},
		{"a_failed_check_takes_committed_away", false, func(r *rules) {
			r.markBad = func(s []Slot, name string) []Slot {
				out := markBad(s, name)
				out[index(out, name)].Successful = false
				return out
			}
		}},
		{"an_update_begins_without_a_word", false, func(r *rules) {
			r.begin = func(s []Slot, _ string) ([]Slot, error) { return s, nil }
		}},
		{"an_update_takes_the_only_good_slot", false, func(r *rules) {
			r.begin = func(s []Slot, name string) ([]Slot, error) {
				out, i, err := edit(s, name)
				out[i] = Slot{Name: name}
				return out, err
			}
		}},
		{"a_commit_makes_any_kernel_the_default", false, func(r *rules) {
			r.loaded = func(_, running string) string { return running }
		}},
		{"a_kernel_that_never_came_is_always_asked_for", false, func(r *rules) {
			r.decide = func(o Observed) (Decision, error) {
				o.Armed = ""
				return Decide(o)
			}
		}},
		{"no_pause", false, func(r *rules) {
			r.decide = func(o Observed) (Decision, error) {
				d, err := Decide(o)
				d.Pause = 0
				return d, err
			}
		}},
		{"a_restart_that_cannot_be_asked_for_ends_the_boot", false, func(r *rules) { r.stuck = true }},
		{"a_fallback_counts_as_told_when_it_is_decided", false, func(r *rules) { r.early = true }},
		{"a_trial_whose_tries_cannot_be_saved_goes_on", false, func(r *rules) {
			r.decide = func(o Observed) (Decision, error) {
				o.Failures = maps.Clone(o.Failures)
				maps.DeleteFunc(o.Failures, func(_ string, f Failure) bool { return f.Reason == NotSaved })
				return Decide(o)
			}
		}},
		{"a_one_shot_without_a_record_stays", false, func(r *rules) {
			r.apply = func(d Decision, s Store, l Loader, log Log) error {
				err := Apply(d, s, l, log)
				if errors.Is(err, ErrLog) && d.Rearm != "" {
					_ = l.Arm(d.Rearm)
				}
				return err
			}
		}},
		{"a_fallback_is_told_for_ever", false, func(r *rules) {
			r.decide = func(o Observed) (Decision, error) {
				o.Told = ""
				return Decide(o)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, m := range kinds(2) {
				if (m.refill > 0) != tt.recount {
					continue
				}
				tt.wrong(&m.rules)
				w := walker{m: m, events: events(m.n), limit: statesHere}
				if err := w.walk(delivered(m)); err != nil {
					t.Logf("%s, after %d states: %.400s", m.title(), len(w.seen), err)
					return
				}
			}
			t.Error("the walk does not notice")
		})
	}
}
