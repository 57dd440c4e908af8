// Package child runs one program of another root file system to its end. PID 1
// links no os/exec: this is the one way in which it runs anything beside the real
// init.
package child

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// ErrTime: the program did not end within the time that it had, and was killed.
var ErrTime = errors.New("it was stopped: it took too long")

// outputBytes is how much of its output is kept, the last of it.
const outputBytes = 8 << 10

// killed is how long a program that was killed may still take: one that hangs in
// the kernel is left behind.
const killed = 5 * time.Second

// Result is how a program ended.
type Result struct {
	Status int    // exit status; 128 and the signal's number when one ended it
	Output []byte // the end of what it wrote
}

// Run runs the program argv[0] inside root, with an empty environment and nothing to
// read. It must not leave children of its own behind. Errors: fs.ErrNotExist when
// there is no such program, ErrTime.
//
// It uses syscall and not os: what package os adds would cost PID 1 12 KB.
func Run(ctx context.Context, root string, argv ...string) (Result, error) {
	result, err := run(ctx, root, argv)
	if err != nil {
		return result, fmt.Errorf("cannot run %s: %w", argv[0], err)
	}
	return result, nil
}

func run(ctx context.Context, root string, argv []string) (Result, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return Result{}, err
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return Result{}, err
	}
	defer r.Close()
	out := w.Fd()
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Dir: "/", Env: []string{}, Files: []uintptr{null.Fd(), out, out},
		Sys: &syscall.SysProcAttr{Chroot: root, Setsid: true},
	})
	w.Close()
	if err != nil {
		return Result{}, err
	}
	output := make(chan []byte, 1)
	go func() {
		defer func() { _ = recover() }() // its output is worth no panic
		output <- tail(r)
	}()
	done := make(chan syscall.WaitStatus, 1)
	go func() {
		var ended syscall.WaitStatus
		for {
			if _, err := syscall.Wait4(pid, &ended, 0, nil); err != syscall.EINTR {
				break
			}
		}
		done <- ended
	}()
	var ended syscall.WaitStatus
	select {
	case ended = <-done:
	case <-ctx.Done():
		err = ErrTime
		syscall.Kill(pid, syscall.SIGKILL)
		select {
		case <-done:
		case <-time.After(killed):
		}
	}
	r.SetReadDeadline(time.Now().Add(time.Second)) // another may hold the other end
	result := Result{Status: ended.ExitStatus(), Output: <-output}
	if ended.Signaled() {
		result.Status = 128 + int(ended.Signal())
	}
	return result, err
}

// tail reads to the end and keeps the last outputBytes.
func tail(r *os.File) []byte {
	var kept []byte
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		kept = append(kept, buf[:n]...)
		if more := len(kept) - outputBytes; more > 0 {
			kept = append(kept[:0], kept[more:]...)
		}
		if err != nil {
			return kept
		}
	}
}
