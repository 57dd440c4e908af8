package qemutests

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/qemu-tests/machine"
)

// The machine kinds, short for the tests.
const (
	BIOS         = machine.BIOS
	UEFI         = machine.UEFI
	UEFISecure   = machine.UEFISecure
	DirectKernel = machine.DirectKernel
)

// How long things may take on a slow machine with two guests at work.
const (
	bootTime    = 4 * time.Minute // from power on to a login
	probeTime   = 4 * time.Minute // from power on to the probe
	commandTime = 4 * time.Minute
	// answerTime is for a command that works all the time, and shows nothing meanwhile:
	// as much as Expect waits for a guest that talks.
	answerTime = (1 + moreWaits) * commandTime
)

// moreWaits is how often a guest that talks gets as long again.
const moreWaits = 2

// Machine is a computer that a test owns: what is in it stays from boot to boot.
type Machine struct {
	Config machine.Config

	t     *testing.T
	boots int
	place *os.File // one of guestsAtOnce, when it is held between boots
}

// NewMachine returns a computer with a disk (nil for none).
func NewMachine(t *testing.T, firmware machine.Firmware, disk *Disk) *Machine {
	t.Helper()
	m := &Machine{t: t, Config: machine.Config{Dir: t.TempDir(), Firmware: firmware, FreshReset: true}}
	if disk != nil {
		m.Config.Disk = disk.Path
	}
	return m
}

// WithTPM adds a new TPM: the one before is replaced, as when the disk moves to
// another computer.
func (m *Machine) WithTPM() *Machine {
	m.t.Helper()
	m.Config.TPM = m.t.TempDir()
	return m
}

// oneBank has the TPM keep one bank: each costs the firmware a pass over the
// kernel image.
func (m *Machine) oneBank() *Machine {
	m.t.Helper()
	tool(m.t, "swtpm_setup", "--tpm2", "--tpmstate", m.Config.TPM, "--pcr-banks", "sha256", "--overwrite")
	return m
}

// WithDisk adds a raw disk after the boot disk: /dev/vdb and so on.
func (m *Machine) WithDisk(path string) *Machine {
	m.Config.MoreDisks = append(m.Config.MoreDisks, path)
	return m
}

// counted has the guest's time go by its instructions, a nanosecond each: on a busy host the
// guest is not slower.
func (m *Machine) counted() *Machine {
	return m.WithArgs("-icount", "shift=0,sleep=on", "-smp", "1")
}

// WithArgs adds to QEMU's command line, such as "-device", "i6300esb".
func (m *Machine) WithArgs(args ...string) *Machine {
	m.Config.Args = append(m.Config.Args, args...)
	return m
}

// Hold keeps the machine's place among guestsAtOnce from boot to boot until the
// end of the test, for a machine that is on nearly all the time.
func (m *Machine) Hold() *Machine {
	m.t.Helper()
	m.place = waitForRoom(m.t)
	m.t.Cleanup(func() { m.place.Close() })
	return m
}

// LoadSlot makes a DirectKernel machine load a slot's kernel and initramfs from
// the disk, without saying which slot they are of.
func (m *Machine) LoadSlot(slot string) {
	m.t.Helper()
	disk := &Disk{Path: m.Config.Disk}
	dir := m.t.TempDir()
	for name, field := range map[string]*string{"vmlinuz": &m.Config.Kernel, "initrd": &m.Config.Initrd} {
		*field = filepath.Join(dir, name)
		writeFile(m.t, *field, disk.GetESP(m.t, "/sealroot/"+slot+"/"+name), 0o644)
	}
	m.Config.Cmdline = "console=ttyS0 panic=10 sysrq_always_enabled"
}

// VM is one run of a machine; every method ends the test when it fails.
type VM struct {
	machine *Machine
	guest   *machine.Guest
	t       *testing.T
	place   *os.File // one of guestsAtOnce; nil when the machine holds it
	cycled  bool     // switched off and on again because the emulator hung
	console string   // the file with what it showed
	fine    bool     // nobody wants to see that when the test fails
}

