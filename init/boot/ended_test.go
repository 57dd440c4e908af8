package boot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount/dm"
	"sealroot/slots"
	"sealroot/slots/bootlog"
	"sealroot/slots/efi"
	"sealroot/slots/fixed"
	"sealroot/state"
)

// fakeVerity is a dm-verity device that says of itself what status says.
type fakeVerity struct {
	status string
	err    error
}

func (f fakeVerity) Verity(string, string, dm.VerityTarget) (dm.Device, error) {
	return dm.Device{}, nil
}
func (f fakeVerity) Status(string) ([]dm.Status, error) {
	return []dm.Status{{Type: "verity", Text: f.status}}, f.err
}
func (f fakeVerity) Remove(string) error { return nil }

func TestBlame(t *testing.T) {
	eio := imageError(slots.Mount, "cannot mount slot a: %w", syscall.EIO)
	for _, tt := range []struct {
		name   string
		verity fakeVerity
		err    error
		want   slots.Class
	}{
		{"block_does_not_match", fakeVerity{status: "C"}, eio, slots.ImageFailure},
		{"disk_fails_below_a_good_image", fakeVerity{status: "V"}, eio, slots.EnvironmentFailure},
		{"device_cannot_be_asked", fakeVerity{err: errors.New("gone")}, eio, slots.ImageFailure},
		{"not_a_read_error", fakeVerity{status: "V"}, imageError(slots.Mount, "cannot mount: %w", syscall.EINVAL), slots.ImageFailure},
		{"state_is_never_the_image", fakeVerity{status: "C"}, stateError(slots.StateDamaged, "%w", syscall.EIO), slots.StateFailure},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := testBoot(&person{}, config.State{})
			b.sys.Verity = tt.verity
			if class, _ := classOf(b.blame(tt.err)); class != tt.want {
				t.Errorf("class = %s, want %s", class, tt.want)
			}
		})
	}
}

// A boot that went on without a layer is in the boot log once, also when it ends later.
func TestLogReport(t *testing.T) {
	b, _ := testBoot(&person{}, config.State{})
	earlier := json.RawMessage(`{"boot_id":"0"}`)
	store := &fakeStore{record: bootlog.Record{Pauses: 1, Reports: []json.RawMessage{earlier}}}
	b.slots.log, b.slots.observed.Pauses = store, 1
	b.report.Layers = []report.Layer{{Name: "mid", LeftOut: "cannot use layer mid: <gone>"}}
	b.logReport(false)
	if r := store.record; r.Pauses != 1 || len(r.Reports) != 2 || !strings.Contains(string(r.Reports[1]), "gone") {
		t.Fatalf("the boot log has %d pauses, %s", r.Pauses, r.Reports)
	}
	b.keepReport("handover", errors.New("no init"), true)
	if r := store.record; r.Pauses != 2 || len(r.Reports) != 2 || !strings.Contains(string(r.Reports[1]), "no init") || string(r.Reports[0]) != string(earlier) {
		t.Errorf("then it has %d pauses, %s", r.Pauses, r.Reports)
	}
}

// A boot with as many layers as there may be, most of which nobody has made yet, is in the
// boot log with what matters: the layer that is damaged, and what ended the boot.
func TestLogReportOfManyLayers(t *testing.T) {
	b, _ := testBoot(&person{}, config.State{})
	store := &fakeStore{}
	b.slots.log = store
	for i := range config.MaxLayers {
		l := report.Layer{Name: fmt.Sprintf("layer-%d", i), RootHash: strings.Repeat("0123456789abcdef", 4)}
		if i > 0 {
			l = report.Layer{Name: l.Name, LeftOut: "cannot use layer " + l.Name + ": openat2 .layers/" + l.Name + ": no such file or directory", Absent: true}
			b.report.Failures = append(b.report.Failures, report.Failure{Stage: "layers", Slot: "a", Class: "state", Error: l.LeftOut})
		}
		b.report.Layers = append(b.report.Layers, l)
	}
	b.report.Layers[7] = report.Layer{Name: "layer-7", LeftOut: "cannot use layer layer-7: damaged"}
	b.keepReport("handover", errors.New("no init"), true)
	if r := store.record; len(r.Reports) != 1 || !strings.Contains(string(r.Reports[0]), "layer-7: damaged") || !strings.Contains(string(r.Reports[0]), "no init") {
		t.Errorf("the boot log has %.300s", r.Reports)
	}
	if len(b.report.Layers) != config.MaxLayers || len(b.report.Failures) < config.MaxLayers-1 {
		t.Errorf("the report itself has %d layers and %d failures left", len(b.report.Layers), len(b.report.Failures))
	}
}

