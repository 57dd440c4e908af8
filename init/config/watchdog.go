package config

import "strings"

// Watchdog is the hardware watchdog that PID 1 opens; Seconds 0 leaves it alone.
type Watchdog struct {
	// Seconds without food after which the machine is reset: 10 to 600. The
	// driver may round.
	Seconds int `json:"seconds,omitempty"`
	// Handover leaves the watchdog running for the real init, which must feed
	// it. Without it the watchdog is stopped at hand-over.
	Handover bool `json:"handover,omitempty"`
	// Daemon names the systemd service that feeds the watchdog where systemd
	// itself (RuntimeWatchdogSec=) does not; with or without ".service".
	Daemon string `json:"daemon,omitempty"`
}

// watchdog checks the watchdog's keys. Whether the root feeds it is for
// mkinitramfs to find out, which sees the root.
func (v *validator) watchdog(w Watchdog) {
	if w.Seconds == 0 && w != (Watchdog{}) {
		v.add("boot.watchdog.seconds", "choose 10 to 600", "missing")
	} else if w.Seconds != 0 && (w.Seconds < 10 || w.Seconds > 600) {
		v.add("boot.watchdog.seconds", "choose 10 to 600", "%d is out of range", w.Seconds)
	}
	if w.Daemon == "" {
		return
	}
	if !wordOf(w.Daemon, 64, letters+"._-@:") || strings.HasPrefix(w.Daemon, ".") {
		v.add("boot.watchdog.daemon", "give the name of a systemd service, without folder", "%.80q is not a service", w.Daemon)
	}
	if !w.Handover {
		v.add("boot.watchdog.daemon", "set boot.watchdog.handover: true, or leave it out", "has nothing to feed: the watchdog is stopped at hand-over")
	}
}
