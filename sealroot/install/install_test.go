package install

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"sealroot/sealroot/bootset"
	"sealroot/slots"
	"sealroot/slots/manifest"
	"sealroot/verity/signature/signaturetest"
)

// fixture is a machine that runs slot a, and what can be installed on it.
type fixture struct {
	keys     signaturetest.Signer
	old, new testSet // in slot a; to be installed
	other    testSet // in slot b
}

func newFixture(t testing.TB) fixture {
	t.Helper()
	k := signaturetest.New(t)
	return fixture{k, newSet(t, k, 1, "1"), newSet(t, k, 2, "2"), newSet(t, k, 3, "0.9")}
}

func (f fixture) running() Running {
	return Running{
		Boot: bootset.Boot{Running: "a", Loaded: "a"}, Name: "kiosk", Version: "1",
		RootHash: hexOf(f.old.manifest.RootHash), SecurityVersion: 2, WasCommitted: true,
	}
}

// start is a way in which a machine can be when something is written.
type start struct {
	name  string
	b     slots.Slot
	armed string
	first string
}

func starts() []start {
	return []start{
		{"empty", slots.Slot{Name: "b"}, "", "a"},
		{"given_up", slots.Slot{Name: "b", Priority: 2}, "", "a"},
		{"committed", slots.Slot{Name: "b", Priority: 1, Successful: true}, "", "a"},
		// after a fall-over inside one boot the default stays with the failed slot
		{"default_on_the_failed_slot", slots.Slot{Name: "b", Priority: 1, Successful: true}, "", "b"},
		{"trial_waits", slots.Slot{Name: "b", Priority: 3, Tries: 3}, "b", "a"},
	}
}

func (f fixture) world(s start) *world {
	w := &world{
		slots: []slots.Slot{{Name: "a", Priority: 2, Successful: true}, s.b},
		armed: s.armed, record: s.armed, first: s.first,
		layers: map[string][]byte{},
		parts:  map[string][]byte{}, files: map[string][]byte{}, beside: map[string][]byte{},
		room: 1 << 20, needs: []BootFile{Kernel, Initrd},
	}
	w.put("a", f.old)
	w.put("b", f.other)
	return w
}

func (f fixture) install(t testing.TB, w *world) error {
	t.Helper()
	_, err := w.machine(f.keys).Install(context.Background(), f.new.source(t), f.running(), Options{Tries: 3})
	return err
}

// installed says what is missing of an install.
func (f fixture) installed(w *world) error {
	b, _ := slots.Find(w.slots, "b")
	switch {
	case b.State() != slots.Trial || b.Tries != 3:
		return errors.New(b.String() + ", want it on trial with 3 tries")
	case w.armed != "b" || w.record != "b":
		return errors.New("the one-shot is for " + w.armed + ", the log says " + w.record)
	case w.first != "a":
		return errors.New("the default is slot " + w.first)
	case len(w.beside) > 0:
		return errors.New("boot files are left beside")
	}
	return w.whole("b", f.new)
}

func TestInstall(t *testing.T) {
	f := newFixture(t)
	for _, s := range starts() {
		t.Run(s.name, func(t *testing.T) {
			w := f.world(s)
			if err := f.install(t, w); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(f.installed(w), w.bricked(f.old, f.new)); err != nil {
				t.Error(err)
			}
		})
	}
}

// Parity behind the tree is installed and copied with it.
func TestParity(t *testing.T) {
	f := newFixture(t)
	f.new.withParity(t, f.keys, 3)
	w := f.world(starts()[0])
	if err := errors.Join(f.install(t, w), f.installed(w)); err != nil {
		t.Fatal(err)
	}
	w.slots = []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Successful: true}}
	r := f.running()
	r.Running, r.Loaded = "b", "b"
	m := w.machine(f.keys)
	m.FECRoots = 3
	if _, err := m.Copy(context.Background(), r, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := w.whole("a", f.new); err != nil {
		t.Error(err)
	}
	// one block less is neither tree nor parity
	f.new.files["verity"] = f.new.files["verity"][:len(f.new.files["verity"])-4096]
	f.new.seal(t, f.keys)
	if err := f.install(t, f.world(starts()[0])); !errors.Is(err, ErrSet) {
		t.Errorf("parity that is cut off: got error %v, want %v", err, ErrSet)
	}
}

