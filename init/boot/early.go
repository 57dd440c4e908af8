package boot

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"sealroot/init/cmdline"
	"sealroot/init/config"
	"sealroot/mount"
)

// panicSeconds is how long a kernel panic stays on the screen before the
// machine restarts by itself: without it a dead kernel would need a visit.
const panicSeconds = "10"

// Early mounts what everything else needs and returns the log. It runs before
// there is a System, and its errors go to the console descriptors directly.
func Early(m mount.Mounter) (*Log, error) {
	unix.Umask(0)
	// Ctrl-Alt-Del must not restart the machine in the middle of a write.
	unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF)
	if _, err := mount.Early().Mount(m); err != nil {
		return nil, fmt.Errorf("cannot mount the early file systems: %w", err)
	}
	// The kernel limits the rate of kmsg by default and would drop our lines.
	setKernel("printk_devkmsg", "on")
	setKernel("panic", panicSeconds)
	kmsg, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return NewLog(os.Stderr), nil
	}
	return NewLog(kmsg), nil
}

func setKernel(name, value string) {
	// A kernel without the setting boots as well.
	_ = os.WriteFile("/proc/sys/kernel/"+name, []byte(value), 0o644)
}

// configure reads the configuration from the initramfs and what the kernel
// command line may say.
func (b *boot) configure() error {
	text, err := readBounded(config.Path, 1<<20)
	if err != nil {
		return fmt.Errorf("cannot read the configuration: %w", err)
	}
	cfg, err := config.Decode(text)
	if err != nil {
		return fmt.Errorf("cannot use %s: %w", config.Path, err)
	}
	b.cfg, b.cfgText = cfg, text
	b.report.Name, b.report.Version, b.report.Build = cfg.Name, cfg.Version, string(cfg.Build)
	line, err := readBounded(cmdline.Path, 64<<10)
	if err != nil {
		return fmt.Errorf("cannot read the kernel command line: %w", err)
	}
	b.cmd = cmdline.Parse(string(line))
	for _, w := range b.cmd.Refused {
		b.warn("kernel command line: %q is not honoured", w)
	}
	b.sys.Log.Info("%s %s (%s build)", cfg.Name, cfg.Version, cfg.Build)
	if cfg.Build == config.Development {
		b.warn("DEVELOPMENT BUILD: not for production")
	}
	return nil
}