// fakeStore keeps slots, hint and log in memory.
type fakeStore struct {
	list    []slots.Slot
	saves   int
	changes []slots.LogChange
	record  bootlog.Record
}

func (f *fakeStore) Load() ([]slots.Slot, error) { return f.list, nil }
func (f *fakeStore) Save(s []slots.Slot) error   { f.list, f.saves = s, f.saves+1; return nil }
func (f *fakeStore) Record(c slots.LogChange) error {
	f.changes = append(f.changes, c)
	return nil
}

func (f *fakeStore) Update(change func(bootlog.Record) (bootlog.Record, error)) (err error) {
	f.record, err = change(f.record)
	return err
}

// A slot whose image fails after it was chosen is bad for the next boot too; a
// state or a disk that fails costs no slot anything.
func TestEndedBoot(t *testing.T) {
	committed := []slots.Slot{{Name: "a", Priority: 2, Successful: true}, {Name: "b", Priority: 1, Successful: true}}
	for _, tt := range []struct {
		name  string
		err   error
		first string // the slot that the next boot takes
	}{
		{"image", imageError(slots.Mount, "cannot start /sbin/init: %w", syscall.ENOEXEC), "b"},
		{"state", stateError(slots.StateDamaged, "cannot open the encrypted volume"), "a"},
		{"environment", environmentError(slots.TPM, "cannot close the TPM"), "a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := testBoot(&person{}, config.State{})
			store := &fakeStore{list: committed}
			b.slots.store, b.slots.log = store, store
			b.slots.observed = slots.Observed{Slots: committed, LogReadable: true}
			b.report.Slot.Name = "a"
			err := b.ended(t.Context(), "handover", tt.err)
			if !errors.Is(err, tt.err) {
				t.Errorf("ended() = %v, want it to hold the cause", err)
			}
			d, decideErr := slots.Decide(slots.Observed{Slots: store.list, LogReadable: true})
			if decideErr != nil || d.Slot != tt.first {
				t.Errorf("the next boot takes %q, %v; want %s", d.Slot, decideErr, tt.first)
			}
			if a, _ := slots.Find(store.list, "a"); !a.Successful {
				t.Error("a committed slot lost \"successful\"")
			}
		})
	}
}

func TestPausesGrowAndStayBounded(t *testing.T) {
	last := time.Duration(0)
	for n := range 20 {
		b, _ := testBoot(&person{}, config.State{})
		store := &fakeStore{}
		b.slots.log, b.slots.observed.Pauses = store, n
		var failed *failedBoot
		if err := b.ended(t.Context(), "disk", errLocked); !errors.As(err, &failed) {
			t.Fatalf("ended() = %v, want a failed boot", err)
		}
		if failed.pause < last || failed.pause < firstPause || failed.pause > longPause {
			t.Errorf("pause after %d failed boots = %s, before it %s", n, failed.pause, last)
		}
		if store.record.Pauses != n+1 {
			t.Errorf("the log got %d pauses, want %d", store.record.Pauses, n+1)
		}
		last = failed.pause
	}
}

