package qemutests

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sealroot/state/tpm"
)

// Commands of a TPM 2.0 (part 2, 6.5.2), and codes of its answers (6.6.3).
const (
	commandStartup          = 0x144
	commandCreate           = 0x153
	commandLoad             = 0x157
	commandUnseal           = 0x15e
	commandReadPublic       = 0x173
	commandStartAuthSession = 0x176
	answerFailure           = 0x101
	answerYielded           = 0x908
)

// wire stands on the bus between the machine and its TPM: it keeps all that passes,
// and does more once it is armed.
type wire struct {
	mu      sync.Mutex
	packets [][]byte
	armed   bool
	by      func() bool // with which command it is armed, too
	how     func(command []byte, ask func([]byte) ([]byte, error)) ([]byte, error)
}

func (w *wire) between(command []byte, ask func([]byte) ([]byte, error)) ([]byte, error) {
	w.mu.Lock()
	how := ask
	if !w.armed && w.by != nil {
		w.armed = w.by()
	}
	if w.armed && w.how != nil {
		how = func(command []byte) ([]byte, error) { return w.how(command, ask) }
	}
	w.mu.Unlock()
	command = bytes.Clone(command)
	answer, err := how(command)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.packets = append(w.packets, command, bytes.Clone(answer))
	return answer, err
}

// set forgets what has passed.
func (w *wire) set(armed bool, how func(command []byte, ask func([]byte) ([]byte, error)) ([]byte, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.packets, w.armed, w.by, w.how = nil, armed, nil, how
}

// armAt has how answer from the first command on that comes after a guest has shown a text:
// whoever waits for that text himself may be late.
func (w *wire) armAt(vm *VM, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.by = func() bool {
		time.Sleep(20 * time.Millisecond) // what it has written before is on its way
		return strings.Contains(vm.guest.Console(), text)
	}
}

// commands are the codes of all commands.
func (w *wire) commands() (all []uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := 0; i < len(w.packets); i += 2 {
		all = append(all, code(w.packets[i]))
	}
	return all
}

// count is how often a command was sent.
func (w *wire) count(command uint32) (n int) {
	for _, c := range w.commands() {
		if c == command {
			n++
		}
	}
	return n
}

// times is how many packets hold something.
func (w *wire) times(what []byte) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.packets {
		if bytes.Contains(p, what) {
			n++
		}
	}
	return n
}

// code is that of a command, or of an answer.
func code(packet []byte) uint32 { return binary.BigEndian.Uint32(packet[6:]) }

// answer is one without parameters.
func answer(code uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{0x80, 0x01, 0, 0, 0, 10}, code)
}

// lateForFirmware is a host that stands still as its machine starts: package machine starts it
// anew.
const lateForFirmware = "late_for_the_firmware"

// bootDisk is the line after which PID 1 asks a TPM for something.
const bootDisk = "sealroot: boot disk /dev/vda"

