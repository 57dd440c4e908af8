package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/rollbackfloor"
	"sealroot/slots"
	"sealroot/slots/bootlog"
)

// fake is a machine in memory, without a boot loader.
type fake struct {
	list   []slots.Slot
	err    error // of every access
	noSlot error // why a slot holds no image
	saves  int
	// saveErr: the slots can be read and not written.
	saveErr error
	log     bootlog.Record
	closed  bool
	loaded  string // slot whose kernel runs
	// loadedErr: it cannot be found out
	loadedErr error
	level     rollbackfloor.Level // of every other slot
	trust     string              // folder that Level was told to go by
}

func (f *fake) Load() ([]slots.Slot, error) { return f.list, f.err }
func (f *fake) Save(s []slots.Slot) error {
	if f.saveErr == nil {
		f.saves++
		f.list = s
	}
	return f.saveErr
}
func (f *fake) Slots() ([]slots.Slot, error)    { return f.list, f.err }
func (f *fake) Record() (bootlog.Record, error) { return f.log, f.err }
func (f *fake) Kept() (store, loader string)    { return "gpt", "grub" }
func (f *fake) Loaded() (string, error)         { return f.loaded, f.loadedErr }
func (f *fake) Refill() int                     { return 0 }
func (f *fake) Close() error                    { f.closed = true; return nil }
func (f *fake) Versions() (map[string]string, error) {
	return map[string]string{"a": "7"}, f.err
}
func (f *fake) UpdateRecord(change func(bootlog.Record) (bootlog.Record, error)) (err error) {
	f.log, err = change(f.log)
	return err
}
func (f *fake) BootSet(func(place, slot string)) (bootset.Machine, error) {
	return bootset.Machine{Store: f, Log: fakeLog{f}, HoldsImage: func(string) error { return f.noSlot }, Tries: 3}, nil
}

type fakeLog struct{ f *fake }

func (l fakeLog) Record(c slots.LogChange) error { l.f.log = l.f.log.Apply(c, "boot"); return nil }

// world is what a command finds.
type world struct {
	report   *report.Report
	list     []slots.Slot
	err      error
	noSlot   error
	loaded   string // slot whose kernel runs
	level    rollbackfloor.Level
	key      string
	uid      int
	terminal bool
	typed    string
	log      bootlog.Record
	trial    bool              // the file that says so is there
	checks   map[string]string // scripts
	eager    string            // device to be read as a whole
	before   func(Env)         // changes what is there
	adapt    func(*Env)        // changes what is known
}

// outcome is what a command left.
type outcome struct {
	*fake
	env     Env
	reboots int
	where   Where
}

const thisBoot = "00000000-0000-4000-8000-000000000001"

func running(change func(*report.Report)) *report.Report {
	r := &report.Report{Schema: 1, BootID: thisBoot, Slot: report.Slot{Name: "b", Reason: "trial", Trial: true}, State: report.State{Recovery: "enrolled"}}
	if change != nil {
		change(r)
	}
	return r
}

func pair() []slots.Slot {
	return []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Tries: 2}}
}

func (w world) run(t *testing.T, args ...string) (code int, stdout, stderr string, f *fake) {
	t.Helper()
	code, stdout, stderr, o := w.outcome(t, args...)
	return code, stdout, stderr, o.fake
}

