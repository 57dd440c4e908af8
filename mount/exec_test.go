package mount

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The test program plays two more parts, told by the environment: PID 1 before
// the hand-over, and the init after it, which writes down what it finds.
const (
	playBefore = "SEALROOT_TEST_BEFORE" // the file for playAfter
	playAfter  = "SEALROOT_TEST_AFTER"  // the file to write to
)

func TestMain(m *testing.M) {
	if out := os.Getenv(playAfter); out != "" {
		after(out)
		return
	}
	if out := os.Getenv(playBefore); out != "" {
		before(out)
		return
	}
	os.Exit(m.Run())
}

// before leaves descriptors open that an exec would pass on.
func before(out string) {
	for range 5 {
		if _, err := unix.Open("/etc/passwd", unix.O_RDONLY, 0); err != nil {
			panic(err)
		}
	}
	passed, err := MemoryFile("a file", []byte("passed"))
	if err != nil {
		panic(err)
	}
	panic(ExecInit("/proc/self/exe", []string{"init", fmt.Sprint(passed.Fd())}, []string{playAfter + "=" + out, "HOME=/"}, passed))
}

func after(out string) {
	var b strings.Builder
	// What an exec passed on is not marked to be closed by one; what the Go
	// runtime has opened since is.
	for fd := range 64 {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			fmt.Fprintf(&b, "%d ", fd)
		}
	}
	for fd := range 3 {
		target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		fmt.Fprintf(&b, "%s %v ", target, err)
	}
	number, _ := strconv.Atoi(os.Args[1])
	passed, err := io.ReadAll(os.NewFile(uintptr(number), "passed"))
	fmt.Fprintf(&b, "%s %v %q %q", passed, err, os.Args[:1], os.Environ())
	if err := os.WriteFile(out, []byte(b.String()), 0o600); err != nil {
		panic(err)
	}
}

func TestExecInit(t *testing.T) {
	out := filepath.Join(t.TempDir(), "found")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{playBefore + "=" + out, "GODEBUG=x=1"}
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, msg)
	}
	console := "/dev/console"
	if f, err := os.OpenFile(console, os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		console = "/dev/null" // a container without a console
	} else {
		f.Close()
	}
	c := console + " <nil> "
	got, want := mustRead(t, out), "0 1 2 N "+c+c+c+"passed <nil> "+fmt.Sprintf("%q %q", []string{"init"}, []string{playAfter + "=" + out, "HOME=/"})
	if got = regexp.MustCompile(`^0 1 2 \d+ `).ReplaceAllString(got, "0 1 2 N "); got != want {
		t.Errorf("init found\ngot:  %s\nwant: %s", got, want)
	}
}

func TestExecInitReturnsTheError(t *testing.T) {
	// In a child, because the descriptors of this one would change.
	if os.Getenv("SEALROOT_TEST_MISSING") != "" {
		if err := ExecInit("/nonexistent", []string{"init"}, nil, nil); err != nil {
			// The standard files are the console now.
			if err := os.WriteFile(os.Getenv("SEALROOT_TEST_MISSING"), []byte(err.Error()), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	out := filepath.Join(t.TempDir(), "error")
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestExecInitReturnsTheError$")
	cmd.Env = append(os.Environ(), "SEALROOT_TEST_MISSING="+out)
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if got, want := mustRead(t, out), "cannot execute /nonexistent: no such file or directory"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