// Boot switches the machine on. It is killed at the end of the test.
func (m *Machine) Boot() *VM {
	m.t.Helper()
	vm := &VM{machine: m, t: m.t}
	if m.place == nil {
		vm.place = waitForRoom(m.t)
	}
	m.t.Cleanup(vm.Kill)
	vm.start()
	return vm
}

// start runs QEMU, with a log of its own.
func (vm *VM) start() {
	t, m := vm.t, vm.machine
	t.Helper()
	m.boots++
	boot := m.boots
	name := filepath.Join(logDir(t), fmt.Sprintf("console-%d.log", m.boots))
	log, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	vm.console = name
	c := m.Config
	c.Log = log
	guest, err := machine.Start(c)
	if err != nil {
		log.Close()
		t.Fatal(err)
	}
	vm.guest = guest
	t.Cleanup(func() {
		guest.Kill()
		// scripts/test adds these up.
		t.Logf("machine %d: %.1f s of a processor", boot, guest.CPU().Seconds())
		if t.Failed() && !vm.fine {
			t.Logf("qemu: %s\nconsole (whole: %s), last lines:\n%s", guest.CommandLine(), name, guest.Tail(60))
		}
		log.Close()
	})
}

// Expect waits for text that matches and comes after what was matched before.
// It returns the match and its groups.
func (vm *VM) Expect(pattern string, timeout time.Duration) []string {
	vm.t.Helper()
	re := regexp.MustCompile(pattern)
	var groups []string
	vm.patiently(timeout, machine.ErrTimeout, func(timeout time.Duration) (err error) {
		groups, err = vm.guest.Expect(re, timeout)
		return err
	})
	return groups
}

// patiently waits for what the guest does as it starts, or says: wait ends in late when
// that has not come. A host may have too much to do: a guest that still talks is only
// slow, and one whose kernel answers may be.
func (vm *VM) patiently(timeout time.Duration, late error, wait func(timeout time.Duration) error) {
	vm.t.Helper()
	err := wait(timeout)
	for range moreWaits {
		if timeout < time.Minute || !errors.Is(err, late) || vm.guest.Silence() > timeout/2 {
			break
		}
		vm.t.Logf("%v, but the guest talks: it gets as long again", err)
		err = wait(timeout)
	}
	if errors.Is(err, late) {
		switch s := vm.examine(); {
		case s.KernelAnswers:
			err = wait(timeout)
		case vm.emulatorHung(s):
			err = wait(max(timeout, bootTime))
		}
	}
	if err != nil {
		vm.t.Fatal(err)
	}
}

// Send types text on the console.
func (vm *VM) Send(text string) {
	vm.t.Helper()
	if err := vm.guest.Send(text); err != nil {
		vm.t.Fatal(err)
	}
}

// Run runs a command in the guest, which must succeed, and returns its output
// without the last newline.
func (vm *VM) Run(command string) string {
	vm.t.Helper()
	output, status := vm.TryRun(command)
	if status != 0 {
		vm.t.Fatalf("%q in the guest: exit status %d: %s", command, status, output)
	}
	return output
}

// TryRun runs a command that may fail in the guest.
func (vm *VM) TryRun(command string) (output string, status int) {
	vm.t.Helper()
	output, status, err := vm.guest.Run(command, answerTime)
	if err != nil {
		if errors.Is(err, machine.ErrAgent) {
			vm.examine()
		}
		vm.t.Fatal(err)
	}
	return strings.TrimSuffix(output, "\n"), status
}

// WaitReady waits until the guest has started (again) so far that it runs commands.
func (vm *VM) WaitReady(timeout time.Duration) {
	vm.t.Helper()
	// Not the method of this guest: an emulator that hung is another one afterwards.
	vm.patiently(timeout, machine.ErrAgent, func(timeout time.Duration) error { return vm.guest.WaitReady(timeout) })
}

