package qemutests

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// TestMain builds the programs that the machines run, so that `go test` on its
// own never tests old ones.
func TestMain(m *testing.M) {
	flag.Parse()
	build := exec.Command("make", "-s", "-C", rootDir, "build")
	if output, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "make build: %v\n%s", err, output)
		os.Exit(1)
	}
	status := m.Run()
	if n := emulatorHangs.Load(); n > 0 {
		fmt.Printf("EMULATOR HANGS: %d (machines whose kernel took no interrupt any more; each was switched off and on)\n", n)
	}
	os.Exit(status)
}
