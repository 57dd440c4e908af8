package qemutests

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sealroot/qemu-tests/machine"
)

// emulatorHangs counts the machines that were switched off and on again because
// not even their kernel answered. TestMain prints it.
var emulatorHangs atomic.Int32

// examine writes into the test's log what a silent guest does.
func (vm *VM) examine() machine.Silence {
	vm.t.Helper()
	s := vm.guest.Examine()
	vm.t.Logf("THE GUEST IS SILENT; its kernel answers SysRq: %t\n%s", s.KernelAnswers, s.Text)
	return s
}

// emulatorHung judges a silent guest. When its kernel, which had started
// PID 1, does not even answer SysRq, interrupts are lost and it is the
// emulator that hangs: the machine is then switched off and on again, once.
// Everything else is for the test to fail with.
func (vm *VM) emulatorHung(s machine.Silence) bool {
	vm.t.Helper()
	if s.KernelAnswers || !s.AnswerExpected || vm.cycled || vm.machine.Config.WriteLog != "" {
		return false // a record goes on in the same QEMU only (machine.Config.FreshReset)
	}
	emulatorHangs.Add(1)
	vm.t.Logf("THE EMULATOR HANGS: the guest's kernel takes no interrupt. Switching the machine off and on again, this once.")
	vm.cycled = true
	vm.guest.Kill()
	vm.start()
	return true
}

// A guest that waits is told from an emulator that stands still.
func TestSilentGuest(t *testing.T) {
	t.Parallel()
	k := kernel(t, "6.1")
	m := NewMachine(t, DirectKernel, nil)
	m.Config.Kernel, m.Config.Initrd = k.Image, probeInitramfs(t)
	m.Config.Cmdline = "console=ttyS0 sysrq_always_enabled"
	vm := m.Boot()
	vm.Expect(`probe: up`, probeTime)
	var s machine.Silence
	missing := "everything"
	for n := 0; n < 3 && missing != ""; n++ { // a busy host may cut an answer short
		s, missing = vm.guest.Examine(), ""
		for _, want := range []string{"task:init", "RIP=", "sysrq: Show backtrace"} {
			if !strings.Contains(s.Text, want) {
				missing = want
			}
		}
	}
	if !s.KernelAnswers || !s.AnswerExpected || missing != "" {
		t.Errorf("a running kernel: answers %t, expected to %t, no %q in what it says:\n%s", s.KernelAnswers, s.AnswerExpected, missing, s.Text)
	}
	if vm.emulatorHung(vm.examine()) {
		t.Error("a running kernel counts as a hung emulator")
	}
	vm.WaitReady(commandTime)

	if err := vm.guest.Monitor("stop", nil); err != nil {
		t.Fatal(err)
	}
	vm.Expect(`probe: up`, time.Second) // Kernel and probe start once more.
	if !vm.cycled {
		t.Error("the machine was not switched off and on")
	}
	emulatorHangs.Add(-1) // This one was made.
	vm.PowerOff()
}
