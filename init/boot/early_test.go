package boot

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Without a handler the signal has its default effect: none on an init, death on
// any other process, as this one shows. Go's handler would have it exit.
func TestNoHandler(t *testing.T) {
	if os.Getenv("SEALROOT_TEST_SIGNAL") != "" {
		noHandler(unix.SIGINT)
		text, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		os.Stdout.Write(text)
		time.Sleep(time.Minute)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestNoHandler$")
	cmd.Env = append(os.Environ(), "SEALROOT_TEST_SIGNAL=1")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	var text string
	for buf := make([]byte, 4096); !strings.Contains(text, "SigCgt:"); {
		n, err := out.Read(buf)
		if err != nil {
			t.Fatalf("%v after %q", err, text)
		}
		text += string(buf[:n])
	}
	_, caught, _ := strings.Cut(text, "SigCgt:")
	caught = strings.Fields(caught)[0]
	// SIGINT is bit 1 of the mask, SIGQUIT bit 2, which stays with Go.
	if last := caught[len(caught)-1]; !strings.ContainsRune("4 5 c d", rune(last)) {
		t.Errorf("caught signals %s, want SIGQUIT and not SIGINT among them", caught)
	}
}