// The power is cut before every write: the machine starts a whole slot, the
// running one is untouched, and the next install just works.
func TestInstallCutAtEveryWrite(t *testing.T) {
	f := newFixture(t)
	for _, s := range starts() {
		for _, lose := range []bool{false, true} {
			t.Run(s.name+map[bool]string{true: "_cache_lost"}[lose], func(t *testing.T) {
				cuts := cutEverywhere(t, f.world(s), lose, func(w *world) error { return f.install(t, w) }, func(w *world, n int) {
					if err := w.bricked(f.old, f.new, f.other); err != nil {
						t.Errorf("cut before write %d (%s): %v", n, w.trace[n-1], err)
					}
					again := w.restart()
					if err := errors.Join(f.install(t, again), f.installed(again)); err != nil {
						t.Errorf("cut before write %d (%s): the next install: %v", n, w.trace[n-1], err)
					}
				})
				if cuts < 15 {
					t.Errorf("only %d writes were cut", cuts)
				}
			})
		}
	}
}

// cutEverywhere does something on machines whose power is cut before their
// first, second, ... write.
func cutEverywhere(t *testing.T, from *world, lose bool, do func(*world) error, judge func(w *world, n int)) (cuts int) {
	t.Helper()
	for n := 1; ; n++ {
		w := from.clone()
		w.cutAt, w.lose = n, lose
		err := do(w)
		if err == nil {
			return n - 1
		}
		if !errors.Is(err, errCut) {
			t.Fatalf("cut before write %d: got error %v", n, err)
		}
		judge(w, n)
	}
}

// The control: with a store that does not make the slot unbootable first, the
// judge sees a slot that would be started and is not whole.
func TestJudgeSeesWrongOrder(t *testing.T) {
	f := newFixture(t)
	w := f.world(starts()[2])
	w.lies = true
	bad := 0
	cutEverywhere(t, w, false, func(w *world) error { return f.install(t, w) }, func(w *world, _ int) {
		if w.bricked(f.old, f.new, f.other) != nil {
			bad++
		}
	})
	if bad == 0 {
		t.Error("no cut was judged bad")
	}
}

// One write fails and the machine goes on: an error, nothing bricked, and the
// next install just works.
func TestInstallWriteErrors(t *testing.T) {
	f := newFixture(t)
	for _, s := range starts() {
		t.Run(s.name, func(t *testing.T) {
			for n := 1; ; n++ {
				w := f.world(s)
				w.failAt = n
				err := f.install(t, w)
				if err == nil {
					break
				}
				if err := w.bricked(f.old, f.new, f.other); err != nil {
					t.Errorf("write %d (%s) failed: %v", n, w.trace[n-1], err)
				}
				b, _ := slots.Find(w.slots, "b")
				if errors.Is(err, ErrUnbootable) != strings.ContainsAny(w.trace[n-1], "/") {
					t.Errorf("write %d (%s) failed with %v; %s", n, w.trace[n-1], err, b)
				}
				again := w.restart()
				if err := errors.Join(f.install(t, again), f.installed(again)); err != nil {
					t.Errorf("write %d (%s) failed: the next install: %v", n, w.trace[n-1], err)
				}
			}
		})
	}
}

func TestInstallOrder(t *testing.T) {
	f := newFixture(t)
	w := f.world(start{"", slots.Slot{Name: "b", Priority: 3, Tries: 3}, "b", "b"})
	if err := f.install(t, w); err != nil {
		t.Fatal(err)
	}
	want := []string{"default", "clear", "log", "slots", "write b/verity", "sync b/verity", "write b/root", "sync b/root", "write b/verity-sig"}
	got := slices.Compact(slices.Clone(w.trace))
	if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
		t.Errorf("got %v, want it to begin with %v", got, want)
	}
	if end := got[len(got)-4:]; !slices.Equal(end, []string{"log", "slots", "arm", "log"}) {
		t.Errorf("it ends with %v", end)
	}
}

