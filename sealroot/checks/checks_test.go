package checks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// script puts an executable check into a folder.
func script(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestFind(t *testing.T) {
	etc, lib := t.TempDir(), t.TempDir()
	script(t, lib, "10-network", "")
	script(t, lib, "20-database", "")
	script(t, lib, "30-masked", "")
	script(t, etc, "20-database", "")
	script(t, etc, "05-first", "")
	script(t, etc, "40.sh", "")
	script(t, etc, "50-plain", "")
	for _, err := range []error{
		os.Chmod(filepath.Join(etc, "50-plain"), 0o644),
		os.Symlink("/dev/null", filepath.Join(etc, "30-masked")),
		os.Mkdir(filepath.Join(etc, "60-folder"), 0o755),
		os.Symlink("nowhere", filepath.Join(etc, "70-dangling")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	all, skipped, err := Find(etc, lib, filepath.Join(lib, "missing"))
	if err != nil {
		t.Fatal(err)
	}
	want := []Check{
		{"05-first", etc + "/05-first"}, {"10-network", lib + "/10-network"}, {"20-database", etc + "/20-database"},
	}
	if !slices.Equal(all, want) {
		t.Errorf("got %v, want %v", all, want)
	}
	var names []string
	for _, s := range skipped {
		names = append(names, filepath.Base(s.Path))
	}
	if got, want := strings.Join(names, " "), "40.sh 50-plain 60-folder 70-dangling"; got != want {
		t.Errorf("skipped %q, want %q", got, want)
	}
}

func TestRun(t *testing.T) {
	for _, c := range []struct {
		name    string
		scripts []string // 0-, 1-, …
		detail  string   // of the failure; "" none
		errs    []error
		said    string
	}{
		{"no_checks", nil, "", nil, ""},
		{"all_good", []string{"echo one", "echo two >&2"}, "", nil, "0: one|1: two"},
		{"first_fails", []string{"exit 3", "echo two"}, "0: exit status 3", []error{ErrFailed}, ""},
		{"second_fails", []string{"true", "echo; echo no table users; echo; exit 1", "echo three"}, "1: exit status 1: no table users", []error{ErrFailed}, "1: |1: no table users|1: "},
		{"killed", []string{"kill -9 $$"}, "0: signal: killed", []error{ErrFailed}, ""},
		// It may not even have begun then: TestNothingOfACheckStays goes on from here.
		{"too_slow", []string{"sleep 60"}, "0: time limit of 200ms", []error{ErrFailed, ErrTimeLimit}, ""},
		{"environment", []string{`test "$SEALROOT_CHECK" = 0 && test "$PWD" = /`}, "", nil, ""},
		{"no_last_newline", []string{"printf half; exit 1"}, "0: exit status 1: half", []error{ErrFailed}, "0: half"},
		{"leaves_a_daemon", []string{"sleep 5 & echo started"}, "", nil, "0: started"},
		{"nothing_to_read", []string{"read x && exit 1; exit 0"}, "", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for i, s := range c.scripts {
				script(t, dir, strconv.Itoa(i), s)
			}
			all, _, err := Find(dir)
			if err != nil {
				t.Fatal(err)
			}
			var said []string
			r := Runner{Limit: time.Minute, Say: func(name, line string) { said = append(said, name+": "+line) }}
			if c.name == "too_slow" {
				r.Limit = 200 * time.Millisecond
			}
			err = r.Run(context.Background(), all)
			var f *Failure
			if errors.As(err, &f) != (c.detail != "") || f != nil && f.Detail() != c.detail {
				t.Errorf("got error %v, want %q", err, c.detail)
			}
			for _, want := range c.errs {
				if !errors.Is(err, want) {
					t.Errorf("%v is not %v", err, want)
				}
			}
			if got := strings.Join(said, "|"); got != c.said {
				t.Errorf("output: got %q, want %q", got, c.said)
			}
		})
	}
}

// TestNothingOfACheckStays: a check that leaves a child behind is ended with it.
// Its time ends once the child runs, however long that takes on a busy machine.
func TestNothingOfACheckStays(t *testing.T) {
	dir := t.TempDir()
	script(t, dir, "0", fmt.Sprintf("echo begun; sleep 600 & echo $! >%s/pid; wait", dir))
	all, _, err := Find(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancelCause(context.Background())
	child := make(chan int, 1)
	go func() {
		defer end(ErrTimeLimit)
		for range 3000 {
			text, err := os.ReadFile(dir + "/pid")
			if pid, notYet := strconv.Atoi(strings.TrimSuffix(string(text), "\n")); err == nil && notYet == nil {
				child <- pid
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		child <- 0
	}()
	last, err := (Runner{Limit: time.Hour}).one(ctx, all[0])
	if !errors.Is(err, ErrTimeLimit) || last != "begun" {
		t.Errorf("got last line %q and error %v, want begun and %v", last, err, ErrTimeLimit)
	}
	pid := <-child
	if pid == 0 {
		t.Fatal("the check did not begin in a minute")
	}
	for range 1000 {
		// a child that was killed stays until it is waited for
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(state), ") Z ") {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("the child still runs: kill %d: %v", pid, syscall.Kill(pid, syscall.SIGKILL))
}

// TestMachineGoesDown: that is no failure of a check.
func TestMachineGoesDown(t *testing.T) {
	dir := t.TempDir()
	script(t, dir, "0", "sleep 60")
	all, _, err := Find(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if err := (Runner{Limit: time.Minute}).Run(ctx, all); err == nil || errors.Is(err, ErrFailed) {
		t.Errorf("got error %v, want one that is not %v", err, ErrFailed)
	}
}

// TestImageMakesProgress: the whole read is polite, and not in the idle class,
// which may starve until boot.commit_deadline ends the trial of a good image.
func TestImageMakesProgress(t *testing.T) {
	device := filepath.Join(t.TempDir(), "root")
	if err := os.WriteFile(device, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	const get, ownThread, lowestBestEffort = syscall.SYS_IOPRIO_GET, 1, 2<<13 | 7
	read := int64(0)
	err := Image(context.Background(), device, func(n int64) {
		read += n
		if prio, _, errno := syscall.Syscall(get, ownThread, 0, 0); errno != 0 || prio != lowestBestEffort {
			t.Errorf("I/O priority %#x (%v) while reading, want %#x", prio, errno, lowestBestEffort)
		}
	})
	if err != nil || read != 3<<20 {
		t.Errorf("read %d bytes, %v", read, err)
	}
}

func TestMapped(t *testing.T) {
	block := t.TempDir()
	for dev, name := range map[string]string{"dm-0": "sealroot-root", "dm-7": "sealroot-layer-low", "vda": ""} {
		dir := filepath.Join(block, dev, "dm")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "name"), []byte(name+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Mapped(block, "sealroot-layer-low"); got != "/dev/dm-7" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := Mapped(block, "sealroot-layer-lo"); got != "" || err == nil {
		t.Errorf("what is not there: %q, %v", got, err)
	}
}
