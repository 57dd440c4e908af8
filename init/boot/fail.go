package boot

import (
	"errors"
)

// Fail is the one place that decides what follows a boot that did not reach the
// real init. It never returns. There is no shell, and nothing to type.
func Fail(sys *System, err error) {
	pause := firstPause
	var failed *failedBoot
	if errors.As(err, &failed) {
		pause = failed.pause
	}
	switch {
	case errors.Is(err, errReboot):
		sys.Log.Info("%v", err)
	case errors.Is(err, errHalt):
		sys.Log.Error("cannot boot: %v", err)
		sys.Power.Sleep(firstPause)
		sys.Log.Error("halting")
		err := sys.Power.Halt()
		sys.Log.Error("cannot halt: %v", err)
	default:
		sys.Log.Error("cannot boot: %v", err)
		sys.Log.Error("restarting in %s", pause)
		sys.Power.Sleep(pause)
	}
	for {
		err := sys.Power.Reboot()
		sys.Log.Error("cannot restart: %v", err)
		sys.Power.Sleep(firstPause)
	}
}
