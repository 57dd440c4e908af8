package slots

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The model is a machine around the state machine: a disk that loses power at
// any write, a boot loader, PID 1 as init/boot acts, and the running system with
// the commands of sealroot. walk_test.go sends it through all that can happen.

// health is what a slot's image does when it is booted.
type health int8

const (
	good       health = iota // runs and commits
	silent                   // runs, never commits
	badImage                 // its root is refused; its kernel starts
	deadKernel               // its kernel dies before PID 1; its root is good
	torn                     // half written: neither
)

func (h health) String() string {
	return [...]string{"good", "silent", "bad image", "dead kernel", "torn"}[h]
}

// works says that the root commits once it runs: one with a dead kernel does
// under the kernel of another slot.
func (h health) works() bool  { return h == good || h == deadKernel }
func (h health) mounts() bool { return h.works() || h == silent }
func (h health) starts() bool { return h != deadKernel && h != torn }

const maxSlots = 3

// machine is what never changes in one walk.
type machine struct {
	n          int
	sameKernel bool   // all slots hold the same kernel release
	oneShot    bool   // there is a loader that takes hints
	refill     int    // boot.recount
	blind      string // the slot whose kernel lacks what every root needs
	rules      rules
}

// rules are the decisions under test; a control puts a wrong one in.
type rules struct {
	decide  func(Observed) (Decision, error)
	markBad func([]Slot, string) []Slot
	begin   func([]Slot, string) ([]Slot, error)
	loaded  func(loaded, running string) string // what a commit is told
	apply   func(Decision, Store, Loader, Log) error
	stuck   bool // a restart that cannot be asked for ends the boot
	early   bool // a fallback counts as told when it is decided
}

func rightRules() rules {
	return rules{decide: Decide, markBad: markBad, begin: BeginUpdate, loaded: func(loaded, _ string) string { return loaded }, apply: Apply}
}

// world is what is on the disk. It is comparable, so it can be a map key.
type world struct {
	slot     [maxSlots]Slot
	image    [maxSlots]health
	fail     [maxSlots]Failure // from the log
	hint     string
	armed    string
	told     string
	readable bool // the log
	def      string
	pauses   int
}

func letter(name string) int { return int(name[0] - 'a') }
func name(i int) string      { return "abc"[i : i+1] }

func (w world) String() string {
	var b strings.Builder
	for i, s := range w.slot {
		if s.Name != "" {
			fmt.Fprintf(&b, "%v (%s, log %q above %q); ", s, w.image[i], w.fail[i].Reason, w.fail[i].Above)
		}
	}
	fmt.Fprintf(&b, "hint %q armed %q told %q readable %v default %s pauses %d", w.hint, w.armed, w.told, w.readable, w.def, w.pauses)
	return b.String()
}

// canonical forgets what decides nothing, so that the walk ends: the numbers of
// the priorities but not their order, the tries of slots that are not counted,
// and which of several reasons with the same meaning a failure has.
func (m machine) canonical(w world) world {
	var used []int
	for _, s := range w.slot {
		if s.Priority > 0 && !slices.Contains(used, s.Priority) {
			used = append(used, s.Priority)
		}
	}
	slices.Sort(used)
	for i := range w.slot {
		s := &w.slot[i]
		s.Priority = 1 + slices.Index(used, s.Priority)
		if s.Successful && m.refill == 0 || s.State() == Unbootable {
			s.Tries = 0
		}
		f := &w.fail[i]
		if !s.Successful {
			f.Above = "" // Restore looks at committed slots only
		}
		if canonicalReason(f.Reason) != f.Reason {
			same := w.told == Told(*f)
			f.Reason = canonicalReason(f.Reason)
			if same {
				w.told = Told(*f)
			}
			if f.Class != ImageFailure {
				f.Class = EnvironmentFailure
			}
		}
	}
	// the turn of the last resort goes by the remainder; 0 has no pause
	if turns := []int{1, 1, 2, 6}[m.n]; w.pauses >= 2*turns {
		w.pauses = turns + w.pauses%turns
	}
	return w
}

