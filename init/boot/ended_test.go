package boot

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"sealroot/init/config"
	"sealroot/mount/dm"
	"sealroot/slots"
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

// fakeStore keeps slots, hint and log in memory.
type fakeStore struct {
	list    []slots.Slot
	saves   int
	changes []slots.LogChange
}

func (f *fakeStore) Load() ([]slots.Slot, error) { return f.list, nil }
func (f *fakeStore) Save(s []slots.Slot) error   { f.list, f.saves = s, f.saves+1; return nil }
func (f *fakeStore) Record(c slots.LogChange) error {
	f.changes = append(f.changes, c)
	return nil
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
		pause := b.backoff()
		if pause < last || pause < firstPause || pause > longPause {
			t.Errorf("pause after %d failed boots = %s, before it %s", n, pause, last)
		}
		if len(store.changes) != 1 || store.changes[0].Pauses != n+1 {
			t.Errorf("the log got %+v, want %d pauses", store.changes, n+1)
		}
		last = pause
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
