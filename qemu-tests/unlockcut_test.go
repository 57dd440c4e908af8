package qemutests

import (
	"errors"
	"fmt"
	"regexp"
	"testing"
	"time"

	"sealroot/state/tpm/tpmtest"
)

// The power goes off while the TPM is asked for the state's key: it does not count
// that as an attempt to guess one, and the boot after all the cuts unlocks by itself.
// (The control, a key with a PIN, which does count: TestPowerCutAfterUnseal of
// state/tpm.) `make soak` cuts at 40 commands, spread over those of a boot.
func TestStateCutsDuringUnlock(t *testing.T) {
	t.Parallel()
	m := directMachine(t, Image{}.Build(t)).WithTPM()
	w := &wire{}
	m.Config.Bus = w.between
	vm := m.Boot()
	vm.UpIn("a")
	vm.keepSomething()
	vm.PowerOff()

	cuts := []cut{
		{name: "a session begins", at: isCommand(commandStartAuthSession), alone: true},
		{name: "the key is asked for", at: isCommand(commandUnseal), alone: true},
		{name: "the key was given out", at: isCommand(commandUnseal), alone: true, done: true},
	}
	if soaking() {
		w.set(false, nil)
		vm := m.Boot()
		vm.Expect(unlocksNext, probeTime)
		before := len(w.commands())
		vm.UpIn("a")
		all := len(w.commands()) - before
		vm.PowerOff()
		const wanted = 40
		for i := len(cuts); i < wanted; i++ {
			at := all * i / wanted
			cuts = append(cuts, cut{name: fmt.Sprintf("command %d of %d", at, all), at: func(n int, _ uint32) bool { return n == at }, done: i%2 == 1})
		}
	}
	for _, c := range cuts {
		reached, off := make(chan struct{}), make(chan struct{})
		// What nobody but PID 1 asks for, and that only then, may come as soon as it likes.
		w.set(c.alone, c.how(reached, off))
		vm := m.Boot()
		w.armAt(vm, unlocksNext)
		vm.Expect(unlocksNext, probeTime)
		select {
		case <-reached:
		case <-time.After(probeTime):
			t.Errorf("%s: never", c.name)
		}
		vm.Kill()
		close(off)
	}
	w.set(false, nil)
	chip := tpmtest.StartAt(t, copyTPM(t, m.Config.TPM))
	if n := lockoutCounter(t, chip); n != 0 {
		t.Errorf("after %d cuts the TPM counts %d failed tries", len(cuts), n)
	}
	chip.PowerOff()
	m.survived()
}

// unlocksNext is the line after which PID 1 opens the state.
const unlocksNext = `sealroot: slot a: sealroot-demo`

// cut is the moment in which the power goes off: at a command, before the TPM gets
// it or with its answer on the way.
type cut struct {
	name  string
	at    func(n int, code uint32) bool // n counts from 0, after unlocksNext if not alone
	alone bool                          // no other program sends that
	done  bool
}

func isCommand(wanted uint32) func(int, uint32) bool {
	return func(_ int, code uint32) bool { return code == wanted }
}

// how tells when the moment is reached, and answers nothing more.
func (c cut) how(reached, off chan struct{}) func([]byte, func([]byte) ([]byte, error)) ([]byte, error) {
	n := -1
	return func(command []byte, ask func([]byte) ([]byte, error)) ([]byte, error) {
		n++
		if !c.at(n, code(command)) {
			return ask(command)
		}
		var err error
		if c.done {
			_, err = ask(command)
		}
		close(reached)
		<-off
		return nil, errors.Join(errors.New("the power is off"), err)
	}
}

// lockoutCounter is how many failed tries a TPM has counted.
func lockoutCounter(t *testing.T, chip *tpmtest.Machine) (n int) {
	t.Helper()
	text := chip.MustRun("", "tpm2_getcap", "properties-variable")
	found := regexp.MustCompile(`TPM2_PT_LOCKOUT_COUNTER: (0x[0-9A-Fa-f]+)`).FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("tpm2_getcap does not tell the lockout counter:\n%s", text)
	}
	if _, err := fmt.Sscan(found[1], &n); err != nil {
		t.Fatal(err)
	}
	return n
}
