package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"
)

// disturbed is set in the environment of a program that sends itself signals.
const disturbed = "SEALROOT_TEST_DISTURBED"

// While the volume is frozen no signal of a terminal ends the program or stops it, nor does a
// terminal that is gone.
func TestUndisturbed(t *testing.T) {
	if os.Getenv(disturbed) != "" {
		beDisturbed()
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestUndisturbed$")
	cmd.Env = append(os.Environ(), disturbed+"=1")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, w
	if err := errors.Join(cmd.Start(), w.Close(), r.Close()); err != nil { // nobody reads its errors
		t.Fatal(err)
	}
	late := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	err = cmd.Wait()
	// It ends by the SIGQUIT that came meanwhile, as Go programs do.
	if said.String() != "thawed\n" || cmd.ProcessState.ExitCode() != 2 {
		t.Errorf("it says %q, and ended so: %v", said.String(), err)
	}
}

func beDisturbed() {
	ctx, stop := untilStopped()
	defer stop()
	restore := undisturbed()
	last := syscall.SIGHUP
	if signal.Ignored(last) { // these tests run under nohup
		last = syscall.SIGTERM
	}
	for _, s := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGABRT, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU, last} {
		if err := syscall.Kill(os.Getpid(), s); err != nil {
			os.Exit(3)
		}
	}
	<-ctx.Done()
	if _, err := os.Stderr.WriteString("x"); !errors.Is(err, syscall.EPIPE) {
		os.Exit(4)
	}
	_, _ = os.Stdout.WriteString("thawed\n")
	restore()
	time.Sleep(time.Minute)
	os.Exit(5)
}

// What is started by nohup goes on without its terminal.
func TestIgnoredHangup(t *testing.T) {
	if os.Getenv(disturbed) != "" {
		ctx, stop := untilStopped()
		defer stop()
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			os.Exit(3)
		}
		select {
		case <-ctx.Done():
			os.Exit(4)
		case <-time.After(200 * time.Millisecond):
			os.Exit(0)
		}
	}
	cmd := exec.Command("nohup", os.Args[0], "-test.run=^TestIgnoredHangup$")
	cmd.Env = append(os.Environ(), disturbed+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