// A medium that does not keep what was written is noticed.
func TestReadBack(t *testing.T) {
	f := newFixture(t)
	w := f.world(starts()[0])
	m := w.machine(f.keys)
	m.Disk = forgetful{w}
	_, err := m.Install(context.Background(), f.new.source(t), f.running(), Options{Tries: 3})
	if !errors.Is(err, ErrReadBack) || !errors.Is(err, ErrUnbootable) {
		t.Errorf("got error %v, want %v and %v", err, ErrReadBack, ErrUnbootable)
	}
	if err := w.bricked(f.old, f.new); err != nil {
		t.Error(err)
	}
}

// forgetful loses a byte of each root image.
type forgetful struct{ *world }

func (f forgetful) OpenPart(slot string, part manifest.Name, write bool) (Partition, error) {
	p, err := f.world.OpenPart(slot, part, write)
	return worn{p, part == "root" && write}, err
}

type worn struct {
	Partition
	bad bool
}

func (w worn) WriteAt(b []byte, off int64) (int, error) {
	if w.bad && off == 0 {
		b = slices.Clone(b)
		b[5000] ^= 1
	}
	return w.Partition.WriteAt(b, off)
}

// A medium that keeps nothing still holds the whole image of before.
func TestReadBackOfTheOldImage(t *testing.T) {
	f := newFixture(t)
	w := f.world(starts()[0])
	m := w.machine(f.keys)
	m.Disk = deaf{w}
	_, err := m.Install(context.Background(), f.new.source(t), f.running(), Options{Tries: 3})
	if !errors.Is(err, ErrReadBack) || !strings.Contains(err.Error(), "root hash") || strings.Contains(err.Error(), "%!") {
		t.Errorf("got error %v, want %v with another root hash", err, ErrReadBack)
	}
}

// deaf takes every write and keeps none.
type deaf struct{ *world }

func (d deaf) OpenPart(slot string, part manifest.Name, write bool) (Partition, error) {
	p, err := d.world.OpenPart(slot, part, write)
	return unwritten{p}, err
}

type unwritten struct{ Partition }

func (unwritten) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }

func TestInstallEnded(t *testing.T) {
	f := newFixture(t)
	w := f.world(starts()[0])
	ctx, cancel := context.WithCancel(context.Background())
	m := w.machine(f.keys)
	m.Progress = stopper{Quiet{}, cancel}
	_, err := m.Install(ctx, f.new.source(t), f.running(), Options{Tries: 3})
	if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrUnbootable) {
		t.Errorf("got error %v, want %v and %v", err, context.Canceled, ErrUnbootable)
	}
	if err := w.bricked(f.old); err != nil {
		t.Error(err)
	}
	if b, _ := slots.Find(w.slots, "b"); b.State() != slots.Unbootable {
		t.Error(b)
	}
}

// stopper is a person who presses Ctrl-C as soon as bytes are written.
type stopper struct {
	Quiet
	stop func()
}

func (s stopper) Add(int64) { s.stop() }

// What has to happen before a slot changes comes before anything else that lasts; without
// it nothing changes.
func TestBeforeChange(t *testing.T) {
	f := newFixture(t)
	refused := errors.New("a kernel is loaded")
	for name, do := range map[string]func(Machine, func() error) error{
		"install": func(m Machine, ready func() error) error {
			_, err := m.Install(t.Context(), f.new.source(t), f.running(), Options{Tries: 3, Ready: ready})
			return err
		},
		"copy": func(m Machine, ready func() error) error {
			_, err := m.Copy(t.Context(), f.running(), CopyOptions{Ready: func(string) error { return ready() }})
			return err
		},
		"proved": func(m Machine, _ func() error) error {
			_, err := m.Proved(Held{Slot: "b"}, slots.Failure{Reason: slots.Verity}, 0)
			return err
		},
	} {
		for _, want := range []error{refused, nil} {
			w := f.world(starts()[2])
			m, called := w.machine(f.keys), 0
			m.BeforeChange = func() error {
				if called++; called == 1 && w.writes > 0 {
					t.Errorf("%s: it is called after %q", name, w.trace)
				}
				return want
			}
			ready := false
			err := do(m, func() error { ready = true; return nil })
			if !errors.Is(err, want) || called == 0 || want != nil && (w.writes > 0 || ready) || want == nil && w.writes == 0 {
				t.Errorf("%s: %v, called %d times, ready %v, %q", name, err, called, ready, w.trace)
			}
		}
	}
}
