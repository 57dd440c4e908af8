package btrfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"sealroot/tooltest"
)

// A scrub and a balance are seen while they run, and no longer.
func TestMoves(t *testing.T) {
	dir := t.TempDir()
	image, root := filepath.Join(dir, "image"), filepath.Join(dir, "root")
	tooltest.Run(t, "truncate", "-s", "2G", image)
	tooltest.Run(t, "mkfs.btrfs", "-q", "-K", image)
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	tooltest.Run(t, "mount", "-o", "loop,nodiscard", image, root)
	t.Cleanup(func() { tooltest.Run(t, "umount", root) })
	tooltest.Run(t, "dd", "if=/dev/zero", "of="+filepath.Join(root, "file"), "bs=1M", "count=300", "status=none")
	tooltest.Run(t, "sync", "-f", root)
	f, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	moves := func() bool {
		t.Helper()
		now, err := Moves(int(f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	for name, command := range map[string][]string{
		"scrub":   {"btrfs", "scrub", "start", "-B", root},
		"balance": {"btrfs", "balance", "start", "--full-balance", root},
	} {
		if moves() {
			t.Errorf("before a %s something moves", name)
		}
		seen := false
		for try := 0; try < 200 && !seen; try++ { // it may be over before anybody looks
			cmd := exec.Command(command[0], command[1:]...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- cmd.Wait() }()
			for ended := false; !ended; {
				select {
				case err := <-done:
					if ended = true; err != nil {
						t.Fatalf("%s: %v", name, err)
					}
				case <-time.After(time.Millisecond):
					seen = moves() || seen
				}
			}
		}
		if !seen {
			t.Errorf("a %s is not seen", name)
		}
		if moves() {
			t.Errorf("after a %s something moves", name)
		}
	}
}
