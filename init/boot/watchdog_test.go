package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount/watchdog"
)

// fakeDog is a watchdog that resets a machine which does not feed it. Tests run
// it in a synctest bubble, where time is not real.
type fakeDog struct {
	info watchdog.Info

	mu       sync.Mutex
	fed      time.Time
	disarmed bool
	closed   bool
}

func (d *fakeDog) Info() watchdog.Info { return d.info }
func (d *fakeDog) Feed() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errors.New("fed after it was closed")
	}
	d.fed, d.disarmed = time.Now(), false
	return nil
}
func (d *fakeDog) Disarm() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.disarmed = true
	return nil
}
func (d *fakeDog) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return nil
}

// resets tells whether the machine would have been reset by now.
func (d *fakeDog) resets() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !(d.disarmed && d.closed) && time.Since(d.fed) > d.info.Timeout
}

// state returns whether it is disarmed, and how long ago it was fed.
func (d *fakeDog) state() (disarmed bool, ago time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.disarmed, time.Since(d.fed)
}

const dogTime = 30 * time.Second

// watchedBoot is a boot whose watchdog runs; it stands in stage "disk".
func watchedBoot(t *testing.T, handover bool) (*boot, *fakeDog) {
	t.Helper()
	dog := &fakeDog{info: watchdog.Info{Timeout: dogTime}}
	b, _ := testBoot(&person{}, config.State{})
	b.cfg.Boot.Watchdog = config.Watchdog{Seconds: 30, Handover: handover}
	b.sys.OpenWatchdog = func(watchdog.Options) (Watchdog, error) { return dog, nil }
	b.watch("disk")
	t.Cleanup(func() { b.guard.letGo(false) })
	return b, dog
}

func TestHungBootIsReset(t *testing.T) {
	stages := []string{"disk", "tpm", "root", "measure", "state", "cap", "layers", "report", "handover"}
	for _, hangs := range append(stages, "") {
		t.Run("in_"+orNone(hangs), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, dog := watchedBoot(t, false)
				for _, stage := range stages {
					b.watch(stage)
					time.Sleep(time.Minute) // slow, and well
					if dog.resets() {
						t.Fatalf("reset in stage %s, which went on", stage)
					}
					if stage == hangs {
						break
					}
				}
				if hangs == "" { // the control: nothing did
					b.letWatchdogGo()
					b.guard.close()
				}
				limit := stageLimit(hangs) + dogTime + time.Second
				time.Sleep(limit)
				if got := dog.resets(); got != (hangs != "") {
					t.Errorf("reset after %s: %v", limit, got)
				}
			})
		})
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// slowPerson answers after a time.
type slowPerson struct {
	person
	answer time.Duration
}

func (p *slowPerson) ReadLine(context.Context, time.Duration) ([]byte, error) {
	time.Sleep(p.answer)
	return []byte("x"), nil
}
func (p *slowPerson) WaitKey(context.Context, time.Duration) error {
	time.Sleep(p.answer)
	return nil
}

func TestPersonMayTakeTime(t *testing.T) {
	for _, tt := range []struct {
		name   string
		ask    func(c Console) error
		answer time.Duration
		resets bool
	}{
		{"line", func(c Console) error { _, err := c.ReadLine(t.Context(), keyLimit); return err }, 19 * time.Minute, false},
		{"key", func(c Console) error { return c.WaitKey(t.Context(), keyLimit) }, 19 * time.Minute, false},
		{"console_hangs", func(c Console) error { return c.WaitKey(t.Context(), keyLimit) }, 21 * time.Minute, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, dog := watchedBoot(t, false)
				b.sys.OpenConsole = func() (Console, error) { return &slowPerson{answer: tt.answer}, nil }
				b.watch("state")
				c, err := b.openConsole()
				if err != nil {
					t.Fatal(err)
				}
				if err := tt.ask(c); err != nil {
					t.Fatal(err)
				}
				if dog.resets() != tt.resets {
					t.Fatalf("reset while a person took %s: %v", tt.answer, dog.resets())
				}
				// The answer is progress, and begins a time that ends.
				time.Sleep(10 * time.Minute)
				if dog.resets() {
					t.Error("reset although the person had answered")
				}
				time.Sleep(6 * time.Minute)
				if !dog.resets() {
					t.Error("fed for ever after an answer")
				}
			})
		})
	}
}

// What the real init finds: a watchdog that is stopped, or one with its full
// time. A hand-over that failed goes on being watched.
func TestWatchdogAtHandOver(t *testing.T) {
	for _, tt := range []struct {
		name     string
		handover bool
		resets   bool
	}{{"stopped", false, false}, {"handed_over_and_not_fed", true, true}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, dog := watchedBoot(t, tt.handover)
				time.Sleep(10 * time.Second)
				b.letWatchdogGo()
				if disarmed, ago := dog.state(); disarmed == tt.handover || ago > dogTime/4 {
					t.Errorf("disarmed: %v, fed %s ago", disarmed, ago)
				}
				b.guard.close() // as exec does
				time.Sleep(time.Hour)
				if dog.resets() != tt.resets {
					t.Errorf("a root that never feeds it is reset: %v, want %v", dog.resets(), tt.resets)
				}
			})
		})
	}
	t.Run("exec_failed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b, dog := watchedBoot(t, false)
			b.letWatchdogGo()
			_ = b.watchEnd(&failedBoot{errLocked, firstPause})
			time.Sleep(firstPause)
			if disarmed, ago := dog.state(); disarmed || ago > dogTime/4 {
				t.Errorf("disarmed: %v, fed %s ago; want it armed and fed", disarmed, ago)
			}
		})
	})
}

