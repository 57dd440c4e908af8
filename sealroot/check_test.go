package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/boots"
	"sealroot/sealroot/schematest"
	"sealroot/slots"
	"sealroot/slots/bootlog"
)

// TestCheck: what a failed check does depends on the slot that runs, as the
// store has it when the check ends.
func TestCheck(t *testing.T) {
	const bad = "echo no answer; exit 3"
	onlyTrial := []slots.Slot{{Name: "a"}, {Name: "b", Priority: 2, Tries: 2}}
	spent := []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2}}
	for _, c := range []struct {
		name    string
		list    []slots.Slot
		checks  map[string]string
		args    string
		code    int
		stdout  string
		state   slots.State // of slot b afterwards
		reboots int
		reason  string // of slot b's failure on record
		eager   string
	}{
		{"no_checks", pair(), nil, "check", 0, "0 checks: all good", slots.Trial, 0, "", ""},
		{"good", pair(), map[string]string{"10-net": "echo fine"}, "check", 0, "10-net: fine\nsealroot: 1 check: all good", slots.Trial, 0, "", ""},
		{"good_and_commit", pair(), map[string]string{"10-net": ""}, "check --commit", 0, "slot b: committed", slots.Committed, 0, "", ""},
		{"not_a_check", pair(), map[string]string{"net.sh": bad}, "check", 0, "net.sh is not run: its name", slots.Trial, 0, "", ""},
		{"bad_on_trial", pair(), map[string]string{"10-net": "", "20-db": bad}, "check", 6,
			"slot b: health check failed: 20-db: exit status 3: no answer: not bootable any more; the next boot is for slot a", slots.Unbootable, 1, "20-db: exit status 3: no answer", ""},
		{"bad_and_commit", pair(), map[string]string{"20-db": bad}, "check --commit", 6, "not bootable any more", slots.Unbootable, 1, "20-db: exit status 3: no answer", ""},
		{"bad_without_reboot", pair(), map[string]string{"20-db": bad}, "check --no-reboot", 6, "not bootable any more", slots.Unbootable, 0, "20-db: exit status 3: no answer", ""},
		{"bad_with_the_last_try", spent, map[string]string{"20-db": bad}, "check", 6, "not bootable any more", slots.Unbootable, 1, "20-db: exit status 3: no answer", ""},
		{"too_slow", pair(), map[string]string{"20-db": "sleep 60"}, "check --timeout 200ms", 6, "time limit of 200ms", slots.Unbootable, 1, "20-db: time limit of 200ms", ""},
		{"bad_and_nowhere_to_go", onlyTrial, map[string]string{"20-db": bad}, "check", 6, "no other slot could be booted instead, the machine stays", slots.Trial, 0, "", ""},
		{"bad_when_committed", goodPair(), map[string]string{"20-db": bad}, "check", 6, "slot b is committed and stays", slots.Committed, 0, "", ""},
		{"bad_when_committed_and_lower", goodPair(), map[string]string{"20-db": bad}, "check --lower", 6, "last choice now; the next boot is for slot a", slots.Committed, 0, "20-db: exit status 3: no answer", ""},
		{"unit_failed", pair(), map[string]string{"10-net": "exit 1"}, "check --failed my-app.service", 6,
			"health check failed: my-app.service: reported by another program: not bootable", slots.Unbootable, 1, "my-app.service: reported by another program", ""},
		{"image", pair(), map[string]string{"10-net": ""}, "check --commit", 0, "image: 1 MiB read", slots.Committed, 0, "", "image"},
		{"image_after_a_bad_check", pair(), map[string]string{"20-db": bad}, "check", 6, "not bootable any more", slots.Unbootable, 1, "20-db: exit status 3: no answer", "image"},
		// read(2) of this file at 0 fails with EIO, as dm-verity does
		{"bad_image", pair(), nil, "check --commit", 6, "not bootable any more; the next boot is for slot a", slots.Unbootable, 1,
			"image: a block does not match the hash tree, or cannot be read: at byte 0 of /proc/self/mem", "/proc/self/mem"},
		{"no_image", pair(), nil, "check --commit", 1, "", slots.Trial, 0, "", "/nonexistent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.eager == "image" {
				c.eager = filepath.Join(t.TempDir(), "image")
				if err := os.WriteFile(c.eager, make([]byte, 1<<20), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			w := world{report: running(nil), list: c.list, checks: c.checks, eager: c.eager}
			code, stdout, stderr, o := w.outcome(t, strings.Fields(c.args)...)
			if code != c.code || !strings.Contains(stdout, c.stdout) {
				t.Errorf("exit status %d, %q, %q; want %d, %q", code, stdout, stderr, c.code, c.stdout)
			}
			if s, _ := slots.Find(o.list, "b"); s.State() != c.state {
				t.Errorf("got %s, want it %s", s, c.state)
			}
			if o.reboots != c.reboots {
				t.Errorf("%d restarts, want %d", o.reboots, c.reboots)
			}
			if f, ok := o.log.Failures["b"]; ok != (c.reason != "") || ok && (f.Reason != slots.HealthCheck || f.Detail != c.reason) {
				t.Errorf("on record: %+v, want %q", f, c.reason)
			}
		})
	}
}

