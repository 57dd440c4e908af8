// Package tpmtest runs a software TPM (swtpm, Debian package swtpm) for tests,
// and tpm2-tools and other judges against it.
package tpmtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"sealroot/state/tpm"
)

// Machine is a TPM with its persistent state. It implements tpm.Transport.
type Machine struct {
	tb    testing.TB
	dir   string // sockets
	state string // persistent state
	cmd   *exec.Cmd

	mu    sync.Mutex
	trace [][]byte
}

// Start runs a new TPM, powered on and started up; the test's end stops it.
func Start(tb testing.TB) *Machine {
	tb.Helper()
	dir, err := os.MkdirTemp("", "swtpm") // not TempDir: socket paths are short
	if err != nil {
		tb.Fatal(err)
	}
	m := &Machine{tb: tb, dir: dir, state: dir}
	tb.Cleanup(func() {
		m.PowerOff()
		os.RemoveAll(dir)
	})
	m.PowerOn()
	return m
}

// StartAt runs the TPM whose state is in dir, as another program left it; stop it
// with PowerOff before that program uses it again.
func StartAt(tb testing.TB, dir string) *Machine {
	tb.Helper()
	sockets, err := os.MkdirTemp("", "swtpm")
	if err != nil {
		tb.Fatal(err)
	}
	m := &Machine{tb: tb, dir: sockets, state: dir}
	tb.Cleanup(func() {
		m.PowerOff()
		os.RemoveAll(sockets)
	})
	m.PowerOn()
	return m
}

// StartWithBanks is Start with only the given PCR banks active: "sha1,sha384".
func StartWithBanks(tb testing.TB, banks string) *Machine {
	tb.Helper()
	m := Start(tb)
	m.PowerOff()
	m.run("swtpm_setup", "--tpm2", "--tpmstate", m.state, "--pcr-banks", banks, "--overwrite")
	m.PowerOn()
	return m
}

// PowerOn starts the TPM with the state it had: PCRs are reset.
func (m *Machine) PowerOn() {
	m.tb.Helper()
	m.cmd = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+m.state,
		"--server", "type=unixio,path="+m.socket(), "--ctrl", "type=unixio,path="+m.socket()+".ctrl",
		"--flags", "startup-clear")
	if err := m.cmd.Start(); err != nil {
		m.tb.Fatalf("cannot run swtpm (Debian package swtpm): %v", err)
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", m.socket()); err == nil {
			c.Close()
			return
		}
	}
	m.tb.Fatal("swtpm does not answer")
}

// PowerOff ends the TPM as a power cut does.
func (m *Machine) PowerOff() {
	if m.cmd == nil {
		return
	}
	m.cmd.Process.Kill()
	m.cmd.Wait()
	m.cmd = nil
	os.Remove(m.socket())
	os.Remove(m.socket() + ".ctrl")
}

// Reset is a power cut and a new start.
func (m *Machine) Reset() {
	m.tb.Helper()
	m.PowerOff()
	m.PowerOn()
}

func (m *Machine) socket() string { return filepath.Join(m.dir, "s") }

// TCTI names the TPM for tpm2-tools and systemd's tools.
func (m *Machine) TCTI() string { return "swtpm:path=" + m.socket() }

// NewPIN is the PIN that systemd-cryptenroll gets when Run runs it.
const NewPIN = "4711"

// Run runs a program with the TPM2TOOLS_TCTI of this machine in dir and returns
// its output and whether it succeeded. systemd-cryptenroll finds the passphrase
// of the volume, "pw", and NewPIN in its environment.
func (m *Machine) Run(dir, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI="+m.TCTI(), "PASSWORD=pw", "NEWPIN="+NewPIN, "TSS2_LOG=all+none")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// MustRun is Run that ends the test on failure.
func (m *Machine) MustRun(dir, name string, args ...string) string {
	m.tb.Helper()
	out, err := m.Run(dir, name, args...)
	if err != nil {
		m.tb.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

func (m *Machine) run(name string, args ...string) {
	m.tb.Helper()
	m.MustRun(m.dir, name, args...)
}

// Send implements tpm.Transport, one connection for a command, so that other
// programs can use the TPM in between.
func (m *Machine) Send(ctx context.Context, command []byte) ([]byte, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", m.socket())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", tpm.ErrNoTPM, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	rsp, err := exchange(conn, command)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("%w: %w", tpm.ErrBusy, err)
	}
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.trace = append(m.trace, append([]byte(nil), command...), append([]byte(nil), rsp...))
	m.mu.Unlock()
	return rsp, nil
}

func exchange(conn io.ReadWriter, command []byte) ([]byte, error) {
	if _, err := conn.Write(command); err != nil {
		return nil, err
	}
	head := make([]byte, 10)
	if _, err := io.ReadFull(conn, head); err != nil {
		return nil, err
	}
	rest := make([]byte, binary.BigEndian.Uint32(head[2:])-10)
	if _, err := io.ReadFull(conn, rest); err != nil {
		return nil, err
	}
	return append(head, rest...), nil
}

// Close implements tpm.Transport; the TPM goes on running.
func (m *Machine) Close() error { return nil }

// Trace returns every command and response that went through Send: what a probe
// on the bus sees.
func (m *Machine) Trace() [][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([][]byte(nil), m.trace...)
}
