// Command sealroot is for the running system: it tells how the machine was
// booted, keeps the slot that runs, puts another one on trial, and hands out
// the recovery key.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/machine"
	"sealroot/sealroot/recovery"
	"sealroot/slots"
	"sealroot/slots/bootlog"
)

const usage = `sealroot tells how this machine was booted, and changes what it boots next.

  sealroot status [--json]             slots, state, recovery key, what to do
  sealroot commit                      keep the slot that runs
  sealroot try SLOT [--tries N]        boot another slot on trial, at most N times
  sealroot state recovery-key [--show] [--yes]
                                       show the recovery key once, then delete it here
  sealroot version                     this program's version

Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused or nothing to do it
with, 4 not root, 5 this system was not booted by sealroot.
`

// Exit statuses.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitRefused
	exitNotRoot
	exitNotBooted
)

var (
	errUsage = errors.New("wrong usage")
	// errSaid: wrong usage, and the flag package has said so.
	errSaid      = errors.New("wrong usage, explained")
	errNotRoot   = errors.New("only root may do this; use sudo")
	errNotBooted = errors.New("this system was not booted by sealroot")
)

// Machine is the boot disk as the commands need it.
type Machine interface {
	Slots() ([]slots.Slot, error)
	Record() (bootlog.Record, error)
	// BootSet is what commit and try act on; changed is told of each place
	// whose default was changed.
	BootSet(changed func(place, slot string)) (bootset.Machine, error)
}

// Env is what the commands know of the world beside their arguments.
type Env struct {
	UID      int
	Stdin    io.Reader
	Terminal bool   // a person sits at standard input and output
	Report   string // path of boot.json
	Key      string // path of the kept recovery key
	Lock     string // file that commands which write lock
	Version  string
	Open     func(report.Report) (Machine, error)
}

// version is set by the linker.
var version = "devel"

func main() {
	// A signal must not end a command between two writes.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := Main(ctx, os.Args[1:], os.Stdout, os.Stderr, Env{
		UID:      os.Geteuid(),
		Stdin:    os.Stdin,
		Terminal: isTerminal(os.Stdin) && isTerminal(os.Stdout),
		Report:   report.Path,
		Key:      recovery.File,
		Lock:     "/run/sealroot/lock",
		Version:  version,
		Open: func(r report.Report) (Machine, error) {
			m, err := machine.Open(r)
			if err != nil {
				return nil, err
			}
			return m, nil
		},
	})
	stop()
	os.Exit(code)
}

// Main runs one command and returns the exit status.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer, env Env) int {
	err := run(ctx, args, stdout, stderr, env)
	code := exitCode(err)
	if err == nil || errors.Is(err, flag.ErrHelp) || errors.Is(err, errSaid) {
		return code
	}
	fmt.Fprintf(stderr, "sealroot: %v\n", err)
	return code
}

func exitCode(err error) int {
	for _, c := range []struct {
		code int
		errs []error
	}{
		{exitOK, []error{nil, flag.ErrHelp}},
		{exitNotRoot, []error{errNotRoot}},
		{exitNotBooted, []error{errNotBooted}},
		{exitUsage, []error{errUsage, errSaid, bootset.ErrUsage}},
		{exitRefused, []error{bootset.ErrRefused, bootset.ErrNoImage, recovery.ErrNone, recovery.ErrNotTerminal}},
	} {
		for _, e := range c.errs {
			if errors.Is(err, e) {
				return c.code
			}
		}
	}
	return exitFailed
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer, env Env) error {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return errSaid
	}
	name, rest := args[0], args[1:]
	if name == "state" {
		if len(rest) == 0 || rest[0] != "recovery-key" {
			return fmt.Errorf("%w: sealroot state knows only recovery-key", errUsage)
		}
		name, rest = "state recovery-key", rest[1:]
	}
	c := command{env: env, stdout: stdout, flags: flag.NewFlagSet("sealroot "+name, flag.ContinueOnError)}
	c.flags.SetOutput(stderr)
	switch name {
	case "help", "-h", "--help":
		fmt.Fprint(stdout, usage)
		return nil
	case "version", "--version":
		fmt.Fprintf(stdout, "sealroot %s\n", env.Version)
		return nil
	case "status":
		return c.status(rest)
	case "commit":
		return c.commit(ctx, rest)
	case "try":
		return c.try(ctx, rest)
	case "state recovery-key":
		return c.recoveryKey(ctx, rest)
	}
	return fmt.Errorf("%w: unknown command %q (sealroot help lists them)", errUsage, name)
}