func TestWatchdogAtTheEndOfABoot(t *testing.T) {
	for _, tt := range []struct {
		name  string
		err   error
		quiet time.Duration // must pass without a reset
		then  bool          // reset when it hangs for an hour more
	}{
		{"restart_after_the_longest_pause", &failedBoot{errLocked, longPause}, longPause + syncTime, true},
		{"restart_at_once", fmt.Errorf("root: %w", errReboot), syncTime, true},
		{"halt_stays_down", fmt.Errorf("state: %w", errHalt), firstPause, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, dog := watchedBoot(t, true)
				if err := b.watchEnd(tt.err); err != tt.err {
					t.Errorf("watchEnd() = %v, want what it got", err)
				}
				time.Sleep(tt.quiet)
				if dog.resets() {
					t.Fatalf("reset before %s were over", tt.quiet)
				}
				time.Sleep(time.Hour)
				if dog.resets() != tt.then {
					t.Errorf("a restart that hangs is reset: %v, want %v", dog.resets(), tt.then)
				}
			})
		})
	}
}

func TestPauseOfALastResortIsFed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, dog := watchedBoot(t, false)
		b.sys.Power = sleepingPower{}
		b.watch("root")
		b.wait(longPause)
		if dog.resets() {
			t.Error("reset in a pause that the boot made on purpose")
		}
	})
}

// sleepingPower really sleeps.
type sleepingPower struct{ *fakePower }

func (sleepingPower) Sleep(d time.Duration) { time.Sleep(d) }

func TestOpenWatchdog(t *testing.T) {
	const device = watchdog.Path
	for _, tt := range []struct {
		name     string
		info     watchdog.Info
		err      error
		handover bool
		want     *report.Watchdog
		warns    string // "" for no warning
	}{
		{"as_asked", watchdog.Info{Identity: "x", Timeout: dogTime}, nil, false, &report.Watchdog{Device: device, Identity: "x", Seconds: 30}, ""},
		{"handed_over", watchdog.Info{Timeout: dogTime}, nil, true, &report.Watchdog{Device: device, Seconds: 30, HandedOver: true}, ""},
		{"other_time", watchdog.Info{Timeout: time.Minute}, nil, false, &report.Watchdog{Device: device, Seconds: 60}, "after 60 s, not 30"},
		{"fired_before", watchdog.Info{Timeout: dogTime, Fired: true}, nil, false, &report.Watchdog{Device: device, Seconds: 30, Fired: true}, ""},
		{"driver_stops_it_on_close", watchdog.Info{Timeout: dogTime, StopsOnClose: true}, nil, true, &report.Watchdog{Device: device, Seconds: 30}, "nothing watches until"},
		{"nowayout_handed_over", watchdog.Info{Timeout: dogTime, NoWayOut: true}, nil, true,
			&report.Watchdog{Device: device, Seconds: 30, HandedOver: true, NoWayOut: true}, "cannot be stopped"},
		{"nowayout_left_alone", watchdog.Info{}, fmt.Errorf("x: %w", watchdog.ErrNoWayOut), false, &report.Watchdog{Device: device, NoWayOut: true}, "could not be stopped"},
		{"no_device", watchdog.Info{}, watchdog.ErrNoDevice, false, nil, "no watchdog device"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := testBoot(&person{}, config.State{})
			b.cfg.Boot.Watchdog = config.Watchdog{Seconds: 30, Handover: tt.handover}
			var asked watchdog.Options
			b.sys.OpenWatchdog = func(o watchdog.Options) (Watchdog, error) {
				asked = o
				if tt.err != nil {
					return nil, tt.err
				}
				return &fakeDog{info: tt.info}, nil
			}
			// Its driver may come with the search for the disk: one warning, and late.
			b.watch("disk")
			b.watch("tpm")
			b.watch("root")
			defer b.guard.letGo(false)
			if want := (watchdog.Options{Timeout: dogTime, Endless: tt.handover}); asked != want {
				t.Errorf("asked for %+v, want %+v", asked, want)
			}
			if got := b.report.Watchdog; (got == nil) != (tt.want == nil) || got != nil && *got != *tt.want {
				t.Errorf("report has %+v, want %+v", got, tt.want)
			}
			if got := strings.Join(b.report.Warnings, "\n"); !strings.Contains(got, tt.warns) || (got == "") != (tt.warns == "") || strings.Contains(got, "\n") {
				t.Errorf("warnings %q, want one with %q", got, tt.warns)
			}
		})
	}
}

func TestWatchdogIsLeftAloneUnlessConfigured(t *testing.T) {
	b, _ := testBoot(&person{}, config.State{})
	var out bytes.Buffer
	b.sys.Log = NewLog(&out)
	for _, stage := range []string{"modules", "disk", "tpm", "handover"} {
		b.watch(stage) // would call OpenWatchdog, which is nil
	}
	b.letWatchdogGo()
	if b.report.Watchdog != nil || out.Len() > 0 {
		t.Errorf("report %+v, log %q; want nothing", b.report.Watchdog, out.String())
	}
}
