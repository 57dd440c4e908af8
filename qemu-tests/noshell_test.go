package qemutests

import (
	"regexp"
	"strings"
	"testing"
)

// presses is how many keys are pressed, about, half of them on the keyboard: each
// chord several times. Every Enter at the prompt costs the guest a key derivation.
func presses() int {
	if soaking() {
		return 2000
	}
	return 800
}

// noShell matches what a shell, a login or a dead PID 1 would show.
const noShell = `(?m)^(\S*[#$>] ?$|sh-\d|bash-\d)|login:|BusyBox|Kernel panic|Attempted to kill init|sysrq: `

// Nobody gets a shell by keys: not at the prompt for the recovery key, and not
// while a failed boot waits. The machine does what its configuration says.
func TestTrustNoShell(t *testing.T) {
	t.Parallel()
	disk := Image{}.Build(t)
	m := NewMachine(t, DirectKernel, disk).WithTPM().Hold()
	m.LoadSlot("a")
	m.Config.Cmdline = "console=tty0 " + plainCmdline // the keyboard is a console, too
	vm := m.Boot()
	vm.UpIn("a")
	key := vm.recoveryKey()
	sysRq := vm.Run("cat /proc/sys/kernel/sysrq")
	if sysRq == "0" {
		t.Error("the real init gets a kernel with SysRq off")
	}
	vm.PowerOff()

	vm = m.WithTPM().Boot() // another TPM: the key is asked for
	for range 3 {
		vm.Expect(`press Enter: `, probeTime)
		vm.hammer(presses() / 4)
		vm.Expect(`does not open`, commandTime)
	}
	vm.answer(key)
	vm.Never(noShell)
	if r := vm.UpIn("a"); r.State.Unlocked != "recovery-key" {
		t.Errorf("state %+v, want unlocked by recovery-key", r.State)
	}
	vm.PowerOff()

	// Nothing to boot: no signature in either slot.
	disk.Write(t, "root-a-verity-sig", 0, make([]byte, 4096))
	vm = m.Boot()
	vm.Expect(`sealroot: (restarting in|every slot failed|waiting)`, probeTime)
	vm.hammer(presses() / 4)
	vm.Expect(`Linux version`, probeTime) // by itself
	vm.Never(noShell)
	vm.Kill()
}

// The control: where PID 1 leaves the SysRq keys alone, the same keys reach the
// kernel, which obeys, and the pattern of the test finds that.
func TestTrustNoShellRedControl(t *testing.T) {
	t.Parallel()
	disk := Image{Init: taggedInit(t, "loud"), Edit: withoutState()}.Build(t)
	disk.Write(t, "root-a-verity-sig", 0, make([]byte, 4096))
	m := NewMachine(t, DirectKernel, disk)
	m.Config.FreshReset = false // one of the first keys resets it, and the others are for the same
	m.LoadSlot("a")
	m.Config.Cmdline = "console=tty0 " + plainCmdline
	vm := m.Boot()
	vm.Expect(`sealroot: (restarting in|every slot failed|waiting)`, probeTime)
	vm.hammer(100)
	vm.Expect(`sysrq: `, commandTime)
	if found := regexp.MustCompile(noShell).FindString(vm.guest.Console()); found == "" {
		t.Error("the pattern of TestTrustNoShell finds nothing")
	}
	vm.Kill()
}

// answer types a key at every prompt until one takes it: how many have come and
// gone while keys were pressed is not known, and each drops what was typed ahead.
func (vm *VM) answer(key string) {
	vm.t.Helper()
	for {
		seen := vm.Expect(`press Enter: |sealroot: unlocked`, commandTime)
		if seen[0] != "press Enter: " {
			return
		}
		vm.Send(key + "\r")
	}
}

// hammer presses keys on the serial console and on the keyboard. On a busy host a machine
// that waits for its restart may come to that first: the next kernel is not hammered.
func (vm *VM) hammer(n int) {
	vm.t.Helper()
	chords := []string{"ret", "ctrl-c", "ctrl-d", "ctrl-z", "ctrl-backslash", "esc", "ctrl-alt-delete", "ctrl-alt-f2", "shift-pgup"}
	for _, letter := range "beijkruivwz" {
		chords = append(chords, "alt-sysrq-"+string(letter))
	}
	kernels := func() int { return strings.Count(vm.guest.Console(), "Linux version") }
	began := kernels()
	serial := []string{"\r", "\x03", "\x04", "\x1a", "\x1c", "\x1b", "\x0f", "\n"}
	for i := range n / 2 {
		if kernels() > began {
			vm.t.Logf("the machine restarted after %d of %d keys", 2*i, n)
			return
		}
		vm.Send(serial[i%len(serial)])
		var keys []map[string]string
		for _, name := range strings.Split(chords[i%len(chords)], "-") {
			keys = append(keys, map[string]string{"type": "qcode", "data": name})
		}
		if err := vm.guest.Monitor("send-key", map[string]any{"keys": keys, "hold-time": 1}); err != nil {
			vm.t.Fatal(err)
		}
	}
	// A break on the serial line is its SysRq.
	if err := vm.guest.Monitor("chardev-send-break", map[string]any{"id": "console"}); err != nil {
		vm.t.Fatal(err)
	}
	vm.Send("b\r")
}
