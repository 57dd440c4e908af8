package boot

import (
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"sealroot/bounded"
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
	// Ctrl-Alt-Del must not restart the machine in the middle of a write. It
	// becomes SIGINT for PID 1 then, on which Go's handler would end the process;
	// an init without a handler does not get it (kill(2)).
	unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF)
	noHandler(unix.SIGINT)
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

// noHandler takes the handler of Go's run time away.
func noHandler(sig unix.Signal) {
	var action struct{ handler, flags, restorer, mask uint64 } // include/linux/signal_types.h; all zero: SIG_DFL
	unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, unsafe.Sizeof(action.mask), 0, 0)
}

func setKernel(name, value string) {
	// A kernel without the setting boots as well. printk_devkmsg takes a whole line
	// only.
	_ = os.WriteFile("/proc/sys/kernel/"+name, []byte(value+"\n"), 0o644)
}

// mostRefused is how many refused words are told one by one.
const mostRefused = 16

// tellCommandLine says what of the command line counts for nothing.
func (b *boot) tellCommandLine() {
	for i, w := range b.cmd.Refused {
		if i == mostRefused {
			b.warn("kernel command line: %d more words are not honoured", len(b.cmd.Refused)-i)
			break
		}
		b.warn("kernel command line: %q is not honoured", w)
	}
	if len(b.cmd.Ignored) > 0 {
		b.sys.Log.Info("kernel command line: not for sealroot: %s", strings.Join(b.cmd.Ignored, " "))
	}
}

// sysRqPath says which SysRq keys the kernel obeys.
const sysRqPath = "/proc/sys/kernel/sysrq"

// muteSysRq turns the SysRq keys off for as long as PID 1 may ask for a key:
// with one of them the kernel kills what reads the console. The real init gets
// what the kernel had.
func (b *boot) muteSysRq() {
	before, err := bounded.ReadFile(sysRqPath, 16)
	if err != nil {
		return // a kernel without
	}
	b.sysRq = before
	_ = os.WriteFile(sysRqPath, []byte("0"), 0o644)
}

func (b *boot) restoreSysRq() {
	if b.sysRq != nil {
		_ = os.WriteFile(sysRqPath, b.sysRq, 0o644)
	}
}

// configure reads the configuration from the initramfs and what the kernel
// command line may say.
func (b *boot) configure() error {
	text, err := bounded.ReadFile(config.Path, config.MaxSize)
	if err != nil {
		return fmt.Errorf("cannot read the configuration: %w", err)
	}
	cfg, err := config.Decode(text)
	if err != nil {
		return fmt.Errorf("cannot use %s: %w", config.Path, err)
	}
	b.cfg, b.cfgText = cfg, text
	b.report.Name, b.report.Version, b.report.Build = cfg.Name, cfg.Version, string(cfg.Build)
	line, err := bounded.ReadFile(cmdline.Path, 64<<10)
	if err != nil {
		return fmt.Errorf("cannot read the kernel command line: %w", err)
	}
	b.cmdText = string(line)
	b.cmd = cmdline.Parse(b.cmdText)
	if cfg.Trust.Cmdline != config.CmdlineMeasured {
		b.tellCommandLine()
	}
	if mutesSysRq && cfg.Build != config.Development {
		b.muteSysRq()
	}
	b.sys.Log.Info("%s %s (%s build)", cfg.Name, cfg.Version, cfg.Build)
	if cfg.Build == config.Development {
		b.warn("DEVELOPMENT BUILD: not for production")
	}
	return nil
}
