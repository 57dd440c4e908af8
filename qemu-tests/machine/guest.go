package machine

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Guest is a running machine.
type Guest struct {
	config  Config
	console *console
	agent   *agent
	done    chan struct{} // closed once the machine is off for good
	err     error         // why it did not go on, once done is closed

	mu     sync.Mutex
	now    *emulator
	killed bool
	anews  int           // how often the firmware gave up the TPM
	goesOn bool          // the next reset is of that
	used   time.Duration // of a processor, by the emulators before
}

// Start switches the machine on. The caller must end it with Kill, or Wait
// until it has ended; both leave no process behind.
func Start(c Config) (*Guest, error) {
	g := &Guest{config: c, console: newConsole(c.Log), agent: newAgent(), done: make(chan struct{})}
	g.mu.Lock()
	defer g.mu.Unlock()
	e, err := g.emulate()
	if err != nil {
		return nil, err
	}
	g.now = e
	go g.follow(e)
	return g, nil
}

// follow puts an emulator in the place of one that a reset has ended, until the machine
// is off.
func (g *Guest) follow(e *emulator) {
	for again := true; again; {
		<-e.qemu.done
		reset := e.finish()
		g.mu.Lock()
		reset = reset && (g.config.freshReset() || g.goesOn)
		g.goesOn = false
		g.used += e.qemu.cpu()
		g.err = e.qemu.wait(0)
		again = reset && !g.killed && g.err == nil
		if again {
			if e, g.err = g.emulate(); g.err == nil {
				g.now = e
			}
			again = g.err == nil
		}
		g.mu.Unlock()
	}
	g.console.end()
	g.agent.end()
	close(g.done)
}

// emulate starts QEMU, and the TPM, for the machine, with the lock held.
func (g *Guest) emulate() (*emulator, error) {
	c := g.config
	c.Bus = g.config.bus(func() { go g.anew() })
	e, err := startEmulator(c)
	if err != nil {
		return nil, err
	}
	g.agent.over(e.conns[agentConn])
	e.readers.Add(2)
	go func() { defer e.readers.Done(); g.console.readFrom(e.conns[consoleConn]) }()
	go func() { defer e.readers.Done(); g.agent.readFrom(e.conns[agentConn]) }()
	return e, nil
}

// emulator is QEMU as it runs now.
func (g *Guest) emulator() *emulator {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.now
}

// Monitor runs one command of QEMU's machine protocol, such as system_reset,
// system_powerdown, quit, stop or cont.
func (g *Guest) Monitor(command string, arguments map[string]any) error {
	_, err := g.query(command, arguments)
	return err
}

func (g *Guest) query(command string, arguments map[string]any) (json.RawMessage, error) {
	return g.emulator().query(command, arguments)
}

// Expect waits for text on the console that matches, after what the last
// Expect matched, and returns the match and its groups. Errors wrap ErrTimeout
// or ErrEnded.
func (g *Guest) Expect(re *regexp.Regexp, timeout time.Duration) ([]string, error) {
	return g.console.expect(re, timeout)
}

// Send types text on the console.
func (g *Guest) Send(text string) error {
	if _, err := g.emulator().conns[consoleConn].Write([]byte(text)); err != nil {
		return fmt.Errorf("cannot type on the console: %w", err)
	}
	return nil
}

// Run runs a command in the guest and returns its output, both streams, and
// exit status. It waits for the agent when the guest is still starting. Errors
// wrap ErrAgent or ErrEnded; a status other than zero is no error.
func (g *Guest) Run(command string, timeout time.Duration) (output string, status int, err error) {
	got, err := g.agent.run(command, timeout)
	if err != nil {
		return "", 0, err
	}
	return string(got.output), got.status, nil
}

// Post sends a command that ends the boot: its answer may not come any more, and
// is not waited for. It waits for the agent when the guest is still starting.
func (g *Guest) Post(command string, timeout time.Duration) error {
	_, err := g.agent.post(command, time.After(timeout))
	return err
}

// WaitReady waits until the guest has started (again) and its agent answers.
func (g *Guest) WaitReady(timeout time.Duration) error { return g.agent.waitReady(timeout) }

// Wait waits until the machine has switched itself off. Its error wraps
// ErrStillRunning when it has not in time; the machine runs on then.
func (g *Guest) Wait(timeout time.Duration) error {
	select {
	case <-g.done:
		return g.err
	case <-time.After(timeout):
		return fmt.Errorf("the machine: %w after %s", ErrStillRunning, timeout)
	}
}

// Kill cuts the power: QEMU gets SIGKILL. It may be called at any time, also
// after the end.
func (g *Guest) Kill() {
	g.mu.Lock()
	g.killed = true
	g.now.qemu.kill()
	g.mu.Unlock()
	<-g.done
}

// Console returns everything that the console has shown, without terminal
// control sequences.
func (g *Guest) Console() string { return g.console.all() }

// Silence returns for how long the console has shown nothing new.
func (g *Guest) Silence() time.Duration { return g.console.silence() }

// Tail returns the last lines of the console.
func (g *Guest) Tail(lines int) string { return g.console.tail(lines) }

// CommandLine returns QEMU's command line for a person to read.
func (g *Guest) CommandLine() string { return strings.Join(g.emulator().command, " ") }

// CPU returns what QEMU has used of a processor, without what the one that runs has.
func (g *Guest) CPU() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.used
}