// Somebody listens on the TPM's bus while the state is made and unlocked, and hears
// nothing of use. Then they answer for the TPM with a storage key of their own, and
// nothing is sent to that. And a TPM that is absent, late, or fails ends the boot as
// configured, within its time.
func TestStateTPMBus(t *testing.T) {
	t.Parallel()
	disk := Image{Edit: []string{"on_failure: [prompt, degraded]", "on_failure: [degraded]"}}.Build(t)
	m := directMachine(t, disk).WithTPM()
	w := &wire{}
	m.Config.Bus = w.between
	vm := m.Boot()
	vm.UpIn("a")
	vm.keepSomething()
	vm.PowerOff()
	m.survived()

	hidden := disk.secrets(t, m.Config.TPM)
	hidden.hidden["volume key"] = hidden.key[:32]
	for what, text := range hidden.hidden {
		if n := w.times(text); n > 0 {
			t.Errorf("the %s passed the bus %d times", what, n)
		}
	}
	// The same search finds what does pass: the public area of the sealed object, when
	// that is made and loaded.
	token := tpmToken(t, disk.header(t).Tokens())
	public := token.Blob[2+binary.BigEndian.Uint16(token.Blob)+2:]
	if n := w.times(public); n < 2 {
		t.Errorf("control: the sealed object's public area passed the bus %d times", n)
	}
	for _, c := range []uint32{commandCreate, commandUnseal} {
		if !slices.Contains(w.commands(), c) {
			t.Errorf("control: no command %#x", c)
		}
	}

	w.set(true, anotherSRK(t))
	vm = m.Boot()
	if r := vm.UpIn("a"); r.State.Unlocked != "degraded" || !strings.Contains(strings.Join(r.State.Attempts, "\n"), tpm.ErrOtherTPM.Error()) {
		t.Errorf("beside another storage key: state %+v, want degraded because of %q", r.State, tpm.ErrOtherTPM)
	}
	vm.PowerOff()
	sent := w.commands()
	if !slices.Contains(sent, commandReadPublic) {
		t.Errorf("the storage key was not read: %#x", sent)
	}
	for _, c := range []uint32{commandCreate, commandLoad, commandUnseal, commandStartAuthSession} {
		if slices.Contains(sent, c) {
			t.Errorf("command %#x was sent to another storage key", c)
		}
	}

	ours := m.Config.TPM
	for _, tc := range []struct {
		name, tpm string
		how       func(command []byte, ask func([]byte) ([]byte, error)) ([]byte, error)
		unlocked  string // "" when the boot ends
		says      string
		limit     time.Duration // of the guest's time, from PID 1's first word on
	}{
		{"absent", "", nil, "degraded", "no TPM", 2 * time.Minute},
		{"late", ours, onceLate(5 * time.Second), "tpm2", "", 2 * time.Minute},
		{lateForFirmware, ours, onceLateWith(commandStartup, 5*time.Second), "tpm2", "", 2 * time.Minute},
		{"failing_once", ours, failingOnce(), "tpm2", "", 2 * time.Minute},
		{"failing", ours, func([]byte, func([]byte) ([]byte, error)) ([]byte, error) { return answer(answerFailure), nil }, "", "cannot close the TPM", 2 * time.Minute},
	} {
		m.Config.TPM, m.Config.NoReboot = tc.tpm, tc.unlocked == ""
		w.set(tc.name == lateForFirmware, tc.how)
		vm := m.Boot()
		if tc.name != lateForFirmware {
			w.armAt(vm, bootDisk)
		}
		began := vm.guestSeconds(bootDisk)
		if tc.unlocked == "" {
			ended := vm.guestSeconds(tc.says)
			m.place.Close()           // what waits takes nothing from others; this is the last boot
			vm.WaitPowerOff(bootTime) // it restarts, in 20 s
			vm.Never(`probe: up`)
			if took := ended - began; took > tc.limit {
				t.Errorf("%s: the boot ended after %s, want %s at most", tc.name, took, tc.limit)
			}
			continue
		}
		if took := vm.guestSeconds(`slot a: starting /sbin/init`) - began; took > tc.limit {
			t.Errorf("%s: up after %s, want %s at most", tc.name, took, tc.limit)
		}
		if r := vm.UpIn("a"); r.State.Unlocked != tc.unlocked || !strings.Contains(strings.Join(r.State.Attempts, "\n"), tc.says) {
			t.Errorf("%s: state %+v, want %s %q", tc.name, r.State, tc.unlocked, tc.says)
		}
		if starts := w.count(commandStartup); tc.name == lateForFirmware && starts < 2 {
			t.Errorf("%s: control: the TPM was started %d times, want once more, as the machine began anew", tc.name, starts)
		}
		vm.PowerOff()
	}
}

// guestSeconds waits for a line of the kernel log and returns its time.
func (vm *VM) guestSeconds(pattern string) time.Duration {
	vm.t.Helper()
	got := vm.Expect(`\[ *(\d+\.\d+)\] (?:[^\n]*)`+pattern, bootTime)
	d, err := time.ParseDuration(regexp.MustCompile(`[\d.]+`).FindString(got[1]) + "s")
	if err != nil {
		vm.t.Fatal(err)
	}
	return d
}

// anotherSRK answers for the TPM that its storage key is another one, of which the
// attacker has the private part; all else of it, and its Name, are as they must be.
func anotherSRK(t *testing.T) func(command []byte, ask func([]byte) ([]byte, error)) ([]byte, error) {
	t.Helper()
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point := key.PublicKey().Bytes()[1:] // X, Y of 32 bytes
	return func(command []byte, ask func([]byte) ([]byte, error)) ([]byte, error) {
		answer, err := ask(command)
		if err != nil || code(command) != commandReadPublic || code(answer) != 0 || binary.BigEndian.Uint32(command[10:]) != tpm.SRKHandle {
			return answer, err
		}
		// TPM2B_PUBLIC, which ends with the point, then TPM2B_NAME.
		public := answer[12:][:binary.BigEndian.Uint16(answer[10:])]
		copy(public[len(public)-2*34+2:], point[:32])
		copy(public[len(public)-32:], point[32:])
		name := sha256.Sum256(public)
		copy(answer[12+len(public)+2+2:], name[:])
		return answer, nil
	}
}

// onceLate is a TPM whose first answer takes long.
func onceLate(by time.Duration) func(command []byte, ask func([]byte) ([]byte, error)) ([]byte, error) {
	var once sync.Once
	return func(command []byte, ask func([]byte) ([]byte, error)) ([]byte, error) {
		once.Do(func() { time.Sleep(by) })
		return ask(command)
	}
}

// onceLateWith is late with one answer to a command.
func onceLateWith(command uint32, by time.Duration) func(command []byte, ask func([]byte) ([]byte, error)) ([]byte, error) {
	late := onceLate(by)
	return func(packet []byte, ask func([]byte) ([]byte, error)) ([]byte, error) {
		if code(packet) == command {
			return late(packet, ask)
		}
		return ask(packet)
	}
}

// failingOnce is a TPM that has no time for each kind of command when it is first asked.
func failingOnce() func(command []byte, ask func([]byte) ([]byte, error)) ([]byte, error) {
	seen := map[uint32]bool{}
	return func(command []byte, ask func([]byte) ([]byte, error)) ([]byte, error) {
		if c := code(command); !seen[c] {
			seen[c] = true
			return answer(answerYielded), nil
		}
		return ask(command)
	}
}