func (w world) outcome(t *testing.T, args ...string) (code int, stdout, stderr string, o *outcome) {
	t.Helper()
	dir := t.TempDir()
	env := Env{
		UID: w.uid, Stdin: strings.NewReader(w.typed), Terminal: w.terminal, Version: "v1",
		Report: filepath.Join(dir, "boot.json"), Key: filepath.Join(dir, "recovery.key"), Escrow: filepath.Join(dir, "escrow"), Lock: filepath.Join(dir, "run/lock"),
		State: filepath.Join(dir, "state"), Trial: filepath.Join(dir, "trial"), Checks: []string{filepath.Join(dir, "checks.d")}, Hooks: filepath.Join(dir, "hooks"),
		Refused: filepath.Join(dir, "refused"), LayersFailed: filepath.Join(dir, "layers-failed"), Eager: filepath.Join(dir, "eager-check"), TPM: filepath.Join(dir, "tpm0"), Volume: noVolume,
	}
	put := func(path, text string, mode os.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	if w.report != nil {
		text, err := w.report.Encode()
		if err != nil {
			t.Fatal(err)
		}
		put(env.Report, string(text), 0o644)
	}
	if w.key != "" {
		put(env.Key, w.key, 0o600)
	}
	if w.trial {
		put(env.Trial, "", 0o644)
	}
	if w.eager != "" {
		put(env.Eager, w.eager+"\n", 0o644)
	}
	for name, text := range w.checks {
		put(filepath.Join(env.Checks[0], name), "#!/bin/sh\n"+text+"\n", 0o755)
	}
	if err := os.Mkdir(env.State, 0o755); err != nil {
		t.Fatal(err)
	}
	o = &outcome{fake: &fake{list: slices.Clone(w.list), err: w.err, noSlot: w.noSlot, log: w.log, loaded: w.loaded, level: w.level}}
	env.Open = func(where Where) (Machine, error) {
		o.where = where
		return o.fake, w.err
	}
	env.Reboot = func(context.Context) error { o.reboots++; return nil }
	if w.adapt != nil {
		w.adapt(&env)
	}
	o.env = env
	if w.before != nil {
		w.before(env)
	}
	var out, errs bytes.Buffer
	code = Main(context.Background(), args, &out, &errs, env)
	return code, out.String(), errs.String(), o
}

func TestExitStatus(t *testing.T) {
	onB := world{report: running(nil), list: pair()}
	with := func(change func(*world)) world {
		w := onB
		change(&w)
		return w
	}
	user := with(func(w *world) { w.uid = 1000 })
	degraded := with(func(w *world) { w.report = running(func(r *report.Report) { r.Degraded = true }) })
	elsewhere := with(func(w *world) { w.report = nil })
	broken := with(func(w *world) { w.err = errors.New("no disk") })
	newer := with(func(w *world) { w.report = running(func(r *report.Report) { r.Schema = 2 }) })
	kept := with(func(w *world) { w.key = "cbdefghi" })
	person := with(func(w *world) { w.key, w.terminal, w.typed = "cbdefghi", true, "yes\n" })
	unwilling := with(func(w *world) { w.key, w.terminal, w.typed = "cbdefghi", true, "no\n" })
	inA := with(func(w *world) { w.report = running(func(r *report.Report) { r.Slot.Name = "a" }) })
	emptyB := inA
	emptyB.noSlot = fmt.Errorf("its signature partition is empty: %w", bootset.ErrNoImage)
	deafB := inA
	deafB.noSlot = errors.New("input/output error")
	bothGood := with(func(w *world) { w.list = goodPair() })
	alone := with(func(w *world) { w.list = []slots.Slot{{Name: "a"}, {Name: "b", Priority: 2, Tries: 2}} })
	markedBad := with(func(w *world) { w.list = []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b"}} })
	for _, c := range []struct {
		name   string
		world  world
		args   string
		code   int
		stdout string // is contained
		stderr string
	}{
		{"nothing", onB, "", 2, "", "sealroot status [--json]"},
		{"help", user, "help", 0, "sealroot status [--json]", ""},
		{"help_of_json", user, "help", 0, "\nAll of these but state recovery-key, state escrow, completion, version, help know --json.\n", ""},
		{"help_of_a_command", user, "try -h", 0, "", "-tries"},
		{"version", user, "version", 0, "sealroot v1\n", ""},
		{"unknown_command", onB, "explode", 2, "", `unknown command "explode"`},
		{"unknown_flag", onB, "status --loud", 2, "", "-loud"},
		{"too_many_words", onB, "rollback a b", 2, "", "takes no argument"},
		{"state_of_what", onB, "state", 2, "", "recovery-key"},

		{"status", onB, "status", 0, "slot b is on trial", ""},
		{"status_as_json", onB, "status --json", 0, `"schema": 1`, ""},
		{"status_without_root", user, "status", 4, "", "sealroot: only root may do this; use sudo\n"},
		{"status_elsewhere", elsewhere, "status", 5, "next boot", "not booted by sealroot"},
		{"status_json_elsewhere", elsewhere, "status --json", 5, `"boot": null`, "not booted by sealroot"},
		{"status_without_disk", broken, "status", 0, "no slots: no disk", ""},
		{"status_of_a_newer_report", newer, "status", 0, "schema 2", ""},

		{"commit", onB, "commit", 0, "sealroot: slot b: committed\n", ""},
		{"commit_again", inA, "commit", 0, "sealroot: slot a: is committed\n", ""},
		{"commit_without_root", user, "commit", 4, "", "only root"},
		{"commit_degraded", degraded, "commit", 3, "", "degraded"},
		{"commit_elsewhere", elsewhere, "commit", 5, "", "boot.json is missing"},
		{"commit_without_disk", broken, "commit", 1, "", "no disk"},
		{"commit_another", onB, "commit a", 2, "", "only the slot that runs"},
		{"commit_after_the_time_limit", markedBad, "commit", 3, "", "it was marked bad in this boot"},
		{"commit_as_json", onB, "commit --json", 0, `"exit_status": 0`, ""},
		{"refusal_as_json", degraded, "commit --json", 3, `"exit_status": 3`, "degraded"},
		{"commit_by_a_newer_report", newer, "commit", 3, "", "schema 2"},

		{"try", inA, "try b", 0, "sealroot: slot b: on trial from the next boot on, 3 tries", ""},
		{"try_once", inA, "try b --tries 1", 0, "1 try;", ""},
		{"try_flag_first", inA, "try --tries=15 b", 0, "15 tries", ""},
		{"try_too_often", inA, "try b --tries 16", 2, "", "16 tries"},
		{"try_what", inA, "try", 2, "", "sealroot try SLOT"},
		{"try_unknown_slot", inA, "try x", 2, "", `slot "x"`},
		{"try_running_slot", inA, "try a", 3, "", "it runs now"},
		{"try_empty_slot", emptyB, "try b", 3, "", "signature partition is empty"},
		{"try_unreadable_slot", deafB, "try b", 1, "", "input/output error"},
		{"try_without_root", user, "try a", 4, "", "only root"},

		{"mark_bad", onB, "mark-bad", 0, "sealroot: slot b: marked bad by hand: not bootable any more; the next boot is for slot a\n", ""},
		{"mark_bad_other", inA, "mark-bad b --reason noisy", 0, "slot b: marked bad by hand: noisy: not bootable any more; the next boot is for slot a", ""},
		{"mark_bad_with_controls", inA, "mark-bad b --reason no\x1b[1m\u009b2misy", 0, "by hand: no [1m 2misy: not", ""},
		{"mark_bad_committed", bothGood, "mark-bad b", 0, "slot b: marked bad by hand: last choice now; the next boot is for slot a", ""},
		{"mark_bad_by_check", onB, "mark-bad --check 10-net", 0, "slot b: health check failed: 10-net: not", ""},
		{"mark_bad_unknown_slot", onB, "mark-bad x", 2, "", `slot "x"`},
		{"mark_bad_last", alone, "mark-bad", 3, "", "no other slot could be booted"},
		{"mark_bad_last_by_force", alone, "mark-bad --force", 0, "not bootable any more", ""},
		{"mark_bad_without_root", user, "mark-bad", 4, "", "only root"},
		{"mark_bad_elsewhere", elsewhere, "mark-bad a", 5, "", "boot.json is missing"},
		{"rollback", onB, "rollback", 0, "slot b: marked bad by hand: rolled back: not bootable any more; the next boot is for slot a", ""},
		{"rollback_committed", bothGood, "rollback", 0, "last choice now; the next boot is for slot a", ""},
		{"rollback_nowhere", alone, "rollback", 3, "", "no other committed slot; another one has to prove good first: sealroot install writes"},
		{"rollback_without_root", user, "rollback", 4, "", "only root"},
		{"reboot_of_a_disk", onB, "rollback --reboot --disk x", 2, "", "not for --disk"},
		{"store_of_this_machine", onB, "commit --store gpt", 2, "", "--store is for --disk"},
		{"mark_bad_a_disk", elsewhere, "mark-bad --disk x", 2, "", "a slot has to be named"},

		{"key_to_a_person", person, "state recovery-key", 0, "cbdefghi", ""},
		{"key_to_an_unwilling_person", unwilling, "state recovery-key", 1, "cbdefghi", "still kept"},
		{"key_to_a_pipe", kept, "state recovery-key", 3, "", "not a terminal"},
		{"key_to_a_pipe_on_purpose", kept, "state recovery-key --show --yes", 0, "cbdefghi\n", ""},
		{"key_shown_already", onB, "state recovery-key", 3, "", "it was shown already"},
		{"key_degraded", degraded, "state recovery-key", 3, "", "not open"},
		{"key_without_root", user, "state recovery-key", 4, "", "only root"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, stdout, stderr, _ := c.world.run(t, strings.Fields(c.args)...)
			if code != c.code {
				t.Errorf("exit status: got %d, want %d (stderr %q)", code, c.code, stderr)
			}
			if !strings.Contains(stdout, c.stdout) || c.stdout == "" && stdout != "" {
				t.Errorf("stdout: got %q, want %q in it", stdout, c.stdout)
			}
			if !strings.Contains(stderr, c.stderr) || c.stderr == "" && stderr != "" {
				t.Errorf("stderr: got %q, want %q in it", stderr, c.stderr)
			}
		})
	}
}

func goodPair() []slots.Slot {
	return []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Successful: true}}
}

