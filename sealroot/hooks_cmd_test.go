package main

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"sealroot/init/report"
	"sealroot/sealroot/hooks"
	"sealroot/slots"
)

// A hook that fails keeps the slot from being committed, which stays on trial; what is
// committed already is not asked about again.
func TestPreCommit(t *testing.T) {
	for _, tt := range []struct {
		name, args string
		list       []slots.Slot
		hooks      map[string]string
		code       int
		out        string
		state      slots.State // of slot b
	}{
		{"none", "commit", pair(), nil, 0, "slot b: committed", slots.Committed},
		{"good", "commit", pair(), map[string]string{"10-a": `echo "from $SEALROOT_FROM_VERSION"`}, 0, "10-a: from 2026.1\nsealroot: slot b: committed", slots.Committed},
		{"fails", "commit", pair(), map[string]string{"10-a": "", "20-b": "echo not yet; exit 7"}, exitRefused,
			"slot b is not committed: pre-commit hook failed: 20-b: exit status 7: not yet", slots.Trial},
		{"takes_too_long", "commit --hook-timeout 200ms", pair(), map[string]string{"10-a": "sleep 60"}, exitRefused, "10-a: time limit of 200ms", slots.Trial},
		{"fails_after_checks", "check --commit", pair(), map[string]string{"10-a": "exit 1"}, exitRefused, "slot b is not committed", slots.Trial},
		{"committed_already", "commit", goodPair(), map[string]string{"10-a": "exit 1"}, 0, "slot b: is committed", slots.Committed},
		{"checks_alone", "check", pair(), map[string]string{"10-a": "exit 1"}, 0, "all good", slots.Trial},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := world{list: tt.list, report: running(func(r *report.Report) { r.Root.RootHash, r.Root.ImageVersion = "2", "2026.2" })}
			w.before = func(env Env) {
				makeHooks(t, env, hooks.PreCommit, tt.hooks)
				ran := hooks.Ran{System: hooks.System{Slot: "b", RootHash: "2", Version: "2026.2"}, From: hooks.System{Slot: "a", RootHash: "1", Version: "2026.1"}}
				keep(t, env, ran)
			}
			code, out, errs, o := w.outcome(t, strings.Fields(tt.args)...)
			if code != tt.code || !strings.Contains(out+errs, tt.out) {
				t.Errorf("exit status %d, %s%s; want %d, %q", code, out, errs, tt.code, tt.out)
			}
			if s, _ := slots.Find(o.list, "b"); s.State() != tt.state {
				t.Errorf("got %s, want it %s", s, tt.state)
			}
		})
	}
}

// What status tells a person to run has the time that the unit has: a hook that puts
// back data is not to be killed half way.
func TestHookTime(t *testing.T) {
	for _, tt := range []struct {
		command string
		want    string
	}{
		{"commit", "2m0s"}, {"check", "2m0s"}, {"post-rollback", "30m0s"},
	} {
		_, out, errs, _ := world{uid: 1000}.run(t, "help", tt.command)
		_, flag, _ := strings.Cut(out, "-hook-timeout duration")
		if want := "how long each hook of the image may take (default " + tt.want + ")"; !strings.HasPrefix(strings.TrimSpace(flag), want) {
			t.Errorf("help %s: %s%s, want %q", tt.command, out, errs, want)
		}
	}
	unit, err := os.ReadFile("units/sealroot-post-rollback.service")
	if err != nil || !strings.Contains(string(unit), "\nExecStart=/usr/bin/sealroot post-rollback\n") {
		t.Errorf("the unit has a time limit of its own: %s, %v", unit, err)
	}
}

