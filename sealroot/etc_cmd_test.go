package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/report"
	"sealroot/sealroot/etc"
	"sealroot/sealroot/schematest"
	"sealroot/slots"
	"sealroot/state/layout"
)

// The commands of one machine: merged twice, with a change of the machine's between,
// and compared.
func TestEtcCommands(t *testing.T) {
	dir := t.TempDir()
	env := Env{State: filepath.Join(dir, "state"), Report: filepath.Join(dir, "boot.json"), Config: filepath.Join(dir, "config.json"), Lock: filepath.Join(dir, "lock")}
	upper := filepath.Join(env.volume(), layout.Etc)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) {
		t.Helper()
		must(os.MkdirAll(filepath.Dir(name), 0o755))
		must(os.WriteFile(name, []byte(text), 0o644))
	}
	text, err := running(nil).Encode()
	must(err)
	write(env.Report, string(text))
	write(env.Config, "{}")
	must(os.MkdirAll(upper, 0o755))
	for version, text := range map[string]string{"1": "one\n", "2": "two\n"} {
		write(filepath.Join(dir, version, "both"), text)
		write(filepath.Join(dir, version, "removed"), "r\n")
	}
	run := func(args ...string) (int, string) {
		t.Helper()
		var out bytes.Buffer
		code := Main(t.Context(), args, &out, &out, env)
		return code, out.String()
	}
	merge := func(version string, more ...string) (int, string) {
		return run(append([]string{"etc-merge", "--image", strings.Repeat(version, 64), "--volume", env.volume(), "--from", filepath.Join(dir, version)}, more...)...)
	}
	if code, out := run("etc", "diff"); code != exitRefused || !strings.Contains(out, "no boot has merged") {
		t.Errorf("etc diff of a new volume: exit status %d, %s", code, out)
	}
	if code, out := run("etc"); code != exitUsage || !strings.Contains(out, "sealroot etc knows diff") {
		t.Errorf("etc: exit status %d, %s", code, out)
	}
	if code, out := run("etc-merge", "--image", "../x", "--volume", env.volume(), "--from", filepath.Join(dir, "1")); code != exitFailed || !strings.Contains(out, "not the name of an image") {
		t.Errorf("etc-merge for ../x: exit status %d, %s", code, out)
	}
	if code, out := merge("1"); code != 0 || out != "merged for this image; 0 files differ from its own\n" {
		t.Errorf("the first merge: exit status %d, %s", code, out)
	}
	if code, out := run("etc", "diff"); code != 0 || out != "/etc is the image's\n" {
		t.Errorf("etc diff without a change: exit status %d, %s", code, out)
	}
	write(filepath.Join(upper, "both"), "mine\n")
	must(unix.Mknod(filepath.Join(upper, "removed"), unix.S_IFCHR, 0))
	must(os.MkdirAll(filepath.Join(env.volume(), "var"), 0o755))
	must(os.MkdirAll(filepath.Join(dir, "var/new"), 0o755)) // beside what it has for /etc
	const want = "1 new directories of the image are in /var now\nmerged for this image; 2 files differ from its own\nconflict: both: both changed it\nwarning: "
	if code, out := merge("2", "--trial"); code != 0 || !strings.HasPrefix(out, want) || !strings.Contains(out, "1 conflicts") {
		t.Errorf("the second merge: exit status %d, %s", code, out)
	}
	if code, out := merge("2"); code != 0 || out != "is this image's already\n" {
		t.Errorf("once more: exit status %d, %s", code, out)
	}
	write(filepath.Join(upper, "added"), "x\n")
	code, out := run("etc", "diff")
	kept := filepath.Join(env.volume(), layout.EtcKept)
	for _, want := range []string{
		"conflict  /etc/both: both changed it\n", kept + "/" + strings.Repeat("2", 64) + "/image/both\n", kept + "/" + strings.Repeat("1", 64) + "/image/both\n",
		"added     /etc/added\n", "changed   /etc/both\n", "removed   /etc/removed\n",
	} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("etc diff: exit status %d, want %q in\n%s", code, want, out)
		}
	}
	_, out = run("etc", "diff", "--json")
	schema, err := os.ReadFile("../docs/result.schema.json")
	must(err)
	for _, problem := range schematest.Check(schema, []byte(out)) {
		t.Errorf("etc diff --json: %s", problem)
	}
	var result struct{ Data etc.Diff }
	if err := json.Unmarshal([]byte(out), &result); err != nil || !slices.Equal(result.Data.Added, []string{"added"}) {
		t.Errorf("etc diff --json: %v, %s", err, out)
	}
	// The trial failed.
	if code, out := run("etc-merge", "--put-back", "--image", strings.Repeat("3", 64), "--volume", env.volume(), "--from", filepath.Join(dir, "1")); code != 0 || !strings.Contains(out, "warning: ") || !strings.HasSuffix(out, "is not merged for this image\n") {
		t.Errorf("nothing but a put-back: exit status %d, %s", code, out)
	}
	merge("2", "--trial")
	if code, out := merge("1"); code != 0 || !strings.Contains(out, "warning: ") || !strings.Contains(out, "put aside") {
		t.Errorf("after the trial: exit status %d, %s", code, out)
	}
	if code, out := run("etc", "diff"); code != 0 || !strings.Contains(out, kept+"/"+strings.Repeat("2", 64)+"/failed\n") {
		t.Errorf("etc diff after the trial: exit status %d, %s", code, out)
	}
}

