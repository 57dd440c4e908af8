// Package hooks runs the programs that an image brings for the change from one system
// to another: before its slot is committed, and in the first boot after a rollback.
//
// They are the image's alone, below Dir, which dm-verity vouches for. There is no
// folder for them in /etc: that is merged from image to image, and what a version does
// to its data must be of that version.
package hooks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"sealroot/sealroot/checks"
)

// Dir has a folder for each event, named after it with .d behind.
const Dir = "/usr/lib/sealroot/hooks"

// Event says when hooks are run.
type Event string

// The events.
const (
	PreCommit    Event = "pre-commit"    // the running slot is about to be committed
	PostRollback Event = "post-rollback" // an image that ran before runs again, in another slot than the last one
)

var (
	// ErrUnsafe: not only root may change the hook.
	ErrUnsafe = errors.New("not safe to run")
	// ErrFailed: a hook failed, could not be run, or took too long.
	ErrFailed = errors.New("hook failed")
)

// System is an image in a slot.
type System struct {
	Slot     string `json:"slot"`
	RootHash string `json:"root_hash"`
	Version  string `json:"version"` // of the image
}

// Change is what hooks are told of: From is empty when nobody knows.
type Change struct {
	Event    Event
	From, To System
}

// environment is what a hook finds besides that of its caller.
func (c Change) environment(hook string) []string {
	return []string{
		"SEALROOT_HOOK=" + hook, "SEALROOT_EVENT=" + string(c.Event),
		"SEALROOT_SLOT=" + c.To.Slot, "SEALROOT_VERSION=" + c.To.Version,
		"SEALROOT_FROM_SLOT=" + c.From.Slot, "SEALROOT_FROM_VERSION=" + c.From.Version,
	}
}

// Runner runs hooks.
type Runner struct {
	Dir   string        // Dir
	Limit time.Duration // for each hook
	// Say is told of each line of a hook's output.
	Say func(hook, line string)
	// Skip is told of files that are no hooks, and why.
	Skip func(path, why string)
}

// Until runs the hooks of an event in the order of their names until one fails. Errors:
// ErrFailed, with ErrUnsafe for one that was not run.
func (r Runner) Until(ctx context.Context, c Change) error {
	failed, err := r.run(ctx, c, true)
	if err == nil && len(failed) > 0 {
		err = fmt.Errorf("%s %w", c.Event, failed[0])
	}
	return err
}

// All runs all of them, also when one fails, and tells what failed: name, what
// happened, last line of its output.
func (r Runner) All(ctx context.Context, c Change) (failed []string, err error) {
	list, err := r.run(ctx, c, false)
	for _, f := range list {
		failed = append(failed, f.detail)
	}
	return failed, err
}

// failure is a hook that failed.
type failure struct {
	detail string
	why    error
}

func (f failure) Error() string   { return fmt.Sprintf("%v: %s", ErrFailed, f.detail) }
func (f failure) Unwrap() []error { return []error{ErrFailed, f.why} }

func (r Runner) run(ctx context.Context, c Change, first bool) (failed []failure, err error) {
	dir := filepath.Join(r.Dir, string(c.Event)+".d")
	all, skipped, err := checks.Find(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot list the hooks: %w", err)
	}
	for _, s := range skipped {
		r.Skip(s.Path, s.Why)
	}
	runner := checks.Runner{Limit: r.Limit, Say: r.Say, Env: c.environment}
	for _, hook := range all {
		var bad *checks.Failure
		err := safe(dir, hook.Path)
		switch {
		case err != nil:
			failed = append(failed, failure{hook.Name + ": " + err.Error(), err})
		default:
			err = runner.Run(ctx, []checks.Check{hook})
			if err != nil && !errors.As(err, &bad) {
				return failed, err // the machine goes down
			}
			if bad != nil {
				failed = append(failed, failure{bad.Detail(), bad.Why})
			}
		}
		if first && len(failed) > 0 {
			break
		}
	}
	return failed, nil
}

// safe tells whether nobody but root may change a hook, or put another one in its place,
// also where it is a link.
func safe(dir, path string) error {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	for _, name := range []string{dir, target, filepath.Dir(target)} {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		if err := ownedByRoot(name, info); err != nil {
			return err
		}
	}
	return nil
}

func ownedByRoot(name string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || st.Uid != 0:
		return fmt.Errorf("%w: %s does not belong to root", ErrUnsafe, name)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%w: others than root may write %s", ErrUnsafe, name)
	}
	return nil
}