// key is a world in few bytes, for maps.
type key [32]byte

func (w world) key() key {
	var k key
	n := 0
	put := func(b byte) { k[n] = b; n++ }
	word := func(s string) {
		if s == "" {
			put(0)
		} else {
			put(s[0])
		}
	}
	for i, s := range w.slot {
		bits := byte(s.Priority)<<4 | byte(s.Tries)<<1
		if s.Successful {
			bits |= 1
		}
		put(bits)
		put(byte(w.image[i]))
		f := w.fail[i]
		above := byte(0)
		for _, c := range strings.ReplaceAll(f.Above, ",", "") {
			above |= 1 << (c - 'a')
		}
		put(reasonCode(f.Reason)<<3 | above)
		word(string(f.Class))
	}
	word(w.hint)
	word(w.armed)
	word(w.def)
	slot, reason, _ := strings.Cut(w.told, " ")
	word(slot)
	put(reasonCode(Reason(reason)))
	put(byte(w.pauses))
	if w.readable {
		put(1)
	}
	return k
}

func reasonCode(r Reason) byte {
	all := []Reason{"", Manual, IOError, KernelNeverReached, NoCommit, Signature, NotSaved}
	i := slices.Index(all, r)
	if i < 0 {
		panic("the model does not know the reason " + string(r))
	}
	return byte(i)
}

func canonicalReason(r Reason) Reason {
	switch r {
	case HealthCheck:
		return Manual
	case UnlockRefused, WrongKernel:
		return IOError
	}
	return r
}

var (
	errCut    = errors.New("power cut")
	errBroken = errors.New("cannot be written")
)

// disk is a world being written, with the power cut at one write.
type disk struct {
	world
	n      int
	writes int
	cut    int  // the write at which the power goes, from 1; 0 never
	after  bool // the write is done before the power goes
	off    bool
	broken part // what cannot be written
}

// part is where a write goes.
type part int8

const (
	toImage part = iota // never broken here
	toStore
	toLoader
	toLog
)

func (d *disk) slots() []Slot { return slices.Clone(d.slot[:d.n]) }

func (d *disk) failures() map[string]Failure {
	m := map[string]Failure{}
	for i, f := range d.fail[:d.n] {
		if f.Reason != "" {
			m[name(i)] = f
		}
	}
	return m
}