func makeHooks(t *testing.T, env Env, event hooks.Event, all map[string]string) {
	t.Helper()
	dir := filepath.Join(env.Hooks, string(event)+".d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, body := range all {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func keep(t *testing.T, env Env, ran hooks.Ran) {
	t.Helper()
	if err := os.MkdirAll(env.volume(), 0o755); err != nil {
		t.Fatal(err)
	}
	if ran.RootHash == "" {
		return
	}
	if err := ran.Keep(env.volume()); err != nil {
		t.Fatal(err)
	}
}

// The hooks of an image run once when it is back, all of them; what fails is kept, told
// by status, and can be run again.
func TestPostRollback(t *testing.T) {
	a, b := hooks.System{Slot: "a", RootHash: "1", Version: "2026.1"}, hooks.System{Slot: "b", RootHash: "2", Version: "2026.2"}
	const ran = "10-a: from b 2026.2"
	good := map[string]string{"10-a": `echo "from $SEALROOT_FROM_SLOT $SEALROOT_FROM_VERSION"`}
	bad := map[string]string{"10-a": good["10-a"], "05-x": "echo broken; exit 1"}
	const failed = "05-x: exit status 1: broken"
	for _, tt := range []struct {
		name   string
		last   hooks.Ran
		change func(*report.Report)
		hooks  map[string]string
		args   string
		code   int
		runs   bool
		want   hooks.Ran
	}{
		{name: "first_boot", hooks: good, want: hooks.Ran{System: a}},
		{name: "next_boot", last: hooks.Ran{System: a, From: b}, hooks: good, want: hooks.Ran{System: a, From: b}},
		{name: "rolled_back", last: hooks.Ran{System: b, From: a}, hooks: good, runs: true, want: hooks.Ran{System: a, From: b}},
		{name: "on_trial", last: hooks.Ran{System: b}, change: func(r *report.Report) { r.Slot.Trial = true }, hooks: good, want: hooks.Ran{System: a, From: b}},
		{name: "degraded", last: hooks.Ran{System: b}, change: func(r *report.Report) { r.Degraded = true }, hooks: good, want: hooks.Ran{System: b}},
		{name: "one_fails", last: hooks.Ran{System: b}, hooks: bad, code: exitBad, runs: true, want: hooks.Ran{System: a, From: b, Failed: []string{failed}}},
		{name: "failed_before", last: hooks.Ran{System: a, From: b, Failed: []string{failed}}, hooks: good, want: hooks.Ran{System: a, From: b, Failed: []string{failed}}},
		{name: "again", last: hooks.Ran{System: a, From: b, Failed: []string{failed}}, hooks: good, args: " --again", runs: true, want: hooks.Ran{System: a, From: b}},
		{name: "again_and_none_failed", last: hooks.Ran{System: a, From: b}, hooks: good, args: " --again", want: hooks.Ran{System: a, From: b}},
		{name: "no_hooks", last: hooks.Ran{System: b}, want: hooks.Ran{System: a, From: b}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := world{list: pair(), report: running(func(r *report.Report) {
				r.Slot = report.Slot{Name: "a", Reason: "fallback"}
				r.Root.RootHash, r.Root.ImageVersion = a.RootHash, a.Version
				if tt.change != nil {
					tt.change(r)
				}
			})}
			w.before = func(env Env) {
				makeHooks(t, env, hooks.PostRollback, tt.hooks)
				keep(t, env, tt.last)
			}
			code, out, errs, o := w.outcome(t, strings.Fields("post-rollback"+tt.args)...)
			if code != tt.code || strings.Contains(out, ran) != tt.runs || (code != 0) != strings.Contains(errs, failed) {
				t.Errorf("exit status %d, %s%s; want %d, hooks run: %v", code, out, errs, tt.code, tt.runs)
			}
			if got, err := hooks.Last(o.env.volume()); err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("kept %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
	// A record that says nothing is made anew.
	w := world{list: pair(), report: running(func(r *report.Report) { r.Slot.Trial, r.Root.RootHash = false, "2" })}
	w.before = func(env Env) {
		keep(t, env, hooks.Ran{System: a})
		if err := os.WriteFile(filepath.Join(env.volume(), ".sealroot/last-ran"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	code, out, errs, o := w.outcome(t, "post-rollback")
	if got, err := hooks.Last(o.env.volume()); code != 0 || !strings.Contains(out, hooks.ErrRecord.Error()) || err != nil || got.RootHash != "2" {
		t.Errorf("exit status %d, %s%s, kept %+v, %v", code, out, errs, got, err)
	}
}

// A commit is of a system that is noted as the one which ran last: else its next boot
// would pass for a rollback. Hooks do not run where it cannot be, nor from a hook.
func TestPreCommitNotes(t *testing.T) {
	a, b := hooks.System{Slot: "a", RootHash: "1", Version: "2026.1"}, hooks.System{Slot: "b", RootHash: "2", Version: "2026.2"}
	good := map[string]string{"10-a": `echo "asked, from $SEALROOT_FROM_VERSION"`}
	for _, tt := range []struct {
		name   string
		list   []slots.Slot
		change func(*report.Report)
		hooks  map[string]string
		stuck  bool // nothing can be noted
		inHook bool
		code   int
		runs   bool
		want   hooks.Ran
	}{
		{name: "not_noted", hooks: good, runs: true, want: hooks.Ran{System: b, From: a}},
		{name: "hook_fails", hooks: map[string]string{"10-a": good["10-a"] + "; exit 1"}, runs: true, code: exitRefused, want: hooks.Ran{System: b, From: a}},
		{name: "cannot_be_noted", hooks: good, stuck: true, code: exitRefused, want: hooks.Ran{System: a}},
		{name: "cannot_be_noted_and_no_hooks", stuck: true, want: hooks.Ran{System: a}},
		{name: "degraded", hooks: good, change: func(r *report.Report) { r.Degraded = true }, code: exitRefused, want: hooks.Ran{System: a}},
		{name: "marked_bad", list: []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b"}}, hooks: good, code: exitRefused, want: hooks.Ran{System: a}},
		{name: "from_a_hook", hooks: good, inHook: true, code: exitRefused, want: hooks.Ran{System: a}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := world{list: tt.list, report: running(func(r *report.Report) {
				r.Root.RootHash, r.Root.ImageVersion = b.RootHash, b.Version
				if tt.change != nil {
					tt.change(r)
				}
			})}
			if w.list == nil {
				w.list = pair()
			}
			if tt.inHook {
				t.Setenv("SEALROOT_HOOK", "10-a")
			}
			w.before = func(env Env) {
				if tt.hooks != nil {
					makeHooks(t, env, hooks.PreCommit, tt.hooks)
				}
				keep(t, env, hooks.Ran{System: a})
				if tt.stuck {
					stick(t, env)
				}
			}
			code, out, errs, o := w.outcome(t, "commit")
			if code != tt.code || strings.Contains(out, "asked") != tt.runs || tt.runs && !strings.Contains(out, "asked, from 2026.1") {
				t.Errorf("exit status %d, %s%s; want %d, hooks run: %v", code, out, errs, tt.code, tt.runs)
			}
			if s, _ := slots.Find(o.list, "b"); s.Successful != (code == 0) {
				t.Errorf("got %s with exit status %d", s, code)
			}
			if got, err := hooks.Last(o.env.volume()); err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("kept %+v, %v, want %+v", got, err, tt.want)
			}
			why, _ := os.ReadFile(o.env.Refused)
			if want := tt.name == "cannot_be_noted"; strings.Contains(string(why), errUnnoted.Error()) != want {
				t.Errorf("kept of the refusal: %q, want it: %v", why, want)
			}
		})
	}
}

// Until the slot is committed no other hooks run: they would find it not committed, and
// run for it once more.
func TestHooksWaitForTheCommit(t *testing.T) {
	for _, args := range []string{"commit", "check --commit"} {
		commits := 0
		w := world{list: pair(), report: running(nil)}
		w.adapt = func(env *Env) {
			open := env.Open
			env.Open = func(where Where) (Machine, error) {
				if where.Write {
					commits++
					ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
					defer cancel()
					if unlock, err := lock(ctx, env.Lock+".hooks"); err == nil {
						unlock()
						t.Errorf("%s: hooks can run before the slot is committed", args)
					}
				}
				return open(where)
			}
		}
		code, out, errs, o := w.outcome(t, strings.Fields(args)...)
		if s, _ := slots.Find(o.list, "b"); code != 0 || commits != 1 || !s.Successful {
			t.Errorf("%s: exit status %d, %s%s", args, code, out, errs)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		unlock, err := lock(ctx, o.env.Lock+".hooks")
		if err != nil {
			t.Fatalf("%s: after the commit: %v", args, err)
		}
		unlock()
	}
}

// stick keeps notes from being written where they are written first.
func stick(t *testing.T, env Env) {
	t.Helper()
	for _, name := range []string{"last-ran.new", "next-ran.new"} {
		if err := os.MkdirAll(filepath.Join(env.volume(), ".sealroot", name, "x"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// Hooks that cannot be noted are not run, for they would run again; those that have run
// are noted also when they have filled the volume.
func TestPostRollbackNotes(t *testing.T) {
	a, b := hooks.System{Slot: "a", RootHash: "1", Version: "2026.1"}, hooks.System{Slot: "b", RootHash: "2", Version: "2026.2"}
	for _, tt := range []struct {
		name   string
		before bool // nothing can be noted, before the hooks or after
		status string
		code   int
		runs   bool
		want   hooks.Ran
	}{
		{"before", true, "0", exitFailed, false, hooks.Ran{System: b, From: a}},
		{"after", false, "0", 0, true, hooks.Ran{System: a, From: b}},
		{"after_and_one_fails", false, "1", exitFailed, true, hooks.Ran{System: a, From: b}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := world{list: pair(), report: running(func(r *report.Report) {
				r.Slot = report.Slot{Name: "a", Reason: "fallback"}
				r.Root.RootHash, r.Root.ImageVersion = a.RootHash, a.Version
			})}
			w.before = func(env Env) {
				body := "echo back; mkdir -p " + filepath.Join(env.volume(), ".sealroot/last-ran.new/x") + "; exit " + tt.status
				makeHooks(t, env, hooks.PostRollback, map[string]string{"10-a": body})
				keep(t, env, hooks.Ran{System: b, From: a})
				if tt.before {
					stick(t, env)
				}
			}
			code, out, errs, o := w.outcome(t, "post-rollback")
			if code != tt.code || strings.Contains(out, "10-a: back") != tt.runs {
				t.Errorf("exit status %d, %s%s; want %d, hooks run: %v", code, out, errs, tt.code, tt.runs)
			}
			if got, err := hooks.Last(o.env.volume()); err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("kept %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

// The time limit of a trial tells why there was no commit.
func TestDeadlineTellsOfARefusal(t *testing.T) {
	w := world{list: pair(), trial: true, report: running(func(r *report.Report) { r.CommitDeadlineSeconds = 300 })}
	w.before = func(env Env) {
		if err := os.WriteFile(env.Refused, []byte("pre-commit hook failed: 10-a: exit status 1"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, out, errs, o := w.outcome(t, "deadline")
	const want = "within 5m0s of the boot: pre-commit hook failed: 10-a: exit status 1"
	if got := o.log.SlotFailures()["b"].Detail; got != want {
		t.Errorf("kept %q, want %q\n%s%s", got, want, out, errs)
	}
}
