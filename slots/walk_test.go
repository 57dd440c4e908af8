package slots

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// The walk puts every state of two slots, loader and log through one boot with
// the power cut before and after each write, and every state through boots
// without a cut until it settles. As it starts from all states, what holds for
// one step holds for every sequence of steps.

// health is what a slot's image does when it is booted.
type health int

const (
	good       health = iota // runs and commits
	silent                   // runs, never commits
	badImage                 // fails verification
	deadKernel               // its kernel dies before PID 1
)

func (h health) String() string { return [...]string{"good", "silent", "bad image", "dead kernel"}[h] }

// works says that the image commits once it runs: one with a dead kernel does
// under the kernel of the other slot.
func (h health) works() bool { return h == good || h == deadKernel }

// machine is what never changes in one walk.
type machine struct {
	health     [2]health
	sameKernel bool // both slots hold the same kernel release
	oneShot    bool // the loader has a one-shot
}

// world is what is on the disk. It is comparable, so it can be a map key.
type world struct {
	slot     [2]Slot
	hint     string
	armed    string
	readable bool // the log
	def      string
	pauses   int
}

func (w world) slots() []Slot { return []Slot{w.slot[0], w.slot[1]} }

func letter(name string) int { return int(name[0] - 'a') }

var errCut = errors.New("power cut")

// disk is a world being written, with the power cut at one write.
type disk struct {
	world
	writes int
	cut    int  // the write at which the power goes, from 1; 0 never
	after  bool // the write is done before the power goes
	off    bool
}

func (d *disk) write(change func()) error {
	if d.off {
		return errCut
	}
	d.writes++
	if d.writes == d.cut {
		d.off = true
		if d.after {
			change()
		}
		return errCut
	}
	change()
	return nil
}

type fakeStore struct{ *disk }

func (f fakeStore) Load() ([]Slot, error) { return f.slots(), nil }
func (f fakeStore) Save(s []Slot) error {
	return f.write(func() { copy(f.slot[:], s) })
}

type fakeLoader struct{ *disk }

func (f fakeLoader) Get() (string, error) { return f.hint, nil }
func (f fakeLoader) Arm(s string) error   { return f.write(func() { f.hint = s }) }
func (f fakeLoader) Clear() error {
	if f.hint == "" {
		return nil
	}
	return f.write(func() { f.hint = "" })
}
func (f fakeLoader) SetDefault(s string) error {
	if f.def == s {
		return nil
	}
	return f.write(func() { f.def = s })
}

type fakeLog struct{ *disk }

func (f fakeLog) Record(c LogChange) error {
	after := f.armed
	if slices.Contains(c.Forget, after) {
		after = ""
	}
	if c.SetArmed {
		after = c.Armed
	}
	pauses := f.pauses
	if c.SetPauses {
		pauses = c.Pauses
	}
	if after == f.armed && pauses == f.pauses && f.readable && len(c.Failures) == 0 {
		return nil
	}
	return f.write(func() { f.armed, f.pauses, f.readable = after, pauses, true })
}

// outcome is how a boot ended.
type outcome struct {
	running string // "" when it ended before hand-over
	why     Why
	pause   bool
	dead    bool // the kernel died before PID 1
}

