package boot

import (
	"errors"
	"time"
)

// failPause is how long the reason of a failed boot stays readable, and keeps
// failing boots from following each other in a tight loop.
const failPause = 20 * time.Second

// Fail is the one place that decides what follows a boot that did not reach the
// real init. It never returns. There is no shell, and nothing to type.
func Fail(sys *System, err error) {
	switch {
	case errors.Is(err, errReboot):
		sys.Log.Info("%v", err)
	case errors.Is(err, errHalt):
		sys.Log.Error("cannot boot: %v", err)
		sys.Power.Sleep(failPause)
		sys.Log.Error("halting")
		err := sys.Power.Halt()
		sys.Log.Error("cannot halt: %v", err)
	default:
		sys.Log.Error("cannot boot: %v", err)
		sys.Log.Error("restarting in %s", failPause)
		sys.Power.Sleep(failPause)
	}
	for {
		err := sys.Power.Reboot()
		sys.Log.Error("cannot restart: %v", err)
		sys.Power.Sleep(failPause)
	}
}