// A boot that never reaches the real init leaves its report in the boot log; a
// restart that is part of the plan leaves none.
func TestReportOfABootThatEnded(t *testing.T) {
	for _, tt := range []struct {
		name     string
		failures int
		err      error
		reports  int
		pauses   int
	}{
		{"factory_reset", 0, fmt.Errorf("factory reset: %w", errReboot), 1, 0},
		{"failed", 1, stateError(slots.UnlockRefused, "%w", errLocked), 1, 1},
		{"failed_before_a_slot_was_chosen", 0, environmentError(slots.DeviceMissing, "no disk"), 1, 1},
		{"halt", 1, fmt.Errorf("%w: %w", errHalt, errLocked), 1, 0},
		{"restart_of_a_trial_without_state", 1, fmt.Errorf("slot b: %w", errReboot), 1, 0},
		{"restart_into_a_trial", 0, errReboot, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := testBoot(&person{}, config.State{})
			store := &fakeStore{}
			b.slots.store, b.slots.log = store, store
			for range tt.failures {
				b.failed("state", "", tt.err)
			}
			if tt.name == "factory_reset" {
				b.report.State.ResetBegun = state.ResetByKey.String()
			}
			_ = b.ended(t.Context(), "state", tt.err)
			if len(store.record.Reports) != tt.reports || store.record.Pauses != tt.pauses {
				t.Fatalf("got %d reports and %d pauses, want %d and %d", len(store.record.Reports), store.record.Pauses, tt.reports, tt.pauses)
			}
			for _, text := range store.record.Reports {
				var r report.Report
				if err := json.Unmarshal(text, &r); err != nil || !strings.HasPrefix(r.Ended, "state: ") {
					t.Errorf("report says it ended by %q, %v", r.Ended, err)
				}
			}
		})
	}
}

// With recount a boot that ends by no fault of the slot gives its try back; one
// that a person never answered has not even taken it.
func TestTryIsGivenBack(t *testing.T) {
	counted := []slots.Slot{{Name: "a", Priority: 2, Tries: 3, Successful: true}, {Name: "b", Priority: 1, Tries: 3, Successful: true}}
	for _, tt := range []struct {
		name string
		err  error
		want int
	}{
		{"unlock_refused", stateError(slots.UnlockRefused, "%w", errLocked), 3},
		{"halt", fmt.Errorf("%w: %w", errHalt, stateError(slots.UnlockRefused, "%w", errLocked)), 3},
		{"no_tpm", environmentError(slots.TPM, "cannot close the TPM"), 3},
		{"image", imageError(slots.Mount, "cannot start /sbin/init: %w", syscall.ENOEXEC), 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := testBoot(&person{}, config.State{})
			store := &fakeStore{list: counted}
			b.slots.store, b.slots.log = store, store
			b.slots.observed = slots.Observed{Slots: counted, LogReadable: true, Refill: 3}
			if slot, _, err := b.chooseSlot(t.Context()); err != nil || slot != "a" {
				t.Fatalf("chooseSlot() = %q, %v", slot, err)
			}
			if a, _ := slots.Find(store.list, "a"); a.Tries != 2 {
				t.Fatalf("the boot took %d tries, want 1", 3-a.Tries)
			}
			again := b.giveBack()
			if a, _ := slots.Find(store.list, "a"); a.Tries != 3 {
				t.Errorf("in front of a question: %d tries, want 3", a.Tries)
			}
			again()
			_ = b.ended(t.Context(), "state", tt.err)
			if a, _ := slots.Find(store.list, "a"); a.Tries != tt.want || !a.Successful {
				t.Errorf("afterwards: %v, want %d tries and still committed", a, tt.want)
			}
		})
	}
}

// A store that cannot change is no reason to warn, and none to stop.
func TestFixedStoreIsQuiet(t *testing.T) {
	b, _ := testBoot(&person{}, config.State{})
	log := &fakeStore{}
	list := []slots.Slot{{Name: "a", Priority: 1, Tries: 3, Successful: true}}
	b.slots.store, b.slots.log = fixed.Store{Names: []string{"a"}}, log
	b.slots.observed = slots.Observed{Slots: list, LogReadable: true, Refill: 3}
	slot, _, err := b.chooseSlot(t.Context())
	if slot != "a" || err != nil || len(b.report.Warnings) > 0 || len(b.slots.observed.Took) > 0 {
		t.Errorf("chooseSlot() = %q, %v, warnings %q, took %q", slot, err, b.report.Warnings, b.slots.observed.Took)
	}
}

