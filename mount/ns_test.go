package mount

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inNamespace runs a test in a mount namespace and with a root directory of its
// own, both of which end with the thread that runs it. The directory is for the
// test's files; it is deleted from outside, where none of the mounts exist.
func inNamespace(t *testing.T, test func(t *testing.T, dir string)) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test mounts: run it as root")
	}
	dir := t.TempDir()
	t.Run("in_namespace", func(t *testing.T) {
		runtime.LockOSThread() // and never unlocked: the thread is thrown away
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			t.Fatalf("unshare: %v", err)
		}
		if err := (&KernelRoot{}).SetPropagation(unix.MS_PRIVATE); err != nil {
			t.Fatal(err)
		}
		test(t, dir)
	})
}

func mustMkdir(t *testing.T, paths ...string) {
	t.Helper()
	for _, p := range paths {
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func mustWrite(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func mustOpen(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// mountLine returns the fields of the last line of this thread's mountinfo for
// a mount point: optional fields included, split at spaces.
func mountLine(t *testing.T, where string) []string {
	t.Helper()
	var found []string
	for line := range strings.Lines(mustRead(t, "/proc/thread-self/mountinfo")) {
		if f := strings.Fields(line); f[4] == where {
			found = f
		}
	}
	if found == nil {
		t.Fatalf("nothing is mounted at %s", where)
	}
	return found
}
