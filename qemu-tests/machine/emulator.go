package machine

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// patience is for QEMU and the software TPM themselves, on a host whose disk may
// be busy for a minute and more.
const patience = 3 * time.Minute

// The order of an emulator's connections.
const (
	consoleConn = iota
	agentConn
	qmpConn
)

// emulator is one process of QEMU with its TPM.
type emulator struct {
	qemu    *process
	tpm     *softwareTPM // nil for none
	conns   []net.Conn
	readers sync.WaitGroup // of the console and the agent
	command []string

	mu    sync.Mutex // one command at a time
	qmp   *bufio.Scanner
	reset bool // QEMU has said that a reset ends it
}

// startEmulator starts QEMU. When it has ended, finish must be called.
func startEmulator(c Config) (e *emulator, err error) {
	e = &emulator{}
	defer func() {
		if err == nil {
			return
		}
		if e.qemu != nil {
			e.qemu.kill()
		}
		e.release()
		e = nil
	}()
	socket := ""
	if c.TPM != "" {
		if e.tpm, err = startTPM(c.TPM, c.Bus); err != nil {
			return e, err
		}
		socket = e.tpm.socket
	}
	args, err := c.arguments(socket)
	if err != nil {
		return e, err
	}
	e.command = append([]string{"qemu-system-x86_64"}, args...)
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	for range qmpConn + 1 {
		conn, f, err := connection()
		if err != nil {
			return e, err
		}
		e.conns, theirs = append(e.conns, conn), append(theirs, f)
	}
	if e.qemu, err = startProcess(e.command[0], args, theirs...); err != nil {
		return e, err
	}
	e.qmp = bufio.NewScanner(e.conns[qmpConn])
	_, err = e.query("qmp_capabilities", nil)
	return e, err
}

// connection returns a connected pair of sockets, one end for us, one for QEMU.
func connection() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make a socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "guest"), os.NewFile(uintptr(fds[1]), "qemu")
	defer ours.Close()
	// QEMU sends each character of a serial port by itself, and each takes its share of the
	// buffer: the usual one is full after some hundred, and what the guest writes while
	// nobody reads is lost. Only root may have one that is larger than the host's limit.
	const buffer = 16 << 20
	if unix.SetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, buffer) != nil {
		_ = unix.SetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_SNDBUF, buffer)
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("cannot use a socket pair: %w", err)
	}
	return conn, theirs, nil
}

// message is what QEMU says on its machine protocol: an answer, an event or a greeting.
type message struct {
	Return json.RawMessage `json:"return"`
	Error  *struct{ Desc string }
	Event  string
	Data   struct{ Reason string }
}

// query runs one command of QEMU's machine protocol and returns its answer.
func (e *emulator) query(command string, arguments map[string]any) (json.RawMessage, error) {
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	line, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("cannot encode %s: %w", command, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	conn := e.conns[qmpConn]
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return nil, e.monitorError(command, err)
	}
	for {
		m, err := e.next()
		switch {
		case err != nil:
			return nil, e.monitorError(command, err)
		case m.Error != nil:
			return nil, e.monitorError(command, errors.New(m.Error.Desc))
		case m.Return != nil:
			return m.Return, nil
		}
	}
}

// next reads what QEMU says next, with the lock held. Its error wraps ErrEnded at the end.
func (e *emulator) next() (m message, err error) {
	if !e.qmp.Scan() {
		return m, errors.Join(e.qmp.Err(), ErrEnded)
	}
	if err := json.Unmarshal(e.qmp.Bytes(), &m); err != nil {
		return message{}, err
	}
	if m.Event == "SHUTDOWN" {
		// guest-reset, host-qmp-system-reset; without a reset guest-shutdown and others.
		e.reset = strings.HasSuffix(m.Data.Reason, "reset")
	}
	return m, nil
}

func (e *emulator) monitorError(command string, err error) error {
	if e.qemu.wait(time.Second); e.qemu.ended() {
		err = errors.Join(err, e.qemu.wait(0))
	}
	return fmt.Errorf("cannot send %s to QEMU: %w", command, err)
}

// finish takes what the ended QEMU has said, leaves nothing behind, and tells whether a
// reset was the end (with -no-reboot).
func (e *emulator) finish() (reset bool) {
	e.readers.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.conns[qmpConn].SetDeadline(time.Now().Add(patience))
	for err := error(nil); err == nil; {
		_, err = e.next()
	}
	e.release()
	return e.reset
}

func (e *emulator) release() {
	for _, conn := range e.conns {
		conn.Close()
	}
	if e.tpm != nil {
		if e.qemu == nil {
			e.tpm.process.kill() // nobody has ever used it
		}
		e.tpm.stop()
	}
}
