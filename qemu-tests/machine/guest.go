package machine

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// patience is for QEMU and the software TPM themselves, on a host whose disk may
// be busy for a minute and more.
const patience = 3 * time.Minute

// Guest is a running machine.
type Guest struct {
	qemu    *process
	tpm     *softwareTPM
	console *console
	agent   *agent
	conns   []net.Conn // console, agent, QMP
	qmp     *bufio.Scanner
	command []string
}

// Start switches the machine on. The caller must end it with Kill, or Wait
// until it has ended; both leave no process behind.
func Start(c Config) (g *Guest, err error) {
	g = &Guest{console: newConsole(c.Log)}
	defer func() {
		if err != nil {
			g.Kill()
			g = nil
		}
	}()
	socket := ""
	if c.TPM != "" {
		if g.tpm, err = startTPM(c.TPM, c.Bus); err != nil {
			return g, err
		}
		socket = g.tpm.socket
	}
	args, err := c.arguments(socket)
	if err != nil {
		return g, err
	}
	g.command = append([]string{"qemu-system-x86_64"}, args...)

	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	for range 3 {
		conn, f, err := connection()
		if err != nil {
			return g, err
		}
		g.conns, theirs = append(g.conns, conn), append(theirs, f)
	}
	g.agent = newAgent(g.conns[1])
	if g.qemu, err = startProcess(g.command[0], args, theirs...); err != nil {
		return g, err
	}
	go g.console.readFrom(g.conns[0])
	go g.agent.readFrom(g.conns[1])
	g.qmp = bufio.NewScanner(g.conns[2])
	if err := g.Monitor("qmp_capabilities", nil); err != nil {
		return g, err
	}
	return g, nil
}

// connection returns a connected pair of sockets, one end for us, one for QEMU.
func connection() (net.Conn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make a socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "guest"), os.NewFile(uintptr(fds[1]), "qemu")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("cannot use a socket pair: %w", err)
	}
	return conn, theirs, nil
}

// Monitor runs one command of QEMU's machine protocol, such as system_reset,
// system_powerdown, quit, stop or cont.
func (g *Guest) Monitor(command string, arguments map[string]any) error {
	_, err := g.query(command, arguments)
	return err
}

// query runs one command of QEMU's machine protocol and returns its answer.
func (g *Guest) query(command string, arguments map[string]any) (json.RawMessage, error) {
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	line, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("cannot encode %s: %w", command, err)
	}
	conn := g.conns[2]
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return nil, g.monitorError(command, err)
	}
	for g.qmp.Scan() {
		var reply struct {
			Return json.RawMessage `json:"return"`
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(g.qmp.Bytes(), &reply); err != nil {
			return nil, g.monitorError(command, err)
		}
		if reply.Error != nil {
			return nil, g.monitorError(command, errors.New(reply.Error.Desc))
		}
		if reply.Return != nil {
			return reply.Return, nil
		}
		// A greeting or an event.
	}
	return nil, g.monitorError(command, errors.Join(g.qmp.Err(), ErrEnded))
}

func (g *Guest) monitorError(command string, err error) error {
	if g.qemu.wait(time.Second); g.qemu.ended() {
		err = errors.Join(err, g.qemu.wait(0))
	}
	return fmt.Errorf("cannot send %s to QEMU: %w", command, err)
}

// Expect waits for text on the console that matches, after what the last
// Expect matched, and returns the match and its groups. Errors wrap ErrTimeout
// or ErrEnded.
func (g *Guest) Expect(re *regexp.Regexp, timeout time.Duration) ([]string, error) {
	return g.console.expect(re, timeout)
}

// Send types text on the console.
func (g *Guest) Send(text string) error {
	if _, err := g.conns[0].Write([]byte(text)); err != nil {
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
	if err := g.qemu.wait(timeout); !g.qemu.ended() || err != nil {
		return err
	}
	g.release()
	return nil
}

// Kill cuts the power: QEMU gets SIGKILL. It may be called at any time, also
// after the end.
func (g *Guest) Kill() {
	if g.qemu != nil {
		g.qemu.kill()
	}
	g.release()
}

func (g *Guest) release() {
	for _, conn := range g.conns {
		conn.Close()
	}
	if g.tpm != nil {
		if g.qemu == nil {
			g.tpm.process.kill() // nobody has ever used it
		}
		g.tpm.stop()
	}
}

// Console returns everything that the console has shown, without terminal
// control sequences.
func (g *Guest) Console() string { return g.console.all() }

// Silence returns for how long the console has shown nothing new.
func (g *Guest) Silence() time.Duration { return g.console.silence() }

// Tail returns the last lines of the console.
func (g *Guest) Tail(lines int) string { return g.console.tail(lines) }

// CommandLine returns QEMU's command line for a person to read.
func (g *Guest) CommandLine() string { return strings.Join(g.command, " ") }

// CPU returns what QEMU has used of a processor, once it has ended; 0 before.
func (g *Guest) CPU() time.Duration { return g.qemu.cpu() }
