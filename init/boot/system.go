package boot

import (
	"context"
	"io"
	"os"
	"time"

	"sealroot/init/console"
	"sealroot/mount"
	"sealroot/mount/child"
	"sealroot/mount/dm"
	"sealroot/mount/kmod"
	"sealroot/mount/loop"
	"sealroot/mount/watchdog"
	"sealroot/state"
	"sealroot/state/tpm"
)

// System is the machine as the boot acts on it. NewSystem is the real one;
// tests put recorders in its place.
type System struct {
	Log     *Log
	Mounter mount.Mounter
	Root    mount.RootOps
	Modules kmod.Inserter
	Verity  VerityOpener
	Devices state.Devices
	// AttachLoop puts a layer's image behind a loop device.
	AttachLoop func(*os.File, loop.Options) (loop.Device, error)
	Power      Power
	// OpenTPM opens the TPM; tpm.ErrNoTPM when there is none (yet).
	OpenTPM     func(ctx context.Context) (*tpm.TPM, error)
	OpenConsole func() (Console, error)
	// OpenWatchdog starts the hardware watchdog; see watchdog.Open for its errors.
	OpenWatchdog func(watchdog.Options) (Watchdog, error)
	// RunProgram runs the verified root's e2fsck, and its merge of /etc.
	RunProgram RunProgram
	// Exec replaces this process by the real init, which gets passed too unless it
	// is nil.
	Exec func(path string, argv, env []string, passed *os.File) error
	Rand io.Reader
	// Initramfs is where the initramfs lies; empty: at the root.
	Initramfs string
	// Program is this program's version, for the report.
	Program string
}

// VerityOpener opens and removes dm-verity devices.
type VerityOpener interface {
	Verity(name, uuid string, t dm.VerityTarget) (dm.Device, error)
	Status(name string) ([]dm.Status, error)
	Remove(name string) error
}

// Power ends this boot.
type Power interface {
	// Reboot syncs and restarts the machine; it returns only on failure.
	Reboot() error
	// Halt stops the machine for good.
	Halt() error
	Sleep(d time.Duration)
}

// NewSystem returns the real machine. log is where lines for a person go.
func NewSystem(log *Log, random io.Reader, program string) *System {
	control := dm.New()
	return &System{
		Log:         log,
		Mounter:     mount.Kernel{},
		Root:        &mount.KernelRoot{},
		Modules:     kmod.Kernel{},
		Verity:      control,
		Devices:     state.KernelDevices{DM: control},
		AttachLoop:  loop.Attach,
		Power:       kernelPower{},
		OpenTPM:     func(ctx context.Context) (*tpm.TPM, error) { return tpm.Open(ctx, "/dev") },
		OpenConsole: func() (Console, error) { return console.Open("/") },
		OpenWatchdog: func(o watchdog.Options) (Watchdog, error) {
			dog, err := watchdog.Open("/", o)
			if err != nil {
				return nil, err
			}
			return dog, nil
		},
		RunProgram: child.Run,
		Exec:       mount.ExecInit,
		Rand:       random,
		Program:    program,
	}
}