func (d *disk) write(to part, change func()) error {
	if d.off {
		return errCut
	}
	if d.broken == to && to != toImage {
		return errBroken
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
	if slices.Equal(s, f.slot[:f.n]) {
		return nil
	}
	return f.write(toStore, func() { copy(f.slot[:], s) })
}

type fakeLoader struct{ *disk }

func (f fakeLoader) Get() (string, error) { return f.hint, nil }
func (f fakeLoader) Arm(s string) error {
	if f.hint == s {
		return nil
	}
	return f.write(toLoader, func() { f.hint = s })
}
func (f fakeLoader) Clear() error {
	if f.hint == "" {
		return nil
	}
	return f.write(toLoader, func() { f.hint = "" })
}
func (f fakeLoader) SetDefault(s string) error {
	if f.def == s {
		return nil
	}
	return f.write(toLoader, func() { f.def = s })
}

// fakeLog does what bootlog.Record.Apply does, which has tests of its own.
type fakeLog struct{ *disk }

func (f fakeLog) Record(c LogChange) error {
	w := f.world
	for _, slot := range c.Forget {
		w.forget(slot)
		for i := range w.fail {
			above := slices.DeleteFunc(strings.Split(w.fail[i].Above, ","), func(s string) bool { return s == slot })
			w.fail[i].Above = strings.Join(above, ",")
		}
	}
	for _, slot := range c.Clear {
		w.forget(slot)
	}
	if c.SetArmed {
		w.armed = c.Armed
	}
	if c.SetPauses {
		w.pauses = c.Pauses
	}
	for _, g := range c.Failures {
		i := letter(g.Slot)
		if g.Above == "" && !g.ByHand() {
			g.Above = w.fail[i].Above
		}
		g.Detail = ""
		w.fail[i] = g
		if ToldOf(w.told, g.Slot) {
			w.told = ""
		}
	}
	if c.Told != "" {
		w.told = c.Told
	}
	if w == f.world && f.readable {
		return nil
	}
	w.readable = true
	return f.write(toLog, func() { f.world = w })
}

func (w *world) forget(slot string) {
	w.fail[letter(slot)] = Failure{}
	if w.armed == slot {
		w.armed = ""
	}
	if ToldOf(w.told, slot) {
		w.told = ""
	}
}

// chance is what befalls one boot.
type chance int

const (
	nothing     chance = iota
	byHand             // somebody chose the default entry in the menu; the one-shot stays
	otherKernel        // the loader takes another kernel than it was told; the one-shot is gone
	refused            // the state cannot be unlocked, and nobody is there
	diskError          // the first slot cannot be read for once
	storeFails         // nothing can be written to the store
	loaderFails        // one-shot and default cannot be written
	logFails           // nothing can be written to the log
	allChances
)

// broken is what the chance keeps from being written.
func (c chance) broken() part {
	switch c {
	case storeFails:
		return toStore
	case loaderFails:
		return toLoader
	case logFails:
		return toLog
	}
	return toImage
}

// outcome is how a boot ended.
type outcome struct {
	running string // "" when it ended before hand-over
	loaded  string
	why     Why
	told    string // the fallback that was told, "" none
	tried   int    // slots that failed before
	pause   bool
	dead    bool   // the kernel that was loaded never reached PID 1
	took    string // committed slot whose try was taken and not given back
}

// loads is the slot whose kernel the loader starts; false when none can.
func (m machine) loads(d *disk, c chance) (string, bool) {
	loaded := d.def
	if m.oneShot && d.hint != "" && c != byHand {
		loaded, d.hint = d.hint, ""
	}
	if c == otherKernel {
		next := (letter(loaded) + 1) % m.n
		for !d.image[next].starts() {
			next = (next + 1) % m.n
		}
		loaded = name(next)
	}
	return loaded, d.image[letter(loaded)].starts()
}

// boot is one boot: the loader, and PID 1 as init/boot does it.
func (m machine) boot(d *disk, c chance) outcome {
	d.broken = c.broken()
	loaded, ok := m.loads(d, c)
	if !ok {
		return outcome{dead: true}
	}
	o := Observed{Slots: d.slots(), Loaded: loaded, LogReadable: d.readable, Failures: map[string]Failure{}, Refill: m.refill}
	if d.readable {
		o.Armed, o.Pauses, o.Told, o.Failures = d.armed, d.pauses, d.told, d.failures()
	}
	o.Arrived = o.Armed == loaded
	o.Hint = HintState{Slot: d.hint, Known: m.oneShot, Supported: m.oneShot}
	for range 12 {
		dec, err := m.rules.decide(o)
		if err != nil {
			panic(err)
		}
		written := m.apply(d, &o, dec)
		if d.off || dec.Reboot && (written == nil || dec.Why == BecauseLastResort) {
			return outcome{pause: dec.Pause > 0}
		}
		if written != nil && dec.Reboot && dec.Why == BecauseCommitted {
			o.Hint.Known = false
			continue
		}
		if errors.Is(written, ErrStore) && dec.Spends != "" {
			m.giveUp(d, &o, Failure{Slot: dec.Spends, Class: EnvironmentFailure, Reason: NotSaved})
			continue
		}
		failed, restart := m.mount(d, &o, dec, c)
		if restart {
			return outcome{pause: dec.Pause > 0}
		}
		if failed.Slot == "" {
			out := outcome{running: dec.Slot, loaded: loaded, why: dec.Why, tried: len(o.Tried), pause: dec.Pause > 0}
			if dec.FellBack != nil {
				out.told = Told(*dec.FellBack)
			}
			return m.unlock(d, &o, dec, out, c)
		}
		m.giveUp(d, &o, failed)
		if d.off {
			return outcome{}
		}
	}
	panic("a boot takes more than twelve decisions")
}

// mount is what openRoot does with the slot chosen.
func (m machine) mount(d *disk, o *Observed, dec Decision, c chance) (failed Failure, restart bool) {
	image := d.image[letter(dec.Slot)]
	switch {
	case m.blind != "" && o.Loaded == m.blind:
		return Failure{Slot: dec.Slot, Class: EnvironmentFailure, Reason: IOError}, false
	case c == diskError && len(o.Tried) == 0:
		return Failure{Slot: dec.Slot, Class: EnvironmentFailure, Reason: IOError}, false
	case !image.mounts():
		return Failure{Slot: dec.Slot, Class: ImageFailure, Reason: Signature}, false
	case dec.NeedOwnKernel && !m.sameKernel:
		own, failure, ok := OwnKernel(*o, dec.Slot)
		if ok {
			err := m.apply(d, o, own)
			if own.Slots != nil && !errors.Is(err, ErrStore) {
				o.Took = nil
			}
			if err == nil || d.off || m.rules.stuck {
				return Failure{}, true
			}
			failure = Failure{Slot: dec.Slot, Class: EnvironmentFailure, Reason: WrongKernel}
		}
		return failure, false
	}
	return Failure{}, false
}

func (m machine) giveUp(d *disk, o *Observed, f Failure) {
	change := Decision{}
	if f.Class == ImageFailure {
		if f.Reason != KernelNeverReached {
			f.Above = Standing(o.Slots, f.Slot)
		}
		change.Slots = m.rules.markBad(o.Slots, f.Slot)
	} else if slices.Contains(o.Took, f.Slot) {
		change.Slots, o.Took = mustGiveBack(o.Slots, f.Slot), nil
	}
	o.Tried = append(o.Tried, f.Slot)
	o.Failures = maps.Clone(o.Failures)
	o.Failures[f.Slot] = f
	change.Log.Failures = []Failure{f}
	m.apply(d, o, change)
}

// unlock is what openState does, and what follows when it cannot.
func (m machine) unlock(d *disk, o *Observed, dec Decision, out outcome, c chance) outcome {
	if c != refused {
		if len(o.Took) > 0 {
			out.took = o.Took[0]
		}
		if out.told != "" {
			_ = (fakeLog{d}).Record(LogChange{Told: out.told})
		}
		return out
	}
	if _, ok := Default(o.Slots); ok && dec.Why == BecauseTrial {
		f := Failure{Slot: dec.Slot, Class: StateFailure, Reason: UnlockRefused}
		m.apply(d, o, Decision{Log: LogChange{Failures: []Failure{f}}})
		return outcome{}
	}
	change := Decision{Log: LogChange{SetPauses: true, Pauses: o.Pauses + 1}}
	if dec.Why == BecauseLastResort {
		change.Log = LogChange{}
	}
	if slices.Contains(o.Took, dec.Slot) {
		change.Slots = mustGiveBack(o.Slots, dec.Slot)
	}
	m.apply(d, o, change)
	return outcome{pause: true}
}

// apply writes a decision.
func (m machine) apply(d *disk, o *Observed, dec Decision) error {
	if m.rules.early && dec.FellBack != nil {
		dec.Log.Told = Told(*dec.FellBack)
	}
	err := m.rules.apply(dec, fakeStore{d}, m.loader(d), fakeLog{d})
	o.Slots, o.Armed, o.Hint.Slot = d.slots(), d.armed, d.hint
	if dec.Slot != "" {
		o.LastResort = dec.Why == BecauseLastResort
	}
	if dec.Took != "" && !errors.Is(err, ErrStore) {
		o.Took = append(o.Took, dec.Took)
	}
	return err
}
