package machine

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// ErrStillRunning says that a process did not end in time.
var ErrStillRunning = errors.New("still running")

// process is a child that cannot outlive this program.
type process struct {
	cmd    *exec.Cmd
	output bytes.Buffer // complete once done is closed
	done   chan struct{}
	err    error
}

// startProcess starts a program whose descriptors 3, 4, … are files.
func startProcess(name string, args []string, files ...*os.File) (*process, error) {
	p := &process{cmd: exec.Command(name, args...), done: make(chan struct{})}
	p.cmd.Stdout = &p.output
	p.cmd.Stderr = &p.output
	p.cmd.ExtraFiles = files
	// Setpgid keeps a Ctrl-C on the terminal away from the child: this program
	// ends it in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread that forked ends, so that
		// thread must stay as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	return p, nil
}

// wait waits for the end of the process and returns what exec.Cmd.Wait did,
// with the process's output.
func (p *process) wait(timeout time.Duration) error {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
	}
	if !p.ended() {
		return fmt.Errorf("%s: %w after %s", p.cmd.Path, ErrStillRunning, timeout)
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w: %s", p.cmd.Path, p.err, bytes.TrimSpace(p.output.Bytes()))
	}
	return nil
}

// kill ends the process by SIGKILL and waits for it.
func (p *process) kill() {
	// An error here means that it has ended already.
	_ = p.cmd.Process.Kill()
	<-p.done
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// cpu is the time of a processor that the process has used, once it has ended.
func (p *process) cpu() time.Duration {
	if !p.ended() {
		return 0
	}
	return p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
}