// boot is one boot: loader, PID 1 as init/boot does it, and the real system.
// ignore: somebody chose the default entry by hand, the one-shot stays.
func (m machine) boot(d *disk, ignore bool) outcome {
	loaded := d.def
	if m.oneShot && d.hint != "" && !ignore {
		loaded, d.hint = d.hint, ""
	}
	if m.health[letter(loaded)] == deadKernel {
		return outcome{dead: true}
	}
	o := Observed{Slots: d.slots(), Loaded: loaded, Armed: d.armed, LogReadable: d.readable, Pauses: d.pauses, Failures: map[string]Failure{}}
	o.Hint = HintState{Slot: d.hint, Known: m.oneShot, Supported: m.oneShot}
	var loader Loader
	if m.oneShot {
		loader = fakeLoader{d}
	}
	for range 10 {
		dec, err := Decide(o)
		if err != nil {
			panic(err)
		}
		if m.apply(d, &o, dec) {
			return outcome{}
		}
		if dec.Reboot {
			return outcome{pause: dec.Pause > 0}
		}
		failed := Failure{}
		switch {
		case m.health[letter(dec.Slot)] == badImage:
			failed = Failure{Slot: dec.Slot, Class: ImageFailure, Reason: Signature}
		case dec.NeedOwnKernel && !m.sameKernel:
			own, ok := OwnKernel(o, dec.Slot)
			if ok {
				m.apply(d, &o, own)
				return outcome{pause: dec.Pause > 0}
			}
			failed = Failure{Slot: dec.Slot, Class: EnvironmentFailure, Reason: WrongKernel}
		}
		if failed.Slot == "" {
			if m.health[letter(dec.Slot)].works() {
				_ = CommitNow(dec.Slot, loaded, fakeStore{d}, loader, fakeLog{d})
			}
			return outcome{running: dec.Slot, why: dec.Why, pause: dec.Pause > 0}
		}
		o.Tried = append(o.Tried, failed.Slot)
		o.Failures[failed.Slot] = failed
		change := Decision{Log: LogChange{Failures: []Failure{failed}}}
		if failed.Class == ImageFailure {
			change.Slots = markBad(o.Slots, failed.Slot)
		}
		if m.apply(d, &o, change) {
			return outcome{}
		}
	}
	panic("a boot takes more than ten decisions")
}

// apply writes a decision; true when the power went.
func (m machine) apply(d *disk, o *Observed, dec Decision) bool {
	var hint Hint
	if m.oneShot {
		hint = fakeLoader{d}
	}
	_ = Apply(dec, fakeStore{d}, hint, fakeLog{d})
	o.Slots, o.Armed, o.Hint.Slot = d.slots(), d.armed, d.hint
	return d.off
}

func allWorlds(m machine) []world {
	var bits []Slot
	for prio := range 4 {
		for tries := range 4 {
			bits = append(bits, Slot{Priority: prio, Tries: tries}, Slot{Priority: prio, Tries: tries, Successful: true})
		}
	}
	hints := []string{"", "a", "b"}
	if !m.oneShot {
		hints = hints[:1]
	}
	var out []world
	for _, a := range bits {
		for _, b := range bits {
			a.Name, b.Name = "a", "b"
			for _, hint := range hints {
				for _, armed := range []string{"", "a", "b", "?"} {
					for _, def := range []string{"a", "b"} {
						w := world{slot: [2]Slot{a, b}, hint: hint, armed: armed, readable: true, def: def}
						if armed == "?" {
							w.armed, w.readable = "", false
						}
						if m.possible(w) {
							out = append(out, w)
						}
					}
				}
			}
		}
	}
	return out
}

// possible leaves out what no program could save: a default entry whose kernel
// is dead, and committed slots that stopped working without failing a check.
func (m machine) possible(w world) bool {
	if m.health[letter(w.def)] == deadKernel {
		return false
	}
	for i, s := range w.slot {
		if s.Successful && m.health[i] == silent {
			return false
		}
	}
	return true
}

func (w world) String() string {
	return fmt.Sprintf("%v; %v; hint %q armed %q readable %v default %s", w.slot[0], w.slot[1], w.hint, w.armed, w.readable, w.def)
}

func TestSlotsWalk(t *testing.T) {
	visited, boots := 0, 0
	for _, a := range []health{good, silent, badImage, deadKernel} {
		for _, b := range []health{good, silent, badImage, deadKernel} {
			for _, kind := range []struct{ same, oneShot bool }{{true, true}, {false, true}, {true, false}} {
				m := machine{[2]health{a, b}, kind.same, kind.oneShot}
				if a != good && b != good {
					continue
				}
				v, n := walk(t, m)
				visited, boots = visited+v, boots+n
				if t.Failed() {
					t.Fatalf("stopped: a %s, b %s, same kernel %v, one-shot %v", a, b, kind.same, kind.oneShot)
				}
			}
		}
	}
	t.Logf("%d states visited, %d boots", visited, boots)
	if visited < 100_000 {
		t.Errorf("got %d states, want at least 100000: the walk does not walk", visited)
	}
}