// Where /etc is not the volume's in this boot, what lies there is no difference of it.
func TestEtcDiffGoesByTheMode(t *testing.T) {
	for _, tt := range []struct {
		config string
		change func(*report.Report)
		code   int
		says   string
	}{
		{`{}`, nil, 0, ""},
		{`{"etc":"overlay"}`, nil, 0, ""},
		{`{"etc":"volatile"}`, nil, exitRefused, "etc is volatile in this boot's"},
		{`{"etc":"read-only"}`, nil, exitRefused, "etc is read-only in this boot's"},
		{`{}`, func(r *report.Report) { r.Degraded = true }, exitRefused, "this boot is degraded"},
		{`{"state":{"create":"none"}}`, nil, exitRefused, "state.create is none"},
		{`{}`, func(r *report.Report) { r.EtcInMemory = true }, 0, "what is changed in this boot is in memory, and not listed"},
		{``, nil, exitFailed, "configuration of this boot"},
	} {
		dir := t.TempDir()
		env := Env{State: filepath.Join(dir, "state"), Report: filepath.Join(dir, "boot.json"), Config: filepath.Join(dir, "config.json"), Lock: filepath.Join(dir, "lock")}
		text, err := running(tt.change).Encode()
		if err := errors.Join(err, os.WriteFile(env.Report, text, 0o644), os.WriteFile(env.Config, []byte(tt.config), 0o644), os.MkdirAll(env.volume(), 0o755)); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if code := Main(t.Context(), []string{"etc-merge", "--image", strings.Repeat("1", 64), "--volume", env.volume(), "--from", t.TempDir()}, &out, &out, env); code != 0 {
			t.Fatal(out.String())
		}
		out.Reset()
		if code := Main(t.Context(), []string{"etc", "diff"}, &out, &out, env); code != tt.code || !strings.Contains(out.String(), tt.says) || strings.Contains(out.String(), "/etc is the image's") != (code == 0) {
			t.Errorf("%s: exit status %d, %s", tt.config, code, out.String())
		}
	}
}

// A boot that is on trial no more, and a commit, take the mark of the trial away.
func TestEtcTrialEnds(t *testing.T) {
	image := strings.Repeat("1", 64)
	for _, tt := range []struct {
		name, args          string
		trial, layers, ends bool
		merged              string // the image that PID 1 has merged /etc for
		good                bool   // PID 1 has found the slot committed
	}{
		{"commit", "commit", true, false, true, image, false},
		{"commit_of_layers", "commit", false, true, true, image, true},
		{"commit_of_a_last_resort", "commit", false, false, true, image, false},
		{"commit_without_a_merge", "commit", true, false, false, "", false},
		{"record_of_a_trial", "record", true, false, false, image, false},
		{"record_of_layers_on_trial", "record", false, true, false, image, true},
		{"record_of_a_committed_slot", "record", false, false, true, image, true},
		{"record_of_a_last_resort_that_nobody_committed", "record", false, false, false, image, false},
		{"record_of_a_slot_that_runs_on_the_trial's", "record", false, false, false, "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var mark string
			w := world{list: pair(), report: running(func(r *report.Report) {
				r.Slot.Trial, r.Slot.Successful, r.LayerTrial, r.EtcImage = tt.trial, tt.good, tt.layers, tt.merged
			})}
			w.before = func(env Env) {
				from := t.TempDir()
				if err := os.MkdirAll(env.volume(), 0o755); err != nil {
					t.Fatal(err)
				}
				var out bytes.Buffer
				if code := Main(t.Context(), []string{"etc-merge", "--image", image, "--trial", "--volume", env.volume(), "--from", from}, &out, &out, env); code != 0 {
					t.Fatal(out.String())
				}
				mark = filepath.Join(env.volume(), layout.EtcKept, image, "merge-1/trial")
				if _, err := os.Stat(mark); err != nil {
					t.Fatal(err)
				}
			}
			if code, out, errs, _ := w.run(t, tt.args); code != 0 {
				t.Errorf("exit status %d, %s%s", code, out, errs)
			}
			if _, err := os.Stat(mark); (err != nil) != tt.ends {
				t.Errorf("the mark: %v, want it gone: %v", err, tt.ends)
			}
		})
	}
}

// A trial whose /etc is in memory is not committed, for nothing that is changed there would
// be left; a committed slot stays so, and a trial's time limit tells why there was no commit.
func TestEtcInMemoryIsNotCommitted(t *testing.T) {
	good := []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Successful: true}}
	for _, tt := range []struct {
		name, args string
		list       []slots.Slot
		memory     bool
		code       int
	}{
		{"commit", "commit", pair(), true, exitRefused},
		{"check", "check --commit", pair(), true, exitRefused},
		{"check_alone", "check", pair(), true, 0},
		{"committed_slot", "commit", good, true, 0},
		{"not_in_memory", "commit", pair(), false, 0},
	} {
		w := world{list: tt.list, trial: true, report: running(func(r *report.Report) {
			r.EtcInMemory, r.Slot.Trial = tt.memory, len(tt.list) == 2 && !tt.list[1].Successful
		})}
		code, out, errs, o := w.outcome(t, strings.Fields(tt.args)...)
		if code != tt.code || o.reboots > 0 || (code == exitRefused) != strings.Contains(errs, "in memory") {
			t.Errorf("%s: exit status %d, %d restarts, want %d and none: %s%s", tt.name, code, o.reboots, tt.code, out, errs)
		}
		if b, _ := slots.Find(o.list, "b"); b.Priority != 2 || code == exitRefused && b.Successful {
			t.Errorf("%s: %s", tt.name, b)
		}
		why, _ := os.ReadFile(o.env.Refused)
		if strings.Contains(string(why), "in memory") != (code == exitRefused) {
			t.Errorf("%s: kept for the time limit: %q", tt.name, why)
		}
	}
}
