package kexec

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"sealroot/mount"
	"sealroot/sealroot/bootset"
)

// LoadedFile tells whether a kernel is loaded: 1, else 0.
const LoadedFile = "/sys/kernel/kexec_loaded"

// Load has the running kernel keep another one, which reboot(2) with
// LINUX_REBOOT_CMD_KEXEC starts. What the kernel reads are the very bytes that are given:
// they lie in memory. Errors: bootset.ErrRefused where the kernel does not allow it.
func Load(k Kernel) error {
	image, err := inMemory("kernel", k.Image)
	if err != nil {
		return err
	}
	defer image.Close()
	initrd, err := inMemory("initrd", k.Initrd)
	if err != nil {
		return err
	}
	defer initrd.Close()
	err = unix.KexecFileLoad(int(image.Fd()), int(initrd.Fd()), k.Cmdline, 0)
	if err == nil {
		return nil
	}
	return explain(err, loadDisabled(), lockdown())
}

// Unload has the running kernel forget the one that is loaded, by whatever program.
func Unload() error {
	if err := unix.KexecFileLoad(-1, -1, "", unix.KEXEC_FILE_UNLOAD); err != nil {
		return fmt.Errorf("cannot unload it: %s: %w", cmp.Or(reason(err, loadDisabled(), lockdown()), "the kernel says"), err)
	}
	return nil
}

func loadDisabled() string { return textOf("/proc/sys/kernel/kexec_load_disabled") }
func lockdown() string     { return textOf("/sys/kernel/security/lockdown") }

// textOf is what a file of the kernel says, "" for unknown.
func textOf(path string) string {
	text, _ := os.ReadFile(path)
	return string(text)
}

// inMemory is a file in memory with this content, open for reading alone: the kernel takes
// none that somebody has open for writing.
func inMemory(name string, data []byte) (*os.File, error) {
	w, err := mount.MemoryFile("sealroot-"+name, data)
	if err != nil {
		return nil, fmt.Errorf("cannot keep the %s in memory: %w", name, err)
	}
	defer w.Close()
	r, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", w.Fd()))
	if err != nil {
		return nil, fmt.Errorf("cannot keep the %s in memory: %w", name, err)
	}
	return r, nil
}

// explain says why the kernel did not take another one; disabled and lockdown are the
// texts of its settings, "" for unknown.
func explain(err error, disabled, lockdown string) error {
	if why := reason(err, disabled, lockdown); why != "" {
		return fmt.Errorf("cannot load a kernel: %s: %w: %w", why, err, bootset.ErrRefused)
	}
	return fmt.Errorf("cannot load a kernel: %w", err)
}

// reason is why the kernel refuses, "" where its error says it.
func reason(err error, disabled, lockdown string) string {
	is := func(list ...syscall.Errno) bool {
		return slices.ContainsFunc(list, func(e syscall.Errno) bool { return errors.Is(err, e) })
	}
	unsigned := is(unix.EBADMSG, unix.EKEYREJECTED, unix.ENOKEY, unix.ENODATA, unix.ENOPKG)
	locked := strings.Contains(lockdown, "[integrity]") || strings.Contains(lockdown, "[confidentiality]")
	switch {
	case is(unix.ENOSYS, unix.EOPNOTSUPP):
		return "the running kernel has no kexec_file_load (CONFIG_KEXEC_FILE)"
	case is(unix.EPERM) && strings.TrimSpace(disabled) == "1":
		return "it was switched off until the next restart (sysctl kernel.kexec_load_disabled)"
	case unsigned, is(unix.EPERM) && locked:
		return "the running kernel takes only one that is signed with a key that it knows, as with Secure Boot on"
	case is(unix.EPERM):
		return "the running kernel does not allow it"
	case is(unix.ENOEXEC):
		return "it is no kernel that can be started so"
	}
	return ""
}
