package modules

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"sealroot/init/config"
)

// watchdogDrivers are the drivers of hardware watchdogs that PID 1 may find a
// device for. softdog is not among them: it needs no device, would always be
// there first, and dies with the kernel; who wants it names it in modules.add.
func watchdogDrivers() []string {
	return []string{"i6300esb", "iTCO_wdt", "sp5100_tco", "wdat_wdt", "hpwdt"}
}

// watchdogSet is the drivers with those that make their devices.
func watchdogSet() []string { return append([]string{"lpc_ich", "i2c_i801"}, watchdogDrivers()...) }

// CheckWatchdog tells whether a configured watchdog has a driver: in the list
// that goes into the initramfs, or built into the kernel. Else the error wraps
// ErrNoModule.
func (t *Tree) CheckWatchdog(cfg *config.Config, list List) error {
	if cfg.Boot.Watchdog.Seconds == 0 || slices.ContainsFunc(list.Files, isWatchdog) {
		return nil
	}
	known := append(watchdogDrivers(), "softdog")
	for _, name := range known {
		if t.builtin[name] {
			return nil
		}
	}
	return fmt.Errorf("cannot use boot.watchdog: kernel %s has no driver of a watchdog (%s); name another one in modules.add, or leave boot.watchdog out: %w",
		t.Release, strings.Join(known, ", "), ErrNoModule)
}

// isWatchdog tells whether a module file is a driver of a watchdog, and not
// only what such drivers share.
func isWatchdog(file string) bool {
	name := Name(file)
	return path.Base(path.Dir(file)) == "watchdog" && name != "watchdog" && !strings.HasPrefix(name, "pretimeout_")
}
