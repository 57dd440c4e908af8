package child

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// listRoot makes this program list its root directory.
const listRoot = "list-root"

func TestMain(m *testing.M) {
	if len(os.Args) != 2 || os.Args[1] != listRoot {
		os.Exit(m.Run())
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		os.Exit(1)
	}
	for _, e := range entries {
		os.Stdout.WriteString(e.Name() + "\n")
	}
}

func TestRun(t *testing.T) {
	for _, tt := range []struct {
		name, script, output string
		status               int
	}{
		{"clean", "echo out; echo err >&2", "out\nerr\n", 0},
		{"status", "exit 4", "", 4},
		{"signal", "kill -9 $$", "", 137},
		{"nothing_to_read_and_no_environment", "cat; env | grep -v -e PWD -e SHLVL -e ^_=", "", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Run(t.Context(), "/", "/bin/sh", "-c", tt.script)
			if err != nil || got.Status != tt.status || string(got.Output) != tt.output {
				t.Errorf("Run = %d, %q, %v, want %d, %q", got.Status, got.Output, err, tt.status, tt.output)
			}
		})
	}
}

// A program in another root sees that root, and the caller stays where it is.
func TestRunInside(t *testing.T) {
	root := t.TempDir()
	if _, err := Run(t.Context(), root, "/bin/sh"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such program: %v, want ErrNotExist", err)
	}
	self, err := os.Executable() // a static program
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "self"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := Run(t.Context(), root, "/self", listRoot)
	if err != nil || got.Status != 0 || string(got.Output) != "self\n" {
		t.Errorf("Run = %d, %q, %v, want the names in %s", got.Status, got.Output, err, root)
	}
}

// Whatever a program does, Run returns in time and keeps the end of its output only.
func TestRunIsBounded(t *testing.T) {
	for name, script := range map[string]string{
		"hangs":                 "echo begun; $BEGUN; exec sleep 60",
		"ignores_signals":       "trap '' TERM INT HUP; echo begun; $BEGUN; while :; do sleep 60; done",
		"child_holds_the_pipe":  "sleep 60 & echo begun; $BEGUN; exec sleep 60",
		"closes_its_own_output": "echo begun; exec >/dev/null 2>&1; $BEGUN; exec sleep 60",
	} {
		// The time of a program is over once it has begun, however late that is.
		ctx, cancel := context.WithCancel(t.Context())
		begun := filepath.Join(t.TempDir(), "begun")
		ended := make(chan time.Time, 1)
		go func() {
			for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				if pid, err := os.ReadFile(begun); err == nil && len(pid) > 0 {
					break
				}
			}
			ended <- time.Now()
			cancel()
		}()
		got, err := Run(ctx, "/", "/bin/sh", "-c", strings.ReplaceAll(script, "$BEGUN", "echo $$ >'"+begun+"'"))
		// At once, on a busy host: one that waits for sleep to end takes a minute.
		if took := time.Since(<-ended); !errors.Is(err, ErrTime) || took > 6*killed || string(got.Output) != "begun\n" {
			t.Errorf("%s: Run = %q, %v after %s, want ErrTime at once", name, got.Output, err, took)
		}
		text, _ := os.ReadFile(begun)
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err != nil || syscall.Kill(pid, 0) != syscall.ESRCH {
			t.Errorf("%s: process %d goes on, %v", name, pid, err)
		}
	}
	got, err := Run(t.Context(), "/", "/bin/sh", "-c", "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done")
	if err != nil || len(got.Output) != outputBytes || !strings.HasSuffix(string(got.Output), "line 4999\n") {
		t.Errorf("Run keeps %d bytes, %v, want the last %d", len(got.Output), err, outputBytes)
	}
}