// With eager_check the layers of the image are read too, and those that a machine has added,
// or that a boot goes on without, are not held against the slot. An error that says nothing
// of the content is no verdict.
func TestCheckLayers(t *testing.T) {
	dir := t.TempDir()
	whole, cfg := filepath.Join(dir, "whole"), filepath.Join(dir, "config.json")
	text, err := json.Marshal(config.Config{Layers: []config.Layer{{Name: "low"}, {Name: "mid", OnFailure: config.LayerSkip}, {Name: "off"}, {Name: "top", OnFailure: config.LayerStop}}})
	if err := errors.Join(err, os.WriteFile(whole, make([]byte, 1<<20), 0o600), os.WriteFile(cfg, text, 0o600)); err != nil {
		t.Fatal(err)
	}
	booted := running(func(r *report.Report) {
		r.Layers = []report.Layer{
			{Name: "low", RootHash: "aa"}, {Name: "off", RootHash: "bb", LeftOut: report.LayerOff}, {Name: "dir"}, {Name: "mid", RootHash: "ee"},
			{Name: "top", RootHash: "cc"}, {Name: "extra", RootHash: "dd", Source: report.LayerAdded},
		}
	})
	const (
		corrupt = "/proc/self/mem" // see TestCheck
		block   = "image: a block does not match the hash tree, or cannot be read: at byte 0 of " + corrupt + ", layer "
	)
	for _, c := range []struct {
		name, bad string // the layer that cannot be read
		device    string // where it lies, "" for nowhere
		config    string
		code      int
		says      string
		state     slots.State
		reason    string
	}{
		{"good", "", "", cfg, exitOK, "image: 4 MiB read and compared with the hash tree, with layer low, with layer mid, with layer top", slots.Committed, ""},
		{"good_without_configuration", "", "", "/nonexistent", exitOK, "image: 4 MiB", slots.Committed, ""},
		{"stop", "top", corrupt, cfg, exitBad, "not bootable any more", slots.Unbootable, block + "top"},
		{"stop_by_default", "low", corrupt, cfg, exitBad, "not bootable any more", slots.Unbootable, block + "low"},
		{"skip", "mid", corrupt, cfg, exitOK, "warning: " + block + "mid; a boot goes on without it", slots.Committed, ""},
		{"after_skip", "mid", corrupt, cfg, exitOK, "image: 3 MiB read and compared with the hash tree, with layer low, with layer top", slots.Committed, ""},
		{"stop_has_no_device", "top", "", cfg, exitFailed, "layer top: no device", slots.Trial, ""},
		{"skip_has_no_device", "mid", "", cfg, exitOK, "warning: layer mid: no device; a boot goes on without it", slots.Committed, ""},
		{"skip_cannot_be_opened", "mid", "/nonexistent", cfg, exitOK, "warning: layer mid: open /nonexistent", slots.Committed, ""},
		{"bad_without_configuration", "mid", corrupt, "/nonexistent", exitFailed, "cannot tell whether layer mid counts (health check failed: " + block + "mid)", slots.Trial, ""},
		{"added", "extra", corrupt, cfg, exitOK, "image: 4 MiB", slots.Committed, ""},
		{"off", "off", corrupt, cfg, exitOK, "image: 4 MiB", slots.Committed, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := world{report: booted, list: pair(), eager: whole, adapt: func(env *Env) {
				env.Config = c.config
				env.Layer = func(name string) (string, error) {
					switch {
					case name != c.bad:
						return whole, nil
					case c.device == "":
						return "", errors.New("no device")
					}
					return c.device, nil
				}
			}}
			code, stdout, stderr, o := w.outcome(t, "check", "--commit")
			if f := o.log.Failures["b"]; code != c.code || !strings.Contains(stdout+stderr, c.says) || f.Detail != c.reason {
				t.Errorf("exit status %d, %q, %q, on record %+v; want %d, %q, %q", code, stdout, stderr, f, c.code, c.says, c.reason)
			}
			if s, _ := slots.Find(o.list, "b"); s.State() != c.state {
				t.Errorf("slot b is %s, want %s", s.State(), c.state)
			}
		})
	}
}

