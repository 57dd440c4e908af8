package boot

import (
	"time"

	"golang.org/x/sys/unix"
)

// kernelPower ends the boot through reboot(2).
type kernelPower struct{}

// Reboot syncs and restarts.
func (kernelPower) Reboot() error {
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

// Halt syncs and powers off.
func (kernelPower) Halt() error {
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// Sleep waits.
func (kernelPower) Sleep(d time.Duration) { time.Sleep(d) }
