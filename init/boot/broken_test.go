package boot

import (
	"errors"
	"testing"

	"sealroot/init/config"
	"sealroot/mount/kmod"
	"sealroot/slots"
)

// espModules is what the boot loader's settings are reached by.
type espModules struct{ inserted []string }

func (m *espModules) Insert(path string) error {
	m.inserted = append(m.inserted, path)
	return nil
}

func (m *espModules) loader(t *testing.T) *kmod.Loader {
	list := kmod.List{Modules: []kmod.Module{{Name: "vfat", Path: "/vfat.ko", Group: kmod.GroupHint}}}
	return kmod.NewLoader(list, t.TempDir(), m)
}

// fullLoader is a loader whose variables cannot be written.
type fullLoader struct{ err error }

func (f fullLoader) Get() (string, error)    { return "", nil }
func (f fullLoader) Arm(string) error        { return f.err }
func (f fullLoader) Clear() error            { return nil }
func (f fullLoader) SetDefault(string) error { return f.err }

// A restart that cannot be asked for is no reason to end the boot: the slot
// whose kernel runs is taken, and no try grows or is lost.
func TestFullVariablesDoNotEndTheBoot(t *testing.T) {
	list := []slots.Slot{{Name: "a", Priority: 1, Tries: 3, Successful: true}, {Name: "b", Priority: 2, Tries: 3, Successful: true}}
	for _, tt := range []struct {
		name string
		full error
		want error
		next string // the slot taken next in this boot
	}{
		{"variables_are_full", errors.New("ENOSPC"), nil, "a"},
		{"control", nil, errReboot, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := testBoot(&person{}, config.State{})
			store := &fakeStore{list: list}
			esp := &espModules{}
			b.loader = esp.loader(t)
			b.slots.store, b.slots.log, b.slots.hint = store, store, fullLoader{tt.full}
			b.slots.observed = slots.Observed{Slots: list, LogReadable: true, Loaded: "a", Refill: 3, Hint: slots.HintState{Supported: true}}
			slot, foreign, err := b.chooseSlot(t.Context())
			if slot != "b" || !foreign || err != nil {
				t.Fatalf("chooseSlot() = %q, %v, %v, want b under another kernel", slot, foreign, err)
			}
			if err := b.rebootInto(t.Context(), "b"); !errors.Is(err, tt.want) {
				t.Fatalf("rebootInto() = %v, want %v", err, tt.want)
			}
			if len(esp.inserted) == 0 {
				t.Error("the one-shot was set before the modules of the ESP were there")
			}
			if b, _ := slots.Find(store.list, "b"); b.Tries != 3 {
				t.Errorf("slot b has %d tries, want 3", b.Tries)
			}
			if tt.next != "" {
				if slot, foreign, err := b.chooseSlot(t.Context()); slot != tt.next || foreign || err != nil {
					t.Errorf("then chooseSlot() = %q, %v, %v, want %s", slot, foreign, err, tt.next)
				}
			}
			_ = b.ended(t.Context(), "root", environmentError(slots.TPM, "no TPM"))
			for _, s := range store.list {
				if s.Tries != 3 {
					t.Errorf("after a boot that ended: %v, want 3 tries", s)
				}
			}
		})
	}
}

// brokenStore reads and does not write.
type brokenStore struct{ *fakeStore }

var errBroken = errors.New("EIO")

func (brokenStore) Save([]slots.Slot) error { return errBroken }

// A trial whose try cannot be saved does not run, and the log says why, so that
// the next boot does not restart into its kernel again.
func TestTrialThatCannotBeSaved(t *testing.T) {
	list := []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Tries: 2}}
	observed := slots.Observed{
		Slots: list, LogReadable: true, Loaded: "b", Armed: "b",
		Hint: slots.HintState{Supported: true, Known: true},
	}
	b, _ := testBoot(&person{}, config.State{})
	log := &fakeStore{list: list}
	b.slots.store, b.slots.log, b.slots.hint = brokenStore{log}, log, fullLoader{}
	b.slots.observed = observed
	if slot, _, err := b.chooseSlot(t.Context()); slot != "a" || err != nil {
		t.Fatalf("chooseSlot() = %q, %v, want a", slot, err)
	}
	if len(log.changes) == 0 || len(log.changes[0].Failures) != 1 || log.changes[0].Failures[0].Reason != slots.NotSaved {
		t.Fatalf("the log got %+v, want that slot b was not saved", log.changes)
	}
	next := observed
	next.Loaded, next.Armed = "a", ""
	for _, tt := range []struct {
		name   string
		reason slots.Reason
		reboot bool
	}{{"on_record", slots.NotSaved, false}, {"control", slots.IOError, true}} {
		next.Failures = map[string]slots.Failure{"b": {Slot: "b", Class: slots.EnvironmentFailure, Reason: tt.reason}}
		if d, err := slots.Decide(next); err != nil || d.Reboot != tt.reboot || d.Slot != "a" {
			t.Errorf("%s: got slot %q, restart %v, %v, want a, %v", tt.name, d.Slot, d.Reboot, err, tt.reboot)
		}
	}
}

// A trial that stands in for a slot that failed in this boot is a trial still.
func TestTrialAsFallbackIsATrial(t *testing.T) {
	list := []slots.Slot{{Name: "a", Priority: 2, Successful: true}, {Name: "b", Priority: 1, Tries: 2}}
	b, _ := testBoot(&person{}, config.State{})
	store := &fakeStore{list: list}
	b.slots.store, b.slots.log = store, store
	b.slots.observed = slots.Observed{Slots: list, LogReadable: true, Tried: []string{"a"}}
	slot, _, err := b.chooseSlot(t.Context())
	if slot != "b" || err != nil || !b.report.Slot.Trial || b.report.Slot.Reason != string(slots.BecauseFallback) {
		t.Errorf("chooseSlot() = %q, %v, report %+v, want slot b on trial, as a fallback", slot, err, b.report.Slot)
	}
}

// A fallback counts as told when it is told, not when it is decided: the boot
// may end before anybody is there.
func TestFallbackIsToldWhenSomebodyIsThere(t *testing.T) {
	list := []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2}}
	b, _ := testBoot(&person{}, config.State{})
	store := &fakeStore{list: list}
	b.slots.store, b.slots.log = store, store
	b.slots.observed = slots.Observed{Slots: list, LogReadable: true}
	told := func() (n int) {
		for _, c := range store.changes {
			if c.Told == "b no-commit" {
				n++
			}
		}
		return n
	}
	if _, _, err := b.chooseSlot(t.Context()); err != nil || b.report.FellBack == nil {
		t.Fatalf("got fallback %v, %v", b.report.FellBack, err)
	}
	if told() != 0 {
		t.Error("a fallback counts as told before hand-over")
	}
	if b.noteTold(); told() != 1 {
		t.Errorf("recorded %d times at hand-over, want once", told())
	}
}