func TestDeadline(t *testing.T) {
	onTrial := running(func(r *report.Report) { r.CommitDeadlineSeconds = 600 })
	for _, c := range []struct {
		name    string
		list    []slots.Slot
		trial   bool
		stdout  string
		state   slots.State
		reboots int
	}{
		{"not_committed", pair(), true, "slot b: no commit: within 10m0s of the boot: not bootable any more; the next boot is for slot a", slots.Unbootable, 1},
		{"committed_meanwhile", goodPair(), true, "slot b was committed in time", slots.Committed, 0},
		{"not_on_trial", pair(), false, "not on trial in this boot", slots.Trial, 0},
		{"nowhere_to_go", []slots.Slot{{Name: "a"}, {Name: "b", Priority: 2, Tries: 2}}, true, "the machine stays as it is", slots.Trial, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, stdout, stderr, o := world{report: onTrial, list: c.list, trial: c.trial}.outcome(t, "deadline")
			if code != 0 || !strings.Contains(stdout, c.stdout) {
				t.Errorf("exit status %d, %q, %q; want 0, %q", code, stdout, stderr, c.stdout)
			}
			if s, _ := slots.Find(o.list, "b"); s.State() != c.state || o.reboots != c.reboots {
				t.Errorf("got %s and %d restarts, want it %s and %d", s, o.reboots, c.state, c.reboots)
			}
		})
	}
}