// login waits until a slot's systemd has logged root in on the console, by itself, for
// which it has started all else. (The words there are no sign: the kernel may put its own
// into the middle of them. PID 1's lines it writes as a whole.)
func (vm *VM) login(slot string) {
	vm.t.Helper()
	vm.Expect("slot "+slot+": starting /sbin/init", bootTime)
	vm.WaitReady(bootTime)
	vm.Run("timeout 200 sh -c 'until pgrep -t ttyS0 -u root -x bash; do sleep 1; done'")
}

// PowerOff shuts the guest down in order and waits until it is off.
func (vm *VM) PowerOff() {
	vm.t.Helper()
	vm.post("poweroff")
	vm.WaitPowerOff(answerTime)
}

// WaitPowerOff waits until the machine is off.
func (vm *VM) WaitPowerOff(timeout time.Duration) {
	vm.t.Helper()
	if err := vm.guest.Wait(timeout); err != nil {
		if errors.Is(err, machine.ErrStillRunning) {
			vm.examine()
		}
		vm.t.Fatal(err)
	}
	vm.place.Close()
}

// Reboot restarts the guest in order; WaitReady or Expect follow.
func (vm *VM) Reboot() {
	vm.t.Helper()
	vm.post("reboot")
}

// offAndOn restarts the guest in order by switching it off and on.
func (vm *VM) offAndOn() *VM {
	vm.t.Helper()
	vm.PowerOff()
	return vm.machine.Boot()
}

// post sends a command that ends the boot, perhaps before it is answered.
func (vm *VM) post(command string) {
	vm.t.Helper()
	if err := vm.guest.Post(command, commandTime); err != nil {
		vm.t.Fatal(err)
	}
}

// Reset presses the reset button.
func (vm *VM) Reset() {
	vm.t.Helper()
	if err := vm.guest.Monitor("system_reset", nil); err != nil {
		vm.t.Fatal(err)
	}
}

// Kill cuts the power.
func (vm *VM) Kill() {
	if vm.guest != nil {
		vm.guest.Kill()
	}
	vm.place.Close()
}

// Never fails the test if the console has shown matching text so far.
func (vm *VM) Never(pattern string) {
	vm.t.Helper()
	if found := regexp.MustCompile(pattern).FindString(vm.guest.Console()); found != "" {
		vm.t.Fatalf("the console shows %q", found)
	}
}

// guestsAtOnce is how many machines run at a time: each emulates one CPU in full.
const guestsAtOnce = 2

// waitForRoom waits until fewer than guestsAtOnce machines run, over all
// processes that run these tests, and takes a place until it is closed.
func waitForRoom(t *testing.T) *os.File {
	t.Helper()
	// First come, first served: the kernel hands a lock on in this order.
	queue := openLock(t, "guest-queue")
	defer queue.Close()
	if err := unix.Flock(int(queue.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	for ; ; time.Sleep(100 * time.Millisecond) {
		for i := range guestsAtOnce {
			f := openLock(t, fmt.Sprintf("guest-%d", i))
			if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
				return f
			}
			f.Close()
		}
	}
}

// openLock opens a file that only serves to be locked.
func openLock(t *testing.T, name string) *os.File {
	t.Helper()
	dir := filepath.Join(buildDir, "locks")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Where things are, relative to this package's folder.
const (
	rootDir    = ".."
	buildDir   = "../build"
	scriptsDir = "../scripts"
	toolsDir   = "testdata/tools" // in place of other people's
)

// logDir returns the folder of a test's logs, emptied by its first use.
func logDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(buildDir, "qemu-logs", strings.ReplaceAll(t.Name(), "/", "-"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tool runs one of other people's tools on the host, which must succeed.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	output, err := runTool(name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, output)
	}
	return output
}

// runTool runs a tool that may fail and returns what it wrote.
func runTool(name string, args ...string) (string, error) {
	output, err := exec.Command(name, args...).CombinedOutput()
	return string(output), err
}

// soaking says that this is `make soak`, which runs whole what `make test` runs
// samples of.
func soaking() bool { return os.Getenv("SEALROOT_SOAK") != "" }