func TestRefusedWritesNothing(t *testing.T) {
	w := world{report: running(func(r *report.Report) { r.Degraded = true }), list: pair()}
	if _, _, _, f := w.run(t, "commit"); f.saves != 0 {
		t.Errorf("a refused commit wrote the slots %d times", f.saves)
	}
	w.uid = 1000
	if _, _, _, f := w.run(t, "try", "a"); f.saves != 0 {
		t.Errorf("a try without root wrote the slots %d times", f.saves)
	}
}

func TestStatusJSONIsForPrograms(t *testing.T) {
	_, stdout, _, _ := world{report: running(nil), list: pair()}.run(t, "status", "--json")
	var s struct {
		Schema int
		Boot   report.Report
		Slots  []struct{ Name, State string }
	}
	if err := json.Unmarshal([]byte(stdout), &s); err != nil {
		t.Fatal(err)
	}
	if s.Schema != 1 || s.Boot.Slot.Name != "b" || len(s.Slots) != 2 || s.Slots[1].State != "on trial" {
		t.Errorf("got %+v", s)
	}
}

// TestLockKeepsOthersOut: a second command waits, and ends with its context.
func TestLockKeepsOthersOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*lockPoll)
	defer cancel()
	if _, err := lock(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got error %v, want %v", err, context.DeadlineExceeded)
	}
	unlock()
	again, err := lock(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

// TestKernelThatIsNotKnown: a commit goes on, as on a foreign kernel, and says so.
func TestKernelThatIsNotKnown(t *testing.T) {
	for _, c := range []struct {
		fake fake
		want string
	}{{fake{loaded: "a"}, "a"}, {fake{loadedErr: errors.New("no ESP")}, slots.UnknownKernel}} {
		cmd := newCommand(verb{output: plain}, io.Discard, io.Discard, Env{})
		if got := cmd.loaded(&c.fake); got != c.want {
			t.Errorf("loaded() = %q, want %q", got, c.want)
		}
	}
}

// What is longer than it may be is not taken for what it begins with.
func TestReadSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report")
	for size, fits := range map[int]bool{maxSmall: true, maxSmall + 1: false} {
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		if text, err := readSmall(path); fits != (err == nil) || fits != (len(text) == size) {
			t.Errorf("%d bytes: %d are read, %v", size, len(text), err)
		}
	}
}
