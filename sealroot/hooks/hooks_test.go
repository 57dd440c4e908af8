package hooks

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"sealroot/sealroot/checks"
	"sealroot/state/layout"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var change = Change{Event: PreCommit, From: System{"a", "1", "2026.1"}, To: System{"b", "2", "2026.2"}}

// hook makes one in a folder of hooks; the tests of this package run as root.
func hook(t *testing.T, dir, name, body string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, name)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755))
	must(t, os.Chmod(path, mode))
	return path
}

// Hooks run in the order of their names; the first that fails ends it before a commit,
// and not after a rollback. One that others than root could have changed is not run.
func TestRun(t *testing.T) {
	for _, tt := range []struct {
		name   string
		hooks  map[string]string
		change func(t *testing.T, dir string)
		said   string // by those that ran, before a commit
		until  string // error of Until; "" none
		is     []error
		failed []string // of All
	}{
		{name: "none"},
		{name: "good", hooks: map[string]string{"20-b": "echo two", "10-a": "echo one"}, said: "10-a: one|20-b: two"},
		{name: "one_fails", hooks: map[string]string{"10-a": "echo one", "20-b": "echo no room; exit 3", "30-c": "echo three"}, said: "10-a: one|20-b: no room",
			until: "pre-commit hook failed: 20-b: exit status 3: no room", is: []error{ErrFailed}, failed: []string{"20-b: exit status 3: no room"}},
		{name: "two_fail", hooks: map[string]string{"10-a": "exit 1", "20-b": "exit 2"},
			until: "pre-commit hook failed: 10-a: exit status 1", is: []error{ErrFailed}, failed: []string{"10-a: exit status 1", "20-b: exit status 2"}},
		{name: "too_slow", hooks: map[string]string{"10-a": "sleep 60"}, until: "10-a: time limit of 300ms", is: []error{ErrFailed, checks.ErrTimeLimit}, failed: []string{"10-a: time limit of 300ms"}},
		{name: "environment", hooks: map[string]string{"10-a": `echo "$SEALROOT_EVENT $SEALROOT_HOOK $SEALROOT_FROM_SLOT $SEALROOT_FROM_VERSION $SEALROOT_SLOT $SEALROOT_VERSION $PWD"`},
			said: "10-a: pre-commit 10-a a 2026.1 b 2026.2 /"},
		{name: "others_may_write_it", hooks: map[string]string{"10-a": "echo one"}, change: func(t *testing.T, dir string) { must(t, os.Chmod(filepath.Join(dir, "10-a"), 0o775)) },
			until: "others than root may write", is: []error{ErrFailed, ErrUnsafe}},
		{name: "others_own_it", hooks: map[string]string{"10-a": "echo one"}, change: func(t *testing.T, dir string) { must(t, os.Chown(filepath.Join(dir, "10-a"), 5, 0)) },
			until: "does not belong to root", is: []error{ErrFailed, ErrUnsafe}},
		{name: "others_may_add_one", hooks: map[string]string{"10-a": "echo one"}, change: func(t *testing.T, dir string) { must(t, os.Chmod(dir, 0o777)) },
			until: "others than root may write", is: []error{ErrFailed, ErrUnsafe}},
		{name: "a_link_leads_to_such_a_file", change: func(t *testing.T, dir string) {
			must(t, os.MkdirAll(dir, 0o755))
			must(t, os.Symlink(hook(t, t.TempDir(), "x", "echo one", 0o757), filepath.Join(dir, "10-a")))
		}, until: "others than root may write", is: []error{ErrFailed, ErrUnsafe}},
		{name: "a_link_leads_to_a_folder_for_everybody", change: func(t *testing.T, dir string) {
			must(t, os.MkdirAll(dir, 0o755))
			open := t.TempDir()
			must(t, os.Symlink(hook(t, open, "x", "echo one", 0o755), filepath.Join(dir, "10-a")))
			must(t, os.Chmod(open, 0o777))
		}, until: "others than root may write", is: []error{ErrFailed, ErrUnsafe}},
		{name: "a_link_leads_to_a_good_one", change: func(t *testing.T, dir string) {
			must(t, os.MkdirAll(dir, 0o755))
			must(t, os.Symlink(hook(t, t.TempDir(), "x", "echo one", 0o755), filepath.Join(dir, "10-a")))
		}, said: "10-a: one"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			dir := filepath.Join(root, "pre-commit.d")
			for name, body := range tt.hooks {
				hook(t, dir, name, body, 0o755)
			}
			if tt.change != nil {
				tt.change(t, dir)
			}
			var said []string
			r := Runner{Dir: root, Limit: time.Minute, Say: func(name, line string) { said = append(said, name+": "+line) }, Skip: func(path, why string) { t.Errorf("%s: %s", path, why) }}
			if tt.name == "too_slow" {
				r.Limit = 300 * time.Millisecond
			}
			err := r.Until(t.Context(), change)
			if (err != nil) != (tt.until != "") || err != nil && !strings.Contains(err.Error(), tt.until) {
				t.Errorf("until one fails: %v, want %q", err, tt.until)
			}
			for _, is := range tt.is {
				if !errors.Is(err, is) {
					t.Errorf("%v is not %v", err, is)
				}
			}
			if got := strings.Join(said, "|"); got != tt.said {
				t.Errorf("said %q, want %q", got, tt.said)
			}
			failed, err := r.All(t.Context(), change)
			if tt.failed != nil && !reflect.DeepEqual(failed, tt.failed) || (len(failed) > 0) != (tt.until != "") || err != nil {
				t.Errorf("all: %q, %v, want %q", failed, err, tt.failed)
			}
			if failed, err := r.All(t.Context(), Change{Event: PostRollback}); len(failed) > 0 || err != nil {
				t.Errorf("of another event: %q, %v", failed, err)
			}
		})
	}
}

