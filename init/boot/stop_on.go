//go:build stopped

package boot

import (
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// stopOnPurpose freezes all threads of this process, as nothing less does: PID 1
// ignores SIGSTOP.
func (b *boot) stopOnPurpose() {
	b.sys.Log.Warn("TEST BUILD: stopping in slot %s with %d tries left", b.report.Slot.Name, b.report.Slot.TriesAfter)
	cgroup := runDir + "/cgroup"
	group := filepath.Join(cgroup, "stopped")
	for _, step := range []func() error{
		func() error { return os.MkdirAll(cgroup, 0o755) },
		func() error { return unix.Mount("cgroup2", cgroup, "cgroup2", 0, "") },
		func() error { return os.Mkdir(group, 0o755) },
		func() error { return os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte("1"), 0o644) },
		func() error { return os.WriteFile(filepath.Join(group, "cgroup.freeze"), []byte("1"), 0o644) },
	} {
		if err := step(); err != nil {
			b.sys.Log.Error("TEST BUILD: cannot stop: %v", err)
			return
		}
	}
	time.Sleep(time.Minute)
	b.sys.Log.Error("TEST BUILD: still running")
}