func walk(t *testing.T, m machine) (visited, boots int) {
	settled := map[world]bool{}
	for _, w := range allWorlds(m) {
		visited++
		for _, ignore := range []bool{false, true} {
			if ignore && w.hint == "" {
				continue // there is nothing to ignore
			}
			whole := &disk{world: w}
			out := m.boot(whole, ignore)
			boots++
			if !m.check(t, w, whole.world, out, whole.writes) {
				return visited, boots
			}
			for cut := 1; cut <= whole.writes; cut++ {
				for _, after := range []bool{false, true} {
					d := &disk{world: w, cut: cut, after: after}
					m.boot(d, ignore)
					boots++
					if !m.checkSlots(t, w, d.world, true) || !m.settles(t, d.world, settled) {
						t.Errorf("cut at write %d of %d (after %v) of: %v", cut, whole.writes, after, w)
						return visited, boots
					}
				}
			}
		}
		if !m.settles(t, w, settled) {
			return visited, boots
		}
	}
	return visited, boots
}

// check holds what is true of one whole boot.
func (m machine) check(t *testing.T, before, after world, out outcome, writes int) bool {
	ran := -1
	if out.running != "" {
		ran = letter(out.running)
	}
	if !m.checkSlots(t, before, after, ran >= 0 && m.health[ran].works()) {
		return false
	}
	if ran < 0 {
		return true
	}
	if m.health[ran] == badImage {
		t.Errorf("a bad image runs: %v", before)
	}
	if m.health[ran] == silent && before.slot[ran].State() == Trial && after.slot[ran].Tries >= before.slot[ran].Tries {
		t.Errorf("slot %s ran on trial without spending a try: %v", out.running, before)
	}
	pending := before.slot[0].State() == Trial || before.slot[1].State() == Trial
	tidy := before.hint == "" && before.armed == "" && before.readable && before.pauses == 0 && before.def == out.running
	if out.why == BecauseCommitted && !pending && tidy && writes > 0 {
		t.Errorf("a boot of a committed slot with no trial pending wrote %d times: %v", writes, before)
	}
	return !t.Failed()
}

// checkSlots holds what is true after any boot, cut or not.
func (m machine) checkSlots(t *testing.T, before, after world, mayCommit bool) bool {
	for i := range before.slot {
		b, a := before.slot[i], after.slot[i]
		if a.Tries > b.Tries {
			t.Errorf("tries of slot %s grew from %d to %d: %v", b.Name, b.Tries, a.Tries, before)
		}
		if b.Successful && !a.Successful {
			t.Errorf("slot %s is no longer committed: %v", b.Name, before)
		}
		if a.Successful && !b.Successful && (!mayCommit || !m.health[i].works()) {
			t.Errorf("slot %s was committed by nobody: %v", b.Name, before)
		}
		// one boot can cost two tries: one for the kernel that never came, and
		// one for running under the stand-in's kernel after the stand-in failed
		if m.health[i] == good && b.Bootable() && !a.Bootable() && b.Tries > 2 {
			t.Errorf("good slot %s lost all at once: %v", b.Name, before)
		}
	}
	if m.health[letter(after.def)] == deadKernel {
		t.Errorf("the default entry became a dead kernel: %v", before)
	}
	return !t.Failed()
}

// settles says that without further cuts a good slot comes to run, and then
// runs at every boot without anything being written, and that no two reboots
// follow each other without a pause or a try spent.
func (m machine) settles(t *testing.T, w world, known map[world]bool) bool {
	var path []world
	var steps []string
	quick := 0
	for range 24 {
		if known[w] || !m.possible(w) {
			break
		}
		path = append(path, w)
		d := &disk{world: w}
		out := m.boot(d, false)
		steps = append(steps, fmt.Sprintf("%v -> %+v", w, out))
		if out.running == "" && !out.pause {
			quick++
		} else {
			quick = 0
		}
		// in a row: arm and reboot, dead kernel, for each of the tries
		if quick > 8 {
			t.Errorf("reboot loop:\n%s", strings.Join(steps, "\n"))
			return false
		}
		if d.world == w && out.running != "" && m.health[letter(out.running)].works() && d.writes == 0 {
			known[w] = true
			break
		}
		w = d.world
	}
	if !known[w] && m.possible(w) {
		t.Errorf("does not settle:\n%s", strings.Join(steps, "\n"))
		return false
	}
	for _, p := range path {
		known[p] = true
	}
	return true
}
