package boot

import (
	"time"

	"golang.org/x/sys/unix"

	"sealroot/mount"
)

// kernelPower ends the boot through reboot(2).
type kernelPower struct{}

// syncTime is how long a stuck disk may keep the machine from restarting.
const syncTime = 10 * time.Second

// Reboot syncs and restarts.
func (kernelPower) Reboot() error {
	mount.SyncWithin(syncTime)
	return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

// Halt syncs and powers off.
func (kernelPower) Halt() error {
	mount.SyncWithin(syncTime)
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// Sleep waits.
func (kernelPower) Sleep(d time.Duration) { time.Sleep(d) }