// That the machine goes down is no failure of a hook; what is no hook is told of.
func TestRunEnds(t *testing.T) {
	root := t.TempDir()
	hook(t, root, "pre-commit.d/10-a", "sleep 60", 0o755)
	hook(t, root, "pre-commit.d/10-a.sh", "exit 1", 0o755)
	var skipped []string
	r := Runner{Dir: root, Limit: time.Minute, Skip: func(path, why string) { skipped = append(skipped, filepath.Base(path)+": "+why) }}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := r.Until(ctx, change); err == nil || errors.Is(err, ErrFailed) {
		t.Errorf("got %v, want an error that is no hook's", err)
	}
	if len(skipped) != 1 || !strings.HasPrefix(skipped[0], "10-a.sh: its name") {
		t.Errorf("skipped %q", skipped)
	}
}

func TestRolledBack(t *testing.T) {
	for _, tt := range []struct {
		name  string
		last  System
		now   System
		trial bool
		want  bool
	}{
		{"never_noted", System{}, System{"a", "1", ""}, false, false},
		{"the_same", System{"a", "1", ""}, System{"a", "1", ""}, false, false},
		{"update_on_trial", System{"a", "1", ""}, System{"b", "2", ""}, true, false},
		{"rolled_back", System{"b", "2", ""}, System{"a", "1", ""}, false, true},
		{"the_same_image_in_the_other_slot", System{"b", "1", ""}, System{"a", "1", ""}, false, false},
		{"written_by_hand", System{"a", "1", ""}, System{"a", "2", ""}, false, false},
	} {
		if got := (Ran{System: tt.last}).RolledBack(tt.now, tt.trial); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestRecord(t *testing.T) {
	volume := t.TempDir()
	if r, err := Last(volume); err != nil || r.RootHash != "" {
		t.Errorf("nothing is noted: %+v, %v", r, err)
	}
	want := Ran{System: change.To, From: change.From, Failed: []string{"10-a: exit status 1"}}
	for range 2 {
		must(t, want.Keep(volume))
		if r, err := Last(volume); err != nil || !reflect.DeepEqual(r, want) {
			t.Errorf("read %+v, %v, want %+v", r, err, want)
		}
	}
	many := want
	for range 100 {
		many.Failed = append(many.Failed, strings.Repeat("x", 4096))
	}
	must(t, many.Keep(volume))
	if r, err := Last(volume); err != nil || r.System != want.System || len(r.Failed) != 1 {
		t.Errorf("with too much in it: %+v, %v", r, err)
	}
	path := filepath.Join(volume, layout.LastRan)
	much := want
	much.From.Version = strings.Repeat("x", maxRan)
	for name, bad := range map[string]Ran{"too long": much, "a way out": {System: System{"a", "1", "../x"}}, "no root hash": {System: System{Slot: "a"}}} {
		if err := errors.Join(bad.Keep(volume), bad.Prepare(volume)); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v, want ErrRecord", name, err)
		}
	}
	for version, want := range map[string]string{"2026.1~rc1+2": "2026.1~rc1+2", "1/../2 b\n": "1_.._2_b_", "..": "_", "": ""} {
		if got := PlainVersion(version); got != want || !(System{Version: got}).plain() {
			t.Errorf("%q is told as %q, want %q", version, got, want)
		}
	}
	for _, bad := range []string{"", "{", "{}", `{"slot":"a"}`, `[]`, `{"slot":"a/b","root_hash":"1"}`, `{"slot":"a","root_hash":"1","from":{"version":".."}}`, `{"slot":"a\n","root_hash":"1"}`} {
		must(t, os.WriteFile(path, []byte(bad), 0o600))
		if r, err := Last(volume); !errors.Is(err, ErrRecord) || r.RootHash != "" {
			t.Errorf("%q: %+v, %v, want ErrRecord", bad, r, err)
		}
	}
	must(t, os.Remove(path))
	must(t, os.Symlink("/etc/passwd", path))
	if _, err := Last(volume); err == nil {
		t.Error("a link was followed")
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"slot":"a","root_hash":"1","version":"2","from":{"slot":"b"},"failed":["x"]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseRan(text)
		if err != nil && !reflect.DeepEqual(r, Ran{}) || err == nil && r.RootHash == "" {
			t.Errorf("%q: %+v, %v", text, r, err)
		}
	})
}
