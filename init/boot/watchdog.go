package boot

import (
	"context"
	"errors"
	"sync"
	"time"

	"sealroot/init/report"
	"sealroot/mount/watchdog"
)

// Watchdog is a running hardware watchdog; mount/watchdog is the real one.
type Watchdog interface {
	Info() watchdog.Info
	// Feed starts its timer anew, and arms it again after Disarm.
	Feed() error
	// Disarm makes exec stop it, which closes the device.
	Disarm() error
	Close() error
}

// watch guards a stage that begins. The watchdog is opened as soon as its
// driver can be there: behind the modules, or with what the search for the disk
// has loaded.
func (b *boot) watch(stage string) {
	if b.cfg == nil || b.cfg.Boot.Watchdog.Seconds == 0 {
		return
	}
	if b.guard == nil && (stage == "disk" || stage == "tpm") {
		if err := b.openWatchdog(); err != nil && stage == "tpm" {
			b.warn("nothing watches this boot: %v", err)
		}
	}
	b.guard.allow("stage "+stage, stageLimit(stage))
	if stage == "measure" && b.report.Slot.Trial {
		b.stopOnPurpose()
	}
}

// stageLimit is for how long the watchdog is fed in one stage: longer than all
// that a stage may wait for by itself, and short enough for a machine that
// nobody visits. A person has time of their own (watchedConsole).
func stageLimit(stage string) time.Duration {
	switch stage {
	case "state", "layers":
		// a volume is made, or content of the image copied into it
		return 15 * time.Minute
	case "report", "handover":
		return 2 * time.Minute
	}
	return 5 * time.Minute
}

// restartLimit is for how long the watchdog is fed while a boot ends, beyond
// its pause: the TPM is closed, disks are synced.
const restartLimit = 3 * time.Minute

// openWatchdog starts the hardware watchdog and begins to feed it.
func (b *boot) openWatchdog() error {
	c := b.cfg.Boot.Watchdog
	dog, err := b.sys.OpenWatchdog(watchdog.Options{Timeout: time.Duration(c.Seconds) * time.Second, Endless: c.Handover})
	if errors.Is(err, watchdog.ErrNoWayOut) {
		b.report.Watchdog = &report.Watchdog{Device: watchdog.Path, NoWayOut: true}
	}
	if err != nil {
		return err
	}
	info := dog.Info()
	seconds := int(info.Timeout / time.Second)
	b.sys.Log.Info("watchdog %s (%s): %d s", watchdog.Path, clean(info.Identity), seconds)
	if seconds != c.Seconds {
		b.warn("the watchdog resets the machine after %d s, not %d", seconds, c.Seconds)
	}
	if info.NoWayOut {
		b.warn("the watchdog cannot be stopped any more (nowayout)")
	}
	if c.Handover && info.StopsOnClose {
		b.warn("the watchdog's driver stops it at hand-over: nothing watches until the real init opens it")
	}
	if info.Fired {
		b.sys.Log.Warn("the watchdog ended what ran before")
	}
	b.report.Watchdog = &report.Watchdog{
		Device: watchdog.Path, Identity: clean(info.Identity), Seconds: seconds,
		HandedOver: c.Handover && !info.StopsOnClose, NoWayOut: info.NoWayOut, Fired: info.Fired,
	}
	b.guard = &watchman{dog: dog, log: b.sys.Log, every: max(info.Timeout/4, 500*time.Millisecond)}
	return nil
}

// watchEnd guards the way from a boot that failed to the restart; the watchdog
// stays armed for a restart that hangs. Whoever configured halt wants the
// machine to stay down.
func (b *boot) watchEnd(err error) error {
	var failed *failedBoot
	switch {
	case errors.Is(err, errHalt):
		b.guard.letGo(false)
		b.guard.close()
	case errors.As(err, &failed):
		b.guard.allow("the restart", failed.pause+restartLimit)
	default:
		b.guard.allow("the restart", restartLimit)
	}
	return err
}

