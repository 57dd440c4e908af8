package boot

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sealroot/init/config"
	"sealroot/mount/kmod"
	"sealroot/mount/uevent"
	"sealroot/mount/watchdog"
	"sealroot/slots"
	"sealroot/slots/bootlog"
)

// A panic in a stage is a failure of the slot whose initramfs runs: on record,
// with a pause that grows, and the next boot takes another slot.
func TestPanicIsACountedFailure(t *testing.T) {
	committed := []slots.Slot{{Name: "a", Priority: 2, Successful: true}, {Name: "b", Priority: 1, Successful: true}}
	panics := func(context.Context) error { panic("index out of range") }
	refuses := func(context.Context) error { return environmentError(slots.DeviceMissing, "no disk") }
	for _, tt := range []struct {
		name, chosen, loaded string
		run                  func(context.Context) error
		bad                  string // the slot to blame
	}{
		{"chosen_slot", "a", "", panics, "a"},
		{"initramfs_of_another_slot", "b", "a", panics, "a"},
		{"nothing_chosen_yet", "", "b", panics, "b"},
		{"kernel_of_no_slot", "a", slots.UnknownKernel, panics, "a"},
		{"control_an_error", "a", "a", refuses, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := testBoot(&person{}, config.State{})
			store := &fakeStore{list: committed}
			b.slots.store, b.slots.log = store, store
			b.slots.observed = slots.Observed{Slots: committed, LogReadable: true, Loaded: tt.loaded, Pauses: 3}
			b.report.Slot.Name = tt.chosen
			later := false
			err := b.through(t.Context(), []stage{
				{"state", tt.run}, {"layers", func(context.Context) error { later = true; return nil }},
			})
			var failed *failedBoot
			if !errors.As(err, &failed) || failed.pause <= firstPause || later {
				t.Fatalf("through() = %v, want a boot that failed, with a longer pause; next stage: %v", err, later)
			}
			if errors.Is(err, errInternal) != (tt.bad != "") {
				t.Errorf("through() = %v", err)
			}
			if len(store.record.Reports) != 1 || store.record.Pauses != 4 {
				t.Errorf("%d reports, %d pauses; want 1 and 4", len(store.record.Reports), store.record.Pauses)
			}
			if tt.bad == "" {
				if store.saves != 0 {
					t.Errorf("slots became %v", store.list)
				}
				return
			}
			if d, err := slots.Decide(slots.Observed{Slots: store.list, LogReadable: true}); err != nil || d.Slot == tt.bad {
				t.Errorf("the next boot takes %q, %v", d.Slot, err)
			}
			if got := store.changes[0].Failures[0]; got.Slot != tt.bad || got.Reason != slots.InternalError || !strings.Contains(got.Detail, "index out of range") {
				t.Errorf("on record: %+v", got)
			}
			if s, _ := slots.Find(store.list, tt.bad); !s.Successful {
				t.Error("a committed slot lost \"successful\"")
			}
		})
	}
}

// panickingLog brings the program down when it is written.
type panickingLog struct{ *fakeStore }

func (panickingLog) Update(func(bootlog.Record) (bootlog.Record, error)) error { panic("a log") }

// What the boot fails at may be the very thing that the failure is recorded in.
func TestPanicInTheRecordOfAFailure(t *testing.T) {
	b, _ := testBoot(&person{}, config.State{})
	b.slots.log, b.slots.observed.Pauses = panickingLog{&fakeStore{}}, 2
	err := b.ended(t.Context(), "disk", errLocked)
	var failed *failedBoot
	if !errors.As(err, &failed) || failed.pause <= firstPause || !errors.Is(err, errLocked) || !errors.Is(err, errInternal) {
		t.Errorf("ended() = %v, want a boot that failed, and both reasons", err)
	}
}

// panickingEvents bring the program down once drivers are watched for.
type panickingEvents struct{}

func (panickingEvents) Next(context.Context) ([]uevent.Event, error) { panic("an event") }

func TestPanicWhileDriversAreWatched(t *testing.T) {
	b, _ := testBoot(&person{}, config.State{})
	b.loader, b.events = kmod.NewLoader(kmod.List{}, t.TempDir(), nil), panickingEvents{}
	b.watchDrivers(t.Context())()
	if got := strings.Join(b.report.Warnings, "\n"); !strings.Contains(got, "internal error: an event") {
		t.Errorf("warnings %q", got)
	}
}

// panickingDog brings the program down when it is fed.
type panickingDog struct{ *fakeDog }

func (panickingDog) Feed() error { panic("a dog") }

// A goroutine that panics is the end of the program: here the watchdog is left
// to do its work.
func TestPanicOfTheWatchman(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dog := &fakeDog{info: watchdog.Info{Timeout: dogTime}, fed: time.Now()}
		b, _ := testBoot(&person{}, config.State{})
		b.cfg.Boot.Watchdog = config.Watchdog{Seconds: 30}
		b.sys.OpenWatchdog = func(watchdog.Options) (Watchdog, error) { return panickingDog{dog}, nil }
		b.watch("disk")
		b.watch("tpm")
		time.Sleep(dogTime + time.Second)
		if !dog.resets() {
			t.Error("the watchdog is fed")
		}
		b.guard.letGo(false) // and nobody waits for the feeder
	})
}
