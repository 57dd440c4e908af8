package exit

import "time"

// patience is how long a disk that does not answer may keep the machine from ending. What
// is slow may take longer: each time less is held, or less is unwritten, up to longest, as
// systemd has its watchdog wait for the end (RebootWatchdogSec=).
const (
	patience = 30 * time.Second
	longest  = 10 * time.Minute
)

// toDo is what a machine still has to do before its end.
type toDo struct {
	held      int   // mounts and devices
	unwritten int64 // bytes in memory that are not on a disk yet
}

// await waits for what comes from done, looking at what is to do; false: within patience
// nothing of that was done, or not all within longest. (Less than ever before counts, not
// what goes up and down.)
func await(done <-chan []string, look func() toDo) (left []string, answered bool) {
	least := look()
	for range longest / patience {
		select {
		case left = <-done:
			return left, true
		case <-time.After(patience):
		}
		now := look()
		if now.held >= least.held && now.unwritten >= least.unwritten {
			break
		}
		least = toDo{min(now.held, least.held), min(now.unwritten, least.unwritten)}
	}
	return nil, false
}