// wait is a pause that the boot makes on purpose.
func (b *boot) wait(d time.Duration) {
	b.guard.allow("a pause", d+restartLimit)
	b.sys.Power.Sleep(d)
}

// letWatchdogGo is the last act before exec, which closes the device: it is
// then stopped, or runs on for the real init to feed.
func (b *boot) letWatchdogGo() {
	b.guard.letGo(b.cfg.Boot.Watchdog.Handover)
}

// watchman feeds a watchdog for as long as the boot shows progress. A boot that
// hangs while its process lives must not be fed for ever. A nil watchman has no
// watchdog.
type watchman struct {
	dog   Watchdog
	log   *Log
	every time.Duration

	mu     sync.Mutex
	what   string // what was begun last
	limit  time.Duration
	since  time.Time
	hungry bool          // it has been said that nobody feeds any more
	stop   chan struct{} // closed to end the feeding; nil while nobody feeds
	done   chan struct{}
}

// allow says that something was begun which may take limit, and feeds.
func (w *watchman) allow(what string, limit time.Duration) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.what, w.limit, w.since, w.hungry = what, limit, time.Now(), false
	if w.stop == nil {
		w.stop, w.done = make(chan struct{}), make(chan struct{})
		go w.feed(w.stop, w.done)
	}
}

// feed runs until stop is closed.
func (w *watchman) feed(stop, done chan struct{}) {
	defer func() {
		// Without food the watchdog ends the boot, and better than a panic does.
		if p := recover(); p != nil {
			w.log.Error("nobody feeds the watchdog: %v: %v", errInternal, p)
		}
		close(done)
	}()
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	said := false
	for {
		if w.progress() {
			if err := w.dog.Feed(); err != nil && !said {
				w.log.Error("%v", err)
				said = true
			}
		}
		select {
		case <-stop:
			return
		case <-tick.C:
		}
	}
}

// progress tells whether what was begun last is within its limit.
func (w *watchman) progress() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Since(w.since) <= w.limit {
		return true
	}
	if !w.hungry {
		w.hungry = true
		w.log.Error("%s takes longer than %s: the watchdog will reset the machine", w.what, w.limit)
	}
	return false
}

// letGo ends the feeding. With running the watchdog has its full time from now,
// without it is disarmed.
func (w *watchman) letGo(running bool) {
	if w == nil {
		return
	}
	w.mu.Lock()
	stop, done := w.stop, w.done
	w.stop, w.done = nil, nil
	w.mu.Unlock()
	if stop != nil {
		close(stop)
		<-done
	}
	last := w.dog.Disarm
	if running {
		last = w.dog.Feed
	}
	if err := last(); err != nil {
		w.log.Error("%v", err)
	}
}

// close gives the device back; nothing may be allowed after it.
func (w *watchman) close() {
	if w == nil {
		return
	}
	if err := w.dog.Close(); err != nil {
		w.log.Error("%v", err)
	}
}

// openConsole opens the console for a question.
func (b *boot) openConsole() (Console, error) {
	c, err := b.sys.OpenConsole()
	if err != nil || b.guard == nil {
		return c, err
	}
	return watchedConsole{c, b.guard}, nil
}

// watchedConsole gives a person the time that a question has; the idle time
// begins anew with each key.
type watchedConsole struct {
	Console
	guard *watchman
}

// ReadLine is Console's.
func (c watchedConsole) ReadLine(ctx context.Context, idle time.Duration) ([]byte, error) {
	defer c.guard.asking(idle)()
	return c.Console.ReadLine(ctx, idle)
}

// WaitKey is Console's.
func (c watchedConsole) WaitKey(ctx context.Context, idle time.Duration) error {
	defer c.guard.asking(idle)()
	return c.Console.WaitKey(ctx, idle)
}

// asking begins a question; what it returns ends it.
func (w *watchman) asking(idle time.Duration) (answered func()) {
	w.allow("a question to a person", 2*idle)
	return func() { w.allow("what follows an answer", stageLimit("state")) }
}
