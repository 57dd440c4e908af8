// Package checks runs an administrator's health checks: the executable files of
// a few folders, one after the other in the order of their names, each with a
// time limit, until one fails.
package checks

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

var (
	// ErrFailed: a check said that something is wrong, could not be run, or took
	// too long.
	ErrFailed = errors.New("health check failed")
	// ErrTimeLimit: a check took too long. It comes with ErrFailed.
	ErrTimeLimit = errors.New("time limit")
)

// grace is how long a check that was told to end may still write.
const grace = 2 * time.Second

// maxLine bounds a line of a check's output; a longer one is cut in pieces.
const maxLine = 4096

// Check is one health check.
type Check struct {
	Name string // of the file
	Path string
}

// Skipped is a file that is none, and why.
type Skipped struct{ Path, Why string }

// Find lists the checks of the folders by name. Of two files with one name that
// in the earlier folder counts; a link to /dev/null there takes the other away.
// Names are those that run-parts(8) takes: letters, digits, '_' and '-'. A
// folder that is missing is an empty one.
func Find(folders ...string) ([]Check, []Skipped, error) {
	found := map[string]Check{}
	var skipped []Skipped
	for _, dir := range folders {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("cannot list the health checks: %w", err)
		}
		for _, e := range entries {
			c := Check{Name: e.Name(), Path: filepath.Join(dir, e.Name())}
			if _, ok := found[c.Name]; ok {
				continue
			}
			switch why := unfit(c); why {
			case "":
				found[c.Name] = c
			case masked:
				found[c.Name] = Check{Name: c.Name}
			default:
				skipped = append(skipped, Skipped{c.Path, why})
			}
		}
	}
	var all []Check
	for _, c := range found {
		if c.Path != "" {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b Check) int { return strings.Compare(a.Name, b.Name) })
	return all, skipped, nil
}

const masked = "masked"

// unfit says why a file is no check, "" for one that is.
func unfit(c Check) string {
	st, err := os.Stat(c.Path)
	switch {
	case err != nil:
		return err.Error()
	case st.Mode()&fs.ModeCharDevice != 0 && linksToNull(c.Path):
		return masked
	case st.IsDir():
		return "it is a folder"
	case !st.Mode().IsRegular():
		return "it is no file"
	case !ValidName(c.Name):
		return "its name has other signs than letters, digits, _ and -"
	case st.Mode().Perm()&0o111 == 0:
		return "it is not executable"
	}
	return ""
}

func linksToNull(path string) bool {
	to, err := os.Readlink(path)
	return err == nil && to == "/dev/null"
}

// ValidName says whether a check may have the name.
func ValidName(name string) bool {
	for _, r := range name {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '_', r == '-':
		default:
			return false
		}
	}
	return name != ""
}

// Failure is a check that failed. It is ErrFailed.
type Failure struct {
	Name string
	Why  error
	Last string // last line of its output
}

// Error is one line for a person.
func (f *Failure) Error() string { return fmt.Sprintf("%v: %s", ErrFailed, f.Detail()) }

// Detail is the name and what happened, without saying that it failed.
func (f *Failure) Detail() string {
	text := fmt.Sprintf("%s: %v", f.Name, f.Why)
	if f.Last != "" {
		text += ": " + f.Last
	}
	return text
}

// Unwrap is what the failure is, and why.
func (f *Failure) Unwrap() []error { return []error{ErrFailed, f.Why} }

// Runner runs checks.
type Runner struct {
	Limit time.Duration // for each check
	// Say is told of each line of a check's output.
	Say func(check, line string)
	// Log is told what is run; it may be nil.
	Log func(format string, args ...any)
	// Env is what a check finds besides the environment of this process; nil for
	// SEALROOT_CHECK with its name.
	Env func(check string) []string
}

func (r Runner) env(name string) []string {
	if r.Env != nil {
		return r.Env(name)
	}
	return []string{"SEALROOT_CHECK=" + name}
}

// Run runs checks until one fails; that is a *Failure. When ctx ends, its error
// is returned: a check that was stopped because the machine is going down says
// nothing about the slot.
func (r Runner) Run(ctx context.Context, all []Check) error {
	for _, c := range all {
		if r.Log != nil {
			r.Log("check %s", c.Name)
		}
		last, err := r.one(ctx, c)
		if ctx.Err() != nil {
			return fmt.Errorf("cannot finish check %s: %w", c.Name, context.Cause(ctx))
		}
		if err != nil {
			return &Failure{c.Name, err, last}
		}
	}
	return nil
}

// one runs a check in a process group of its own, which is killed whole at the
// end of its time.
func (r Runner) one(ctx context.Context, c Check) (last string, err error) {
	limited, cancel := context.WithTimeoutCause(ctx, r.Limit, ErrTimeLimit)
	defer cancel()
	cmd := exec.CommandContext(limited, c.Path)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), r.env(c.Name)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = grace
	out, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = in, in
	lines := make(chan string, 1)
	go func() { lines <- r.lines(c.Name, out) }()
	err = cmd.Run()
	in.Close()
	last = <-lines
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it ended well and left a daemon with its output behind
	}
	if cause := context.Cause(limited); err != nil && cause != nil {
		err = fmt.Errorf("%w of %s", cause, r.Limit)
	}
	return last, err
}

// lines passes the output on and returns the last line that says something.
func (r Runner) lines(name string, out io.Reader) (last string) {
	b := bufio.NewReaderSize(out, maxLine)
	for {
		line, _, err := b.ReadLine()
		if err != nil {
			return last
		}
		if text := strings.TrimSpace(string(line)); text != "" {
			last = text
		}
		if r.Say != nil {
			r.Say(name, string(line))
		}
	}
}
