package boot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/slots"
)

// initPath is the real init.
const initPath = "/sbin/init"

// initEnv is the environment of the real init. A kernel without an initramfs
// would give it HOME and TERM; nothing of ours is added.
var initEnv = [...]string{"HOME=/", "TERM=linux"}

// publish leaves the boot report for the real system, and hands on what the
// stub gave us and systemd looks for.
func (b *boot) publish(context.Context) error {
	passOn("/.extra/tpm2-pcr-signature.json", "/run/systemd/tpm2-pcr-signature.json")
	passOn("/.extra/tpm2-pcr-public-key.pem", "/run/systemd/tpm2-pcr-public-key.pem")
	if b.report.FellBack != nil {
		// a file, so that a systemd unit can have it as a condition
		if err := writeFile(runDir+"/fell-back", []byte(b.report.FellBack.Reason+"\n")); err != nil {
			b.warn("%v", err)
		}
	}
	return b.writeReport()
}

func (b *boot) writeReport() error {
	b.report.Stages = b.clock.list
	text, err := b.report.Encode()
	if err == nil {
		err = writeFile(report.Path, text)
	}
	if err != nil {
		// The report is worth having and not worth a boot.
		b.sys.Log.Warn("cannot write the boot report: %v", err)
	}
	return nil
}

func writeFile(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

func passOn(from, to string) {
	if text, err := readBounded(from, 1<<20); err == nil {
		_ = writeFile(to, text)
	}
}

// handOver makes the verified root the root directory and becomes the real
// init. It returns only when that failed.
func (b *boot) handOver(ctx context.Context) error {
	root, err := mount.OpenRoot(newRoot)
	if err != nil {
		return fmt.Errorf("cannot open the new root: %w", err)
	}
	err = mount.CheckInit(root, initPath)
	root.Close()
	if err != nil {
		return imageError(slots.Mount, "cannot start %s: %w", initPath, err)
	}
	b.sys.Log.Info("slot %s: starting %s", b.report.Slot.Name, initPath)
	b.capAndRelease(ctx)
	warning, err := mount.SwitchRoot(newRoot, b.sys.Root)
	if err != nil {
		return fmt.Errorf("cannot switch to the new root: %w", err)
	}
	if warning != nil {
		b.sys.Log.Warn("the initramfs keeps some memory: %v", warning)
	}
	unix.Umask(0o022) // what a fresh init has
	err = b.sys.Exec(initPath, []string{initPath}, initEnv[:])
	return imageError(slots.Mount, "cannot start %s: %w", initPath, err)
}
