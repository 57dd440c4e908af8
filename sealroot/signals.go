package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// untilStopped ends its context at the signals that ask a program to end, which must not end
// a command between two writes. A hangup that whoever started it ignores (nohup) stays so.
func untilStopped() (context.Context, context.CancelFunc) {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	return signal.NotifyContext(context.Background(), signals...)
}

// undisturbed keeps the other signals that a person, a service manager or a terminal sends
// from ending or stopping the program until restore, which sends itself the first one that
// came. A write to a pipe that nobody reads is an error meanwhile.
func undisturbed() (restore func()) {
	held := make(chan os.Signal, 1)
	signal.Notify(held, syscall.SIGQUIT, syscall.SIGABRT, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGPIPE)
	return func() {
		signal.Stop(held)
		select {
		case s := <-held:
			if s != syscall.SIGPIPE { // what was written is lost, and the next write says so
				_ = syscall.Kill(os.Getpid(), s.(syscall.Signal))
			}
		default:
		}
	}
}
