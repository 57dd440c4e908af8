// Init is PID 1 in the initramfs of a sealroot image. It picks the slot,
// verifies it, unlocks the state, assembles the root and becomes the real
// /sbin/init. ARCHITECTURE.md walks through it.
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"sealroot/init/boot"
	"sealroot/mount"
)

// version is set by the build.
var version = "unknown"

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "sealroot init boots a machine: it runs as PID 1 in the initramfs only (see the sealroot command for a running system)")
		os.Exit(2)
	}
	// If even Fail panics: a kernel panic restarts the machine only after Early.
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(os.Stderr, "sealroot: internal error: %v\n", p)
			time.Sleep(lastPause)
			syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
		}
	}()
	cleanEnvironment()
	sys := boot.NewSystem(boot.NewLog(os.Stderr), rand.Reader, version)
	boot.Fail(sys, run(sys))
}

// lastPause is how long the last error can be read.
const lastPause = 10 * time.Second

// run turns a panic, which in PID 1 would be a kernel panic, into an error. Those
// in a stage are boot.Run's own, which counts them; here come those at its ends.
func run(sys *boot.System) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("internal error: %v", p)
		}
	}()
	log, err := boot.Early(mount.Kernel{})
	if err != nil {
		return err
	}
	sys.Log = log
	return boot.Run(context.Background(), sys)
}

// cleanEnvironment drops what unknown words of the kernel command line put into
// our environment. The Go runtime reads GODEBUG and the like before main, so
// with such a word this program starts itself anew without it.
func cleanEnvironment() {
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, "GO") {
			syscall.Exec("/proc/self/exe", os.Args[:1], nil)
			syscall.Exec("/init", os.Args[:1], nil)
			break
		}
	}
	os.Clearenv()
}