// TestRestartKeepsTheReport: a command that ends the boot may come before the
// unit that keeps its report.
func TestRestartKeepsTheReport(t *testing.T) {
	earlier := []byte(`{"schema":1,"boot_id":"00000000-0000-4000-8000-000000000000","ended":"device missing"}`)
	w := world{report: running(nil), list: pair(), trial: true, checks: map[string]string{"10-net": "exit 1"}, log: bootlog.Record{Reports: []json.RawMessage{earlier}}}
	for _, args := range []string{"deadline", "check", "check --no-reboot", "mark-bad --reboot", "rollback --reboot"} {
		_, _, stderr, o := w.outcome(t, strings.Fields(args)...)
		kept, err := boots.List(o.env.State)
		if err != nil || len(kept) != 2*o.reboots || o.reboots > 0 && (string(kept[0].Text) != string(earlier) || kept[1].BootID != thisBoot) {
			t.Errorf("%s: %d restarts, kept %v, %v, %s; want the earlier boot and this one when it restarts", args, o.reboots, kept, err, stderr)
		}
	}
	w.before = func(env Env) {
		if err := os.WriteFile(filepath.Join(env.State, ".sealroot"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if code, stdout, _, o := w.outcome(t, "deadline"); code != exitOK || o.reboots != 1 || !strings.Contains(stdout, "the report of this boot is not kept") {
		t.Errorf("a report that cannot be kept: exit status %d, %d restarts, %q; want 0, a restart, and word of it", code, o.reboots, stdout)
	}
}

// On trial the deadline lies in systemd's folder, although another init runs.
func TestRestartProgram(t *testing.T) {
	run := t.TempDir()
	if err := os.MkdirAll(filepath.Join(run, "systemd/system/sealroot-deadline.timer.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if cmd := restartCommand(t.Context(), run); !slices.Equal(cmd.Args, []string{"reboot"}) {
		t.Errorf("another init: %q, want reboot", cmd.Args)
	}
	if err := os.WriteFile(filepath.Join(run, "systemd/private"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := restartCommand(t.Context(), run)
	if cmd.Args[0] != "systemctl" || !slices.Contains(cmd.Args, "reboot") {
		t.Errorf("systemd: %q, want systemctl reboot", cmd.Args)
	}
	// else newer ones start a kernel that is loaded, or the tree in /run/nextroot
	for _, want := range []string{"SYSTEMCTL_SKIP_AUTO_KEXEC=1", "SYSTEMCTL_SKIP_AUTO_SOFT_REBOOT=1"} {
		if !slices.Contains(cmd.Environ(), want) {
			t.Errorf("systemctl reboot without %s", want)
		}
	}
}

func TestRebootAfterMarkBad(t *testing.T) {
	for _, args := range []string{"mark-bad --reboot", "rollback --reboot"} {
		if code, _, _, o := (world{report: running(nil), list: pair()}).outcome(t, strings.Fields(args)...); code != 0 || o.reboots != 1 {
			t.Errorf("%s: exit status %d, %d restarts; want 0 and 1", args, code, o.reboots)
		}
	}
	// what was refused restarts nothing
	w := world{report: running(nil), list: []slots.Slot{{Name: "b", Priority: 2, Tries: 2}}}
	if code, _, _, o := w.outcome(t, "mark-bad", "--reboot"); code != exitRefused || o.reboots != 0 {
		t.Errorf("refused: exit status %d, %d restarts; want %d and 0", code, o.reboots, exitRefused)
	}
}

func TestRecord(t *testing.T) {
	earlier := []byte(`{"schema":1,"boot_id":"00000000-0000-4000-8000-000000000000","ended":"device missing"}`)
	rubbish := []byte(`{"schema":1}`)
	w := world{report: running(nil), list: pair(), log: bootlog.Record{Reports: []json.RawMessage{earlier, rubbish}}}
	code, stdout, stderr, o := w.outcome(t, "record")
	if code != 0 || !strings.Contains(stdout, "and 1 of earlier ones") {
		t.Fatalf("exit status %d, %q, %q", code, stdout, stderr)
	}
	kept, err := boots.List(o.env.State)
	if err != nil || len(kept) != 2 || string(kept[0].Text) != string(earlier) || kept[1].BootID != thisBoot {
		t.Errorf("kept %v, %v; want the earlier boot and this one", kept, err)
	}
	if len(o.log.Reports) != 1 || string(o.log.Reports[0]) != string(rubbish) || !o.closed {
		t.Errorf("the boot log keeps %s, want only what could not be taken", o.log.Reports)
	}
}

// TestRecordOfALoggedBoot: of a boot that PID 1 left a report of in the boot log, for it
// left out a layer, the whole one is kept, once.
func TestRecordOfALoggedBoot(t *testing.T) {
	logged := json.RawMessage(`{"schema":1,"boot_id":"` + thisBoot + `","name":"logged"}`)
	w := world{report: running(nil), list: pair(), log: bootlog.Record{Reports: []json.RawMessage{logged}}}
	code, stdout, stderr, o := w.outcome(t, "record")
	if code != 0 || !strings.Contains(stdout, "and 0 of earlier ones") || len(o.log.Reports) != 0 {
		t.Errorf("exit status %d, %q, %q, the boot log keeps %s", code, stdout, stderr, o.log.Reports)
	}
	kept, err := boots.List(o.env.State)
	if err != nil || len(kept) != 1 || kept[0].BootID != thisBoot || strings.Contains(string(kept[0].Text), "logged") {
		t.Errorf("kept %v, %v; want this boot's whole report", kept, err)
	}
}

// TestRecordWithoutState: a report that cannot be kept stays in the boot log.
func TestRecordWithoutState(t *testing.T) {
	earlier := json.RawMessage(`{"boot_id":"00000000-0000-4000-8000-000000000000"}`)
	w := world{report: running(nil), list: pair(), log: bootlog.Record{Reports: []json.RawMessage{earlier}}}
	w.before = func(env Env) {
		if err := os.WriteFile(filepath.Join(env.State, ".sealroot"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if code, _, stderr, o := w.outcome(t, "record"); code != exitFailed || len(o.log.Reports) != 1 {
		t.Errorf("exit status %d, %q, the boot log keeps %d; want 1 and the report kept", code, stderr, len(o.log.Reports))
	}
	w.before = func(env Env) { os.RemoveAll(env.State) }
	if code, stdout, stderr, o := w.outcome(t, "record"); code != exitOK || len(o.log.Reports) != 1 || !strings.Contains(stdout, "no state partition") {
		t.Errorf("exit status %d, %q, %q, the boot log keeps %d; want 0 and the report kept", code, stdout, stderr, len(o.log.Reports))
	}
}

// TestRecordInMemory: a state that ends with the boot takes no report from the boot log,
// neither by record nor before a restart; only that of the partition counts.
func TestRecordInMemory(t *testing.T) {
	earlier := json.RawMessage(`{"schema":1,"boot_id":"00000000-0000-4000-8000-000000000000","ended":"device missing"}`)
	for _, c := range []struct {
		name   string
		mounts []report.Mount
		kept   int // reports that the boot log has afterwards
	}{
		{"no_partition", []report.Mount{{What: "state", Where: "/state", Type: "tmpfs"}, {What: "degraded", Where: "/state/encrypted", Type: "tmpfs"}}, 1},
		{"degraded_beside_the_partition", []report.Mount{{What: "/dev/vda9", Where: "/state", Type: "ext4"}, {What: "degraded", Where: "/state/encrypted", Type: "tmpfs"}}, 0},
		{"the_partition", []report.Mount{{What: "/dev/vda9", Where: "/state", Type: "ext4"}}, 0},
	} {
		for _, args := range []string{"record", "mark-bad --reboot"} {
			w := world{report: running(func(r *report.Report) { r.Mounts = c.mounts }), list: pair(), log: bootlog.Record{Reports: []json.RawMessage{earlier}}}
			code, stdout, stderr, o := w.outcome(t, strings.Fields(args)...)
			if code != 0 || len(o.log.Reports) != c.kept {
				t.Errorf("%s, %s: exit status %d, %q, %q, the boot log keeps %d reports, want %d", c.name, args, code, stdout, stderr, len(o.log.Reports), c.kept)
			}
			if args == "record" && strings.Contains(stdout, "in memory") != (c.kept > 0) {
				t.Errorf("%s: %q", c.name, stdout)
			}
		}
	}
}

// TestRecordBesideABrokenLog: this boot is kept all the same.
func TestRecordBesideABrokenLog(t *testing.T) {
	code, _, _, o := world{report: running(nil), err: bootlog.ErrUnreadable}.outcome(t, "record")
	kept, err := boots.List(o.env.State)
	if code != exitFailed || err != nil || len(kept) != 1 {
		t.Errorf("exit status %d, kept %v, %v; want 1 and this boot", code, kept, err)
	}
}

// TestJSON holds what --json prints to the schemas in docs/.
func TestJSON(t *testing.T) {
	schema := func(name string) []byte {
		t.Helper()
		text, err := os.ReadFile("../docs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	result, status := schema("result.schema.json"), schema("status.schema.json")
	on := world{report: running(nil), list: pair(), checks: map[string]string{"10-net": "exit 1"}}
	for _, c := range []struct {
		name   string
		world  world
		args   string
		schema []byte
		code   int
	}{
		{"status", on, "status --json", status, 0},
		{"status_elsewhere", world{}, "status --json", status, 5},
		{"commit", on, "commit --json", result, 0},
		{"commit_refused", world{report: running(func(r *report.Report) { r.Degraded = true }), list: pair()}, "commit --json", result, 3},
		{"commit_without_root", world{uid: 7}, "commit --json", result, 4},
		{"try", on, "try a --json", result, 3},
		{"mark_bad", on, "mark-bad --json", result, 0},
		{"rollback", on, "rollback --json", result, 0},
		{"rollback_elsewhere", world{}, "rollback --json", result, 5},
		{"check", on, "check --json", result, 6},
		{"deadline", on, "deadline --json", result, 0},
		{"record", on, "record --json", result, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, stdout, _, _ := c.world.outcome(t, strings.Fields(c.args)...)
			if code != c.code {
				t.Errorf("exit status %d, want %d", code, c.code)
			}
			for _, problem := range schematest.Check(c.schema, []byte(stdout)) {
				t.Error(problem)
			}
			var r struct {
				Exit *int `json:"exit_status"`
				OK   bool
			}
			if err := json.Unmarshal([]byte(stdout), &r); err != nil || r.Exit != nil && (*r.Exit != code || r.OK != (code == 0)) {
				t.Errorf("%v; exit_status and ok do not tell the exit status %d:\n%s", err, code, stdout)
			}
		})
	}
}