// What is said of a failed slot is what was written.
func TestGivenUpSlotInWords(t *testing.T) {
	for _, tt := range []struct {
		name       string
		store      slots.Store
		want, lies string
	}{
		{"fixed", fixed.Store{Names: []string{"a"}}, "slot a is given up for this boot", "marked bad"},
		{"counting", &fakeStore{}, "slot a is marked bad", "for this boot"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := testBoot(&person{}, config.State{})
			var text bytes.Buffer
			b.sys.Log = NewLog(&text)
			b.slots.store, b.slots.log = tt.store, &fakeStore{}
			b.slots.observed = slots.Observed{Slots: []slots.Slot{{Name: "a", Priority: 1, Successful: true}}, LogReadable: true}
			if err := b.giveUp(t.Context(), slots.Failure{Slot: "a", Class: slots.ImageFailure, Reason: slots.Mount}); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(text.String(), tt.want) || strings.Contains(text.String(), tt.lies) {
				t.Errorf("got %q, want %q", &text, tt.want)
			}
		})
	}
}

func TestWhoLoaded(t *testing.T) {
	for _, tt := range []struct {
		name    string
		in      efi.Loaded
		slot    string
		compare bool
	}{
		{"nobody_told", efi.Loaded{}, "", false},
		{"word_of_the_command_line", efi.Loaded{Kind: efi.KnownSlot, Slot: "b", From: "sealroot.slot=b"}, "b", false},
		{"fallback_file", efi.Loaded{Kind: efi.FallbackFile, From: "LoaderImageIdentifier"}, "", true},
		{"somebody_elses_kernel", efi.Loaded{Kind: efi.NoSlot, From: "LoaderImageIdentifier"}, slots.UnknownKernel, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if slot, compare := whoLoaded(tt.in); slot != tt.slot || compare != tt.compare {
				t.Errorf("whoLoaded() = %q, %v, want %q, %v", slot, compare, tt.slot, tt.compare)
			}
		})
	}
}

func TestDeadlineCountsFromTheHandOver(t *testing.T) {
	got := string(deadlineConf(90*time.Minute+time.Millisecond, 10*time.Minute))
	if !strings.HasSuffix(got, "[Timer]\nOnBootSec=\nOnBootSec=6001s\n") {
		t.Errorf("got %q", got)
	}
}

// An unlock that fails on trial gives the machine back to the committed slot;
// on a committed slot it goes down the configured ladder.
func TestTrialWithoutState(t *testing.T) {
	cause := stateError(slots.UnlockRefused, "%w", errLocked)
	list := []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Tries: 2}}
	for _, tt := range []struct {
		name  string
		slot  string
		trial bool
		want  error
	}{
		{"on_trial", "b", true, errReboot},
		{"committed", "a", false, errHalt},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := testBoot(&person{}, config.State{OnFailure: []string{"halt"}})
			store := &fakeStore{list: list}
			b.slots.store, b.slots.log = store, store
			b.slots.observed.Slots = list
			b.report.Slot.Name, b.report.Slot.Trial = tt.slot, tt.trial
			err := b.withoutState(cause)
			if !errors.Is(err, tt.want) {
				t.Errorf("withoutState() = %v, want %v", err, tt.want)
			}
			if store.saves != 0 {
				t.Errorf("the slots were written %d times, want never: the try is spent already", store.saves)
			}
		})
	}
}

func TestFailWaitsAsLongAsTheBootSays(t *testing.T) {
	b, power := testBoot(&person{}, config.State{})
	stop := errors.New("stop")
	b.sys.Power = stoppingPower{power, stop}
	func() {
		defer func() {
			if recover() != stop {
				t.Error("Fail() did not restart the machine")
			}
		}()
		Fail(b.sys, fmt.Errorf("root: %w", &failedBoot{errLocked, 7 * time.Minute}))
	}()
	if power.slept != 7*time.Minute {
		t.Errorf("waited %s, want 7 minutes", power.slept)
	}
}

// stoppingPower ends the test where the machine would restart.
type stoppingPower struct {
	*fakePower
	stop error
}

func (s stoppingPower) Reboot() error { panic(s.stop) }
